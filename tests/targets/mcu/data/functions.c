#include "functions.h"

int functions_layer_000_all(const float *x, float *y);

int functions_run(const float *x, float *y, void *arena)
{
    (void)arena;
    return functions_layer_000_all(x, y);
}
