/* Runs the decoder of weights for tests/targets/mcu/dsp/test_coded.py, in buffers that end where
   their bytes end, so that a sanitizer sees what is read or written behind them.

   Standard input: of each stream the sizes of codes and table in bytes, the number of pieces and
   their sizes (uint32 each), then codes and table. Standard output: the halfwords, and the position
   in bits. */
#include <stdio.h>
#include <stdlib.h>

#include "weight_decoder.h"

static void get(void *to, size_t size)
{
    if (fread(to, 1, size, stdin) != size) {
        exit(3);
    }
}

static void *get_new(uint32_t size)
{
    void *data = malloc(size);
    if (data == NULL) {
        exit(4);
    }
    get(data, size);
    return data;
}

int main(void)
{
    uint32_t sizes[3];
    while (fread(sizes, 1, sizeof sizes, stdin) == sizeof sizes) {
        uint32_t *pieces = get_new(4 * sizes[2]);
        uint8_t *codes = get_new(sizes[0]);
        uint16_t *table = get_new(sizes[1]);
        struct weight_decoder state = {codes, table, 0};
        for (uint32_t i = 0; i < sizes[2]; i++) {
            int16_t *out = malloc(2 * pieces[i]);
            if (out == NULL) {
                return 4;
            }
            weight_decoder_read(&state, out, pieces[i]);
            fwrite(out, 2, pieces[i], stdout);
            free(out);
        }
        fwrite(&state.position, 4, 1, stdout);
        fflush(stdout);
        free(pieces);
        free(codes);
        free(table);
    }
    return 0;
}
