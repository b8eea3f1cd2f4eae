/* See reference.h. The order of the code follows the description of the bytes. */
#include "reference.h"

#include <string.h>

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

/* Where the entries of each row begin, in one of two widths. */
typedef struct {
    const uint16_t *narrow;
    const uint32_t *wide;
} row_starts;

static uint32_t row_start(row_starts starts, uint32_t row)
{
    return starts.narrow != NULL ? starts.narrow[row] : starts.wide[row];
}

static tc_layout_status check_row_start(row_starts starts, size_t count, uint32_t rows)
{
    uint32_t row;

    if ((uint64_t)count != (uint64_t)rows + 1u || row_start(starts, 0) != 0) {
        return TC_LAYOUT_ROW_START;
    }
    for (row = 0; row < rows; ++row) {
        if (row_start(starts, row + 1u) < row_start(starts, row)) {
            return TC_LAYOUT_ROW_START;
        }
    }
    return TC_LAYOUT_OK;
}

static row_starts gap_starts(const tc_gap_codes *packed)
{
    row_starts starts;

    starts.narrow = packed->row_start16;
    starts.wide = packed->row_start32;
    return starts;
}

static int is_value_width(uint8_t bytes)
{
    return bytes == 1u || bytes == 2u || bytes == 4u;
}

static tc_layout_status check_gap_codes(const tc_gap_codes *packed, const void *out,
                                        size_t out_count)
{
    uint64_t entries, bits;
    tc_layout_status status;

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
    status = check_row_start(gap_starts(packed), packed->row_start_count, packed->rows);
    if (status != TC_LAYOUT_OK) {
        return status;
    }
    entries = row_start(gap_starts(packed), packed->rows);
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
        for (entry = row_start(gap_starts(packed), row);
             entry < row_start(gap_starts(packed), row + 1u); ++entry) {
            uint32_t word = next_entry(packed, entry, &position);
            if (position > packed->cols) {
                return TC_LAYOUT_POSITION;
            }
            out[position - 1u] = (uint8_t)(word >> packed->gap_bits);
        }
    }
    return TC_LAYOUT_OK;
}

tc_layout_status tc_gap_values_unpack(const tc_gap_codes *packed, void *out, size_t out_count)
{
    tc_layout_status status = check_gap_codes(packed, out, out_count);
    const uint8_t *values;
    uint8_t *bytes = out;
    size_t width, row_bytes;
    uint32_t row, entry;

    if (status != TC_LAYOUT_OK) {
        return status;
    }
    if (packed->code_bits != 0u || !is_value_width(packed->value_bytes)) {
        return TC_LAYOUT_BITS;
    }
    values = packed->values;
    width = packed->value_bytes;
    row_bytes = packed->cols * width;
    for (row = 0; row < packed->rows; ++row, bytes += row_bytes) {
        uint64_t position = 0;
        memset(bytes, 0, row_bytes);
        for (entry = row_start(gap_starts(packed), row);
             entry < row_start(gap_starts(packed), row + 1u); ++entry) {
            (void)next_entry(packed, entry, &position);
            if (position > packed->cols) {
                return TC_LAYOUT_POSITION;
            }
            memcpy(bytes + (position - 1u) * width, values + entry * width, width);
        }
    }
    return TC_LAYOUT_OK;
}

