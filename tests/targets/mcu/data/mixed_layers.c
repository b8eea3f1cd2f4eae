#include "mixed.h"

int mixed_layer_000_all(const float *values, const int8_t *bytes, int32_t *total, float *scaled);

int mixed_layer_000_all(const float *values, const int8_t *bytes, int32_t *total, float *scaled)
{
    int i;
    *total = 0;
    for (i = 0; i < 5; i++) {
        *total += bytes[i];
    }
    for (i = 0; i < 6; i++) {
        scaled[i] = values[i] * (float)*total;
    }
    return 0;
}
