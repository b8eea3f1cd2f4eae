/* Weights of a layer, Huffman coded in flash and decoded piece by piece while they are multiplied.

   The names of this file begin with the model's name where it becomes part of one. The text of the
   codes and of their table is written by targets/mcu/dsp/coded.py. */
#ifndef WEIGHT_DECODER_H
#define WEIGHT_DECODER_H

#include <stdint.h>

/* Bits that the table is looked up by, and the longest word. */
#define WEIGHT_DECODER_LOOKUP 7
#define WEIGHT_DECODER_LONGEST 12

/* Where a layer's weights are read next. Kernels in assembly know the order of the members. */
struct weight_decoder {
    const uint8_t *codes;  /* four bytes behind the last word may be read */
    const uint16_t *table; /* of the code, see weight_decoder.c */
    uint32_t position;     /* bits of the codes that were read */
};

/* Decodes the next `count` weights, 1 or more: each 256 * a + b of two int8, a coded first. */
void weight_decoder_read(struct weight_decoder *from, int16_t *to, uint32_t count);

#endif /* WEIGHT_DECODER_H */
