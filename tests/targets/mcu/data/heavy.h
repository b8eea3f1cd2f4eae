/* Four layers whose weights have sizes that a test can name. */
#ifndef HEAVY_H
#define HEAVY_H
#define HEAVY_ARENA_BYTES 20000
#define HEAVY_ABI_VERSION 1
int heavy_run(const unsigned char *input, unsigned char *output, void *arena);
#endif