tc_layout_status tc_bank_unpack(const tc_bank *packed, uint8_t *out, size_t out_count)
{
    uint64_t entries;
    uint32_t row, col, tail, banks;
    const uint8_t *data;

    if (packed == NULL || packed->data == NULL || out == NULL) {
        return TC_LAYOUT_NULL;
    }
    if (packed->keep < 1u || packed->keep > 16u) {
        return TC_LAYOUT_BITS;
    }
    if ((uint64_t)out_count < product(packed->rows, packed->cols)) {
        return TC_LAYOUT_OUTPUT;
    }
    banks = packed->cols / 16u + (packed->cols % 16u != 0u);
    tail = packed->cols % 16u;
    tail = tail < packed->keep ? tail : packed->keep;
    entries = product(packed->cols / 16u, packed->keep) + tail;
    if (entries != 0 && (uint64_t)packed->data_bytes / entries < packed->rows) {
        return TC_LAYOUT_STREAM;
    }
    data = packed->data;
    for (row = 0; row < packed->rows; ++row, out += packed->cols) {
        uint32_t bank, entry;
        for (col = 0; col < packed->cols; ++col) {
            out[col] = 0;
        }
        for (bank = 0; bank < banks; ++bank) {
            uint32_t first = bank * 16u;
            uint32_t size = packed->cols - first < 16u ? packed->cols - first : 16u;
            uint32_t count = size < packed->keep ? size : packed->keep;
            uint32_t last = 0; /* the column of the entry before */
            int filler = 0;
            for (entry = 0; entry < count; ++entry) {
                uint32_t place = *data >> 4, code = *data & 15u;
                ++data;
                if (place >= size) {
                    return TC_LAYOUT_POSITION;
                }
                if (code == 0u ? place != last : filler || (entry > 0u && place <= last)) {
                    return TC_LAYOUT_ORDER;
                }
                filler = code == 0u;
                last = place;
                /* A filler stands on the column of a weight. */
                out[first + place] |= (uint8_t)code;
            }
        }
    }
    return TC_LAYOUT_OK;
}

tc_layout_status tc_block_unpack(const tc_block *packed, void *out, size_t out_count)
{
    const uint8_t *values;
    uint8_t *bytes = out;
    tc_layout_status status;
    row_starts starts;
    size_t width, row_bytes;
    uint32_t row, entry;

    if (packed == NULL || out == NULL ||
        (packed->row_start16 == NULL) == (packed->row_start32 == NULL)) {
        return TC_LAYOUT_NULL;
    }
    if (!is_value_width(packed->value_bytes)) {
        return TC_LAYOUT_BITS;
    }
    if ((uint64_t)out_count < product(packed->rows, packed->cols)) {
        return TC_LAYOUT_OUTPUT;
    }
    starts.narrow = packed->row_start16;
    starts.wide = packed->row_start32;
    status = check_row_start(starts, packed->row_start_count, packed->rows);
    if (status != TC_LAYOUT_OK) {
        return status;
    }
    /* A matrix of zeros has no blocks: NULL is right there. */
    if (row_start(starts, packed->rows) > 0u && (packed->gaps == NULL || packed->values == NULL)) {
        return TC_LAYOUT_NULL;
    }
    if (packed->gaps_count < row_start(starts, packed->rows)) {
        return TC_LAYOUT_STREAM;
    }
    if (packed->values_count < row_start(starts, packed->rows)) {
        return TC_LAYOUT_VALUES;
    }
    values = packed->values;
    width = packed->value_bytes;
    row_bytes = packed->cols * width;
    for (row = 0; row < packed->rows; ++row, bytes += row_bytes) {
        uint64_t position = 0; /* in columns, of the block behind the last one */
        memset(bytes, 0, row_bytes);
        for (entry = row_start(starts, row); entry < row_start(starts, row + 1u); ++entry) {
            const uint8_t *block = values + (size_t)entry * 4u * width;
            size_t taken, k;
            position += ((uint64_t)packed->gaps[entry] + 1u) * 4u;
            if (position >= (uint64_t)packed->cols + 4u) {
                return TC_LAYOUT_POSITION;
            }
            taken = position > packed->cols ? packed->cols - (size_t)(position - 4u) : 4u;
            memcpy(bytes + (size_t)(position - 4u) * width, block, taken * width);
            /* Behind a short last block lie zeros. */
            for (k = taken * width; k < 4u * width; ++k) {
                if (block[k] != 0u) {
                    return TC_LAYOUT_POSITION;
                }
            }
        }
    }
    return TC_LAYOUT_OK;
}
