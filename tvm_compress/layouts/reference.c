/* See reference.h. The order of the code follows the description of the bytes. */
#include "reference.h"

/* A kernel may read three bytes at any entry, so the stream ends with two bytes of padding. */
#define STREAM_PADDING_BYTES 2u

#define TEXT_ENTRY(name, text) text,
static const char *const status_texts[] = {TC_LAYOUT_STATUS_LIST(TEXT_ENTRY)};
#undef TEXT_ENTRY

const char *tc_layout_status_text(tc_layout_status status)
{
    if ((unsigned)status >= (unsigned)TC_LAYOUT_STATUS_COUNT) {
        return "The status is none of tc_layout_status.";
    }
    return status_texts[status];
}

/* rows * cols without overflow: sizes are compared in 64 bits, whatever size_t is. */
static uint64_t product(uint32_t a, uint32_t b)
{
    return (uint64_t)a * (uint64_t)b;
}

/* `bits` (at most 16) bits at bit `at` of a little-endian bit string of `size` bytes. */
static uint32_t read_bits(const uint8_t *data, size_t size, uint64_t at, unsigned bits)
{
    size_t byte = (size_t)(at / 8u);
    uint32_t word = 0;
    unsigned k;

    for (k = 0; k < 3u && byte + k < size; ++k) {
        word |= (uint32_t)data[byte + k] << (8u * k);
    }
    return (word >> (at % 8u)) & ((1u << bits) - 1u);
}

tc_layout_status tc_dense_codes_unpack(const tc_dense_codes *packed, uint8_t *out,
                                       size_t out_count)
{
    uint64_t row_bytes;
    uint32_t row, col;

    if (packed == NULL || packed->data == NULL || out == NULL) {
        return TC_LAYOUT_NULL;
    }
    if (packed->bits < 1u || packed->bits > 8u) {
        return TC_LAYOUT_BITS;
    }
    if ((uint64_t)out_count < product(packed->rows, packed->cols)) {
        return TC_LAYOUT_OUTPUT;
    }
    row_bytes = (((uint64_t)packed->cols + 7u) / 8u) * packed->bits;
    /* Divided rather than multiplied, so that a wild header can't overflow the product. */
    if (row_bytes != 0 && (uint64_t)packed->data_bytes / row_bytes < packed->rows) {
        return TC_LAYOUT_STREAM;
    }
    for (row = 0; row < packed->rows; ++row) {
        const uint8_t *bytes = packed->data + (size_t)(row * row_bytes);
        for (col = 0; col < packed->cols; ++col) {
            *out++ = (uint8_t)read_bits(bytes, (size_t)row_bytes, product(col, packed->bits),
                                        packed->bits);
        }
    }
    return TC_LAYOUT_OK;
}

static uint32_t row_start(const tc_gap_codes *packed, uint32_t row)
{
    return packed->row_start16 != NULL ? packed->row_start16[row] : packed->row_start32[row];
}

static tc_layout_status check_gap_codes(const tc_gap_codes *packed, const void *out,
                                        size_t out_count)
{
    uint64_t entries, bits;
    uint32_t row;

    if (packed == NULL || packed->data == NULL || out == NULL ||
        (packed->row_start16 == NULL) == (packed->row_start32 == NULL)) {
        return TC_LAYOUT_NULL;
    }
    if (packed->gap_bits < 1u || packed->gap_bits > 8u || packed->code_bits > 8u) {
        return TC_LAYOUT_BITS;
    }
    if ((uint64_t)out_count < product(packed->rows, packed->cols)) {
        return TC_LAYOUT_OUTPUT;
    }
    if ((uint64_t)packed->row_start_count != (uint64_t)packed->rows + 1u ||
        row_start(packed, 0) != 0) {
        return TC_LAYOUT_ROW_START;
    }
    for (row = 0; row < packed->rows; ++row) {
        if (row_start(packed, row + 1u) < row_start(packed, row)) {
            return TC_LAYOUT_ROW_START;
        }
    }
    entries = row_start(packed, packed->rows);
    bits = entries * (uint64_t)(packed->gap_bits + packed->code_bits);
    if ((uint64_t)packed->data_bytes < (bits + 7u) / 8u + STREAM_PADDING_BYTES) {
        return TC_LAYOUT_STREAM;
    }
    /* A matrix of zeros has no entries, and C has no arrays of no elements: NULL is right there. */
    if (packed->code_bits == 0u && entries > 0u) {
        if (packed->values == NULL) {
            return TC_LAYOUT_NULL;
        }
        if ((uint64_t)packed->values_count < entries) {
            return TC_LAYOUT_VALUES;
        }
    }
    return TC_LAYOUT_OK;
}

/* The entry's word; moves the position (columns passed in this row) forward. */
static uint32_t next_entry(const tc_gap_codes *packed, uint32_t entry, uint64_t *position)
{
    unsigned width = (unsigned)packed->gap_bits + packed->code_bits;
    uint32_t word = read_bits(packed->data, packed->data_bytes, product(entry, width), width);

    *position += (word & ((1u << packed->gap_bits) - 1u)) + 1u;
    return word;
}

tc_layout_status tc_gap_codes_unpack(const tc_gap_codes *packed, uint8_t *out, size_t out_count)
{
    tc_layout_status status = check_gap_codes(packed, out, out_count);
    uint32_t row, entry, col;

    if (status != TC_LAYOUT_OK) {
        return status;
    }
    if (packed->code_bits == 0u) {
        return TC_LAYOUT_BITS;
    }
    for (row = 0; row < packed->rows; ++row, out += packed->cols) {
        uint64_t position = 0; /* one past the last entry's column */
        for (col = 0; col < packed->cols; ++col) {
            out[col] = 0;
        }
        for (entry = row_start(packed, row); entry < row_start(packed, row + 1u); ++entry) {
            uint32_t word = next_entry(packed, entry, &position);
            if (position > packed->cols) {
                return TC_LAYOUT_POSITION;
            }
            out[position - 1u] = (uint8_t)(word >> packed->gap_bits);
        }
    }
    return TC_LAYOUT_OK;
}

tc_layout_status tc_gap_values_unpack(const tc_gap_codes *packed, float *out, size_t out_count)
{
    tc_layout_status status = check_gap_codes(packed, out, out_count);
    uint32_t row, entry, col;

    if (status != TC_LAYOUT_OK) {
        return status;
    }
    if (packed->code_bits != 0u) {
        return TC_LAYOUT_BITS;
    }
    for (row = 0; row < packed->rows; ++row, out += packed->cols) {
        uint64_t position = 0;
        for (col = 0; col < packed->cols; ++col) {
            out[col] = 0.0f;
        }
        for (entry = row_start(packed, row); entry < row_start(packed, row + 1u); ++entry) {
            (void)next_entry(packed, entry, &position);
            if (position > packed->cols) {
                return TC_LAYOUT_POSITION;
            }
            out[position - 1u] = packed->values[entry];
        }
    }
    return TC_LAYOUT_OK;
}
