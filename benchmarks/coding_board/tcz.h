/* A "model" whose two layers open a .tcz file in flash and decode it, for counting instructions. */
#ifndef TCZ_H
#define TCZ_H
#define TCZ_ARENA_BYTES 0
#define TCZ_ABI_VERSION 1
int tcz_run(const int *request, int *output, void *arena);
#endif
