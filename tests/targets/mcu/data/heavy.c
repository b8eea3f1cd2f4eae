#include "heavy.h"

unsigned char heavy_layer_000(unsigned char index);
unsigned char heavy_layer_001(unsigned char index);
unsigned char heavy_layer_002(unsigned char index);
unsigned char heavy_layer_003(unsigned char index);

int heavy_run(const unsigned char *input, unsigned char *output, void *arena)
{
    unsigned char *scratch = arena;
    scratch[0] = (unsigned char)(heavy_layer_000(*input) + heavy_layer_001(*input));
    scratch[19999] = (unsigned char)(heavy_layer_002(*input) + heavy_layer_003(*input));
    *output = (unsigned char)(scratch[0] + scratch[19999]);
    return 0;
}
