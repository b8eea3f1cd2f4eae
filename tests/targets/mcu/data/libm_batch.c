/* runtime/libm.c under other names, so that the host's libm stays its own; one loop a function. */
#include <math.h>
#include <stddef.h>

float board_expf(float x);
float board_tanhf(float x);
float board_erff(float x);
float board_powf(float x, float y);
float board_rintf(float x);
float board_nearbyintf(float x);

#define expf board_expf
#define tanhf board_tanhf
#define erff board_erff
#define powf board_powf
#define rintf board_rintf
#define nearbyintf board_nearbyintf
#include "../../../../targets/mcu/runtime/libm.c"

#define BATCH(name)                                                                               \
    void batch_##name(const float *x, float *y, size_t count);                                    \
    void batch_##name(const float *x, float *y, size_t count)                                     \
    {                                                                                             \
        size_t i;                                                                                 \
        for (i = 0; i < count; i++) {                                                             \
            y[i] = board_##name(x[i]);                                                            \
        }                                                                                         \
    }

#undef expf
#undef tanhf
#undef erff
#undef rintf
#undef nearbyintf
BATCH(expf)
BATCH(tanhf)
BATCH(erff)
BATCH(rintf)
BATCH(nearbyintf)

void batch_powf(const float *x, const float *y, float *z, size_t count);
void batch_powf(const float *x, const float *y, float *z, size_t count)
{
    size_t i;
    for (i = 0; i < count; i++) {
        z[i] = board_powf(x[i], y[i]);
    }
}
