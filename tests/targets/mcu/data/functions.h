/* Every function of runtime/libm.c on the board, and sqrtf: one output each. */
#ifndef FUNCTIONS_H
#define FUNCTIONS_H
#define FUNCTIONS_ARENA_BYTES 0
#define FUNCTIONS_ABI_VERSION 1
int functions_run(const float *x, float *y, void *arena);
#endif
