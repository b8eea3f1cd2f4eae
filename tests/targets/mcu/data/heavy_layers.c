#include "heavy.h"

#define LAYER(number, bytes)                                                                      \
    static const unsigned char heavy_w_##number[bytes] = {1, 2, 3};                               \
    unsigned char heavy_layer_##number(unsigned char index);                                      \
    unsigned char heavy_layer_##number(unsigned char index)                                       \
    {                                                                                             \
        return heavy_w_##number[index];                                                           \
    }

LAYER(000, 1000)
LAYER(001, 4000)
LAYER(002, 2000)
LAYER(003, 3000)
