/* Several inputs and outputs of several types: total = sum of bytes, scaled = values * total. */
#ifndef MIXED_H
#define MIXED_H
#include <stdint.h>
#define MIXED_ARENA_BYTES 0
#define MIXED_ABI_VERSION 3
int mixed_run(const float *values, const int8_t *bytes, int32_t *total, float *scaled, void *arena);
#endif
