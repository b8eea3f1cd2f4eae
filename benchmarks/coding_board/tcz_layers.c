#include "decoder.h"
#include "file.h" /* tcz_w_file[], TCZ_LARGEST: made by the benchmark */

int tcz_layer_000_open(void);
void tcz_layer_001_clear(uint8_t *codes, uint32_t count);
int tcz_layer_002_decode(int *output);

static tcz_reader reader;
static tcz_tables tables;
static uint8_t codes[TCZ_LARGEST];

int tcz_layer_000_open(void) { return tcz_open(&reader, tcz_w_file, sizeof tcz_w_file); }

int tcz_layer_002_decode(int *output) {
    tcz_tensor tensor;
    tcz_status status = TCZ_OK;
    uint32_t first = 0, last = 0, number = 0;
    while (status == TCZ_OK && reader.tensors_left) {
        status = tcz_next(&reader, &tensor);
        if (status == TCZ_OK && tensor.kind != TCZ_PLAIN) tcz_layer_001_clear(codes, tensor.count);
        if (status == TCZ_OK) status = tcz_read(&reader, &tensor, &tables, codes, sizeof codes);
        if (status == TCZ_OK && tensor.kind != TCZ_PLAIN && tensor.count) {
            /* Enough to see that the codes came out; a sum would cost more than the decoding. */
            first += codes[tensor.count / 3];
            last += codes[tensor.count / 2];
            number++;
        }
    }
    if (status == TCZ_OK) status = tcz_close(&reader);
    output[0] = (int)first;
    output[1] = (int)last;
    output[2] = (int)number;
    return (int)status;
}
