#include "mixed.h"

int mixed_layer_000_all(const float *values, const int8_t *bytes, int32_t *total, float *scaled);

int mixed_run(const float *values, const int8_t *bytes, int32_t *total, float *scaled, void *arena)
{
    (void)arena;
    return mixed_layer_000_all(values, bytes, total, scaled);
}
