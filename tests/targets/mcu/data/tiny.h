/* A hand-written model in the form that the code generator gives: 32 inputs, 3 outputs. */
#ifndef TINY_H
#define TINY_H
#ifdef __cplusplus
extern "C" {
#endif
#define TINY_ARENA_BYTES 48
#define TINY_ABI_VERSION 1
int tiny_run(const float *input, float *output, void *arena);
#ifdef __cplusplus
}
#endif
#endif
