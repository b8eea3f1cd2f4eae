#include "tcz.h"

int tcz_layer_000_open(void);
int tcz_layer_002_decode(int *output);

int tcz_run(const int *request, int *output, void *arena) {
    (void)request;
    (void)arena;
    int status = tcz_layer_000_open();
    return status ? status : tcz_layer_002_decode(output);
}
