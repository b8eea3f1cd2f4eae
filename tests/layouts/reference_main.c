/* Test harness: decodes framed requests from stdin with the reference decoders until end of file.
 *
 * Request:  "<BIIBBBBIIIBQ" kind, rows, cols, bits (or keep), gap_bits, code_bits,
 *           row_start_width, row_start_count, data_bytes, values_count, value_bytes, out_count;
 *           then the three arrays.
 * Response: one byte of status, the length of its text in one byte, the text, and out_count
 *           elements. Every array is its own exact malloc, so the sanitizer sees a byte too far.
 */
#include "reference.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t number(const unsigned char *bytes, unsigned count)
{
    uint64_t value = 0;
    while (count-- > 0) {
        value = (value << 8) | bytes[count];
    }
    return value;
}

static void *take(size_t size)
{
    void *memory;
    if (size == 0) {
        return NULL;
    }
    memory = malloc(size);
    if (memory == NULL || fread(memory, 1, size, stdin) != size) {
        exit(3);
    }
    return memory;
}

int main(void)
{
    unsigned char head[34];

    while (fread(head, 1, sizeof head, stdin) == sizeof head) {
        unsigned kind = head[0], start_width = head[12];
        size_t start_count = (size_t)number(head + 13, 4), data_bytes = (size_t)number(head + 17, 4);
        size_t values_count = (size_t)number(head + 21, 4), out_count = (size_t)number(head + 26, 8);
        size_t value_bytes = head[25], lanes = kind == 4 ? 4 : 1;
        size_t out_size = out_count * (kind == 2 || kind == 4 ? value_bytes : 1);
        void *start = take(start_count * start_width);
        uint8_t *data = take(data_bytes);
        void *values = take(values_count * lanes * value_bytes);
        void *out = out_size > 0 ? calloc(1, out_size) : NULL;
        tc_layout_status status;
        const char *text;

        if (kind == 0) {
            tc_dense_codes packed = {0};
            packed.rows = (uint32_t)number(head + 1, 4);
            packed.cols = (uint32_t)number(head + 5, 4);
            packed.bits = head[9];
            packed.data = data;
            packed.data_bytes = data_bytes;
            status = tc_dense_codes_unpack(&packed, out, out_count);
        } else if (kind == 3) {
            tc_bank packed = {0};
            packed.rows = (uint32_t)number(head + 1, 4);
            packed.cols = (uint32_t)number(head + 5, 4);
            packed.keep = head[9];
            packed.data = data;
            packed.data_bytes = data_bytes;
            status = tc_bank_unpack(&packed, out, out_count);
        } else if (kind == 4) {
            tc_block packed = {0};
            packed.rows = (uint32_t)number(head + 1, 4);
            packed.cols = (uint32_t)number(head + 5, 4);
            packed.row_start16 = start_width == 2 ? start : NULL;
            packed.row_start32 = start_width == 4 ? start : NULL;
            packed.row_start_count = start_count;
            packed.gaps = data;
            packed.gaps_count = data_bytes;
            packed.values = values;
            packed.values_count = values_count;
            packed.value_bytes = (uint8_t)value_bytes;
            status = tc_block_unpack(&packed, out, out_count);
        } else {
            tc_gap_codes packed = {0};
            packed.rows = (uint32_t)number(head + 1, 4);
            packed.cols = (uint32_t)number(head + 5, 4);
            packed.gap_bits = head[10];
            packed.code_bits = head[11];
            packed.row_start16 = start_width == 2 ? start : NULL;
            packed.row_start32 = start_width == 4 ? start : NULL;
            packed.row_start_count = start_count;
            packed.data = data;
            packed.data_bytes = data_bytes;
            packed.values = values;
            packed.values_count = values_count;
            packed.value_bytes = (uint8_t)value_bytes;
            status = kind == 1 ? tc_gap_codes_unpack(&packed, out, out_count)
                               : tc_gap_values_unpack(&packed, out, out_count);
        }
        text = tc_layout_status_text(status);
        putchar((int)status);
        putchar((int)strlen(text));
        fputs(text, stdout);
        if (out_size > 0) {
            fwrite(out, 1, out_size, stdout);
        }
        fflush(stdout);
        free(start);
        free(data);
        free(values);
        free(out);
    }
    return 0;
}
