#include "tiny.h"

int tiny_layer_000_dense(const float *input, float *output);
int tiny_layer_001_softmax(const float *input, float *output);

int tiny_run(const float *input, float *output, void *arena)
{
    int status = tiny_layer_000_dense(input, (float *)arena);
    if (status) {
        return status;
    }
    return tiny_layer_001_softmax((const float *)arena, output);
}
