/* Reference decoders of the packed weight layouts, C99, no heap.
 *
 * They are written to be read and to judge others: one value at a time, every access checked.
 * The caller owns all memory; `out_count` is the number of elements that `out` can hold, and
 * rows * cols of them are written. On any status but TC_LAYOUT_OK the contents of `out` are
 * unspecified. The bytes of each layout are described in the Python file of its name.
 */
#ifndef TC_LAYOUTS_REFERENCE_H
#define TC_LAYOUTS_REFERENCE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The one list of statuses: name and text. */
#define TC_LAYOUT_STATUS_LIST(X)                                                              \
    X(TC_LAYOUT_OK, "The matrix was unpacked.")                                               \
    X(TC_LAYOUT_NULL, "A required pointer is NULL; pass the packed arrays and the output.")   \
    X(TC_LAYOUT_BITS, "A bit width is out of range; pass the widths that were packed.")       \
    X(TC_LAYOUT_OUTPUT, "The output is too small; expected rows * cols elements.")            \
    X(TC_LAYOUT_ROW_START,                                                                    \
      "row_start is not rows + 1 indices that begin at 0 and never fall; pack again.")        \
    X(TC_LAYOUT_STREAM, "The packed stream is too short for its entries; pack again.")        \
    X(TC_LAYOUT_VALUES, "There are fewer values than entries; pack again.")                   \
    X(TC_LAYOUT_POSITION, "An entry lies beyond the last column; pack again.")                \
    X(TC_LAYOUT_ORDER, "The entries of a bank do not rise by column; pack again.")

#define TC_LAYOUT_ENUM_ENTRY(name, text) name,
typedef enum { TC_LAYOUT_STATUS_LIST(TC_LAYOUT_ENUM_ENTRY) TC_LAYOUT_STATUS_COUNT } tc_layout_status;
#undef TC_LAYOUT_ENUM_ENTRY

/* The sentence of a status; never NULL. */
const char *tc_layout_status_text(tc_layout_status status);

/* dense_codes(bits) */
typedef struct {
    uint32_t rows;
    uint32_t cols;
    uint8_t bits; /* 1..8 */
    const uint8_t *data;
    size_t data_bytes;
} tc_dense_codes;

tc_layout_status tc_dense_codes_unpack(const tc_dense_codes *packed, uint8_t *out,
                                       size_t out_count);

/* gap_codes(gap_bits, code_bits); exactly one of the two row_start pointers is not NULL. */
typedef struct {
    uint32_t rows;
    uint32_t cols;
    uint8_t gap_bits;  /* 1..8 */
    uint8_t code_bits; /* 1..8, or 0 where `values` holds one number an entry */
    const uint16_t *row_start16;
    const uint32_t *row_start32;
    size_t row_start_count;
    const uint8_t *data;
    size_t data_bytes;
    const void *values;
    size_t values_count;
    uint8_t value_bytes; /* of a number: 1 (int8), 2 (int16) or 4 (float) */
} tc_gap_codes;

/* Needs code_bits 1..8. */
tc_layout_status tc_gap_codes_unpack(const tc_gap_codes *packed, uint8_t *out, size_t out_count);

/* Needs code_bits 0; `out` holds numbers of value_bytes. */
tc_layout_status tc_gap_values_unpack(const tc_gap_codes *packed, void *out, size_t out_count);

/* bank(keep) */
typedef struct {
    uint32_t rows;
    uint32_t cols;
    uint8_t keep; /* 1..16 */
    const uint8_t *data;
    size_t data_bytes;
} tc_bank;

tc_layout_status tc_bank_unpack(const tc_bank *packed, uint8_t *out, size_t out_count);

/* block(1x4); exactly one of the two row_start pointers is not NULL. */
typedef struct {
    uint32_t rows;
    uint32_t cols;
    const uint16_t *row_start16;
    const uint32_t *row_start32;
    size_t row_start_count;
    const uint8_t *gaps;
    size_t gaps_count;
    const void *values; /* four numbers a block */
    size_t values_count; /* in blocks */
    uint8_t value_bytes; /* of a number: 1 (int8), 2 (int16) or 4 (float) */
} tc_block;

/* `out` holds numbers of value_bytes. */
tc_layout_status tc_block_unpack(const tc_block *packed, void *out, size_t out_count);

#ifdef __cplusplus
}
#endif

#endif
