#include "trouble.h"

int trouble_layer_000_act(const float *request, float *output);
int trouble_layer_001_scratch(void);

int trouble_run(const float *request, float *output, void *arena)
{
    int status = trouble_layer_000_act(request, output);
    (void)arena;
    return status ? status : trouble_layer_001_scratch();
}
