#include <stdint.h>
#include <string.h>

/* In a file of its own, or its instructions would be counted with the decoding. */
void tcz_layer_001_clear(uint8_t *codes, uint32_t count);

void tcz_layer_001_clear(uint8_t *codes, uint32_t count) { memset(codes, 0, count); }
