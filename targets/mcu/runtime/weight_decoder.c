#include "weight_decoder.h"

/* A canonical Huffman code of bytes. Its table holds
   - for each LOOKUP bits 256 * byte + length of the word that they begin with, or 0 where it is
     longer;
   - for each longer length, first the highest 16 bits that words up to this length begin with, then
     what makes the index of the byte out of a word (modulo 2**16), counted in bytes from the
     table's begin;
   - the bytes of the longer words, in the order of the words. */
enum {
    LOOKUP = WEIGHT_DECODER_LOOKUP,
    LENGTHS = 1 << LOOKUP
};

static uint32_t longer(const uint16_t *table, uint32_t bits)
{
    const uint16_t *row = table + LENGTHS;
    uint32_t length = LOOKUP + 1;
    while (bits >> 16 > row[0]) {
        row += 2;
        length++;
    }
    const uint16_t place = (uint16_t)(row[1] + (bits >> (32 - length)));
    return (uint32_t)((const uint8_t *)table)[place] << 8 | length;
}

void weight_decoder_read(struct weight_decoder *from, int16_t *to, uint32_t count)
{
    const uint8_t *codes = from->codes;
    const uint16_t *table = from->table;
    uint32_t position = from->position;
    const int16_t *end = to + count;
    do {
        /* 25 bits at least, and two words have 24 at most. */
        const uint8_t *at = codes + (position >> 3);
        uint32_t bits = (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
        bits <<= position & 7;
        uint32_t a = table[bits >> (32 - LOOKUP)];
        if (a == 0) {
            a = longer(table, bits);
        }
        const uint32_t first = a & 0xFF;
        bits <<= first;
        uint32_t b = table[bits >> (32 - LOOKUP)];
        if (b == 0) {
            b = longer(table, bits);
        }
        position += first + (b & 0xFF);
        *to++ = (int16_t)((a & 0xFF00) + (uint32_t)(int32_t)(int8_t)(b >> 8));
    } while (to != end);
    from->position = position;
}
