/* Decoder of .tcz files of the flash profile. C99; no heap; the caller owns all memory.
 *
 *     tcz_reader reader;
 *     tcz_tensor tensor;
 *     tcz_tables tables;                                the only working memory, 1.6 KB
 *     status = tcz_open(&reader, file, file_size);      checks header, lengths and checksums
 *     while (status == TCZ_OK && reader.tensors_left) {
 *         status = tcz_next(&reader, &tensor);          what it is and how large it will be
 *         (memset codes to 0)
 *         if (status == TCZ_OK) status = tcz_read(&reader, &tensor, &tables, codes, codes_size);
 *     }
 *     if (status == TCZ_OK) status = tcz_close(&reader);
 *
 * Before anything is decoded, tcz_next tells the tensor's size, and the work is at most one entry
 * for each item: the caller may refuse. SPEC.md tells the bytes in the order of this decoder.
 */
#ifndef TCZ_DECODER_H
#define TCZ_DECODER_H

#include <stddef.h>
#include <stdint.h>

#define TCZ_MAX_RANK 8
#define TCZ_LONGEST 12 /* bits of the longest word */
#define TCZ_FAST 8     /* words of up to so many bits are found in one step */
#define TCZ_CHUNK 256  /* entries of a chunk */

/* Status and text in one list, so that they cannot drift. */
#define TCZ_STATUS(X)                                                                     \
    X(TCZ_OK, "The file was read.")                                                       \
    X(TCZ_NOT_TCZ, "The file is no .tcz file of the flash profile and of version 1.")     \
    X(TCZ_HEADER, "The header is damaged; copy the file again.")                          \
    X(TCZ_CHECKSUM, "A section is damaged; copy the file again.")                         \
    X(TCZ_RECORD, "The section tensors holds what no writer writes.")                     \
    X(TCZ_STREAM, "The section weights holds what no writer writes.")                     \
    X(TCZ_SPACE, "The buffer is smaller than the tensor; give tensor.count bytes.")

#define TCZ_STATUS_NAME(name, text) name,
typedef enum { TCZ_STATUS(TCZ_STATUS_NAME) TCZ_STATUS_COUNT } tcz_status;
#undef TCZ_STATUS_NAME

enum { TCZ_PLAIN, TCZ_SPARSE, TCZ_SHARED, TCZ_BYTES }; /* kinds of tensors */

/* A code's words: those of up to 8 bits by table, longer ones by comparison. */
typedef struct {
    uint16_t fast[1 << TCZ_FAST];     /* symbol * 256 + length; see decoder.c */
    uint16_t limit[TCZ_LONGEST + 1];  /* first word behind those of this length, left-justified */
    int16_t offset[TCZ_LONGEST + 1];  /* index of a word's symbol, less the word */
    uint8_t sorted[256];              /* symbols in order of their words */
    uint16_t symbols;                 /* number of symbols, 0 before the first table */
} tcz_code;

typedef struct {
    tcz_code code;
    tcz_code gap;
} tcz_tables;

typedef struct {
    const uint8_t *at;       /* next byte of the section weights */
    const uint8_t *end;      /* its end */
    const uint8_t *record;   /* next byte of the section tensors */
    const uint8_t *record_end;
    uint64_t allowed;        /* decoded bytes that the file may still promise */
    uint32_t tensors_left;
} tcz_reader;

typedef struct {
    uint8_t kind;            /* TCZ_PLAIN ... */
    uint8_t dtype;           /* number in the list of SPEC.md */
    uint8_t itemsize;        /* bytes of a value */
    uint8_t rank;
    uint32_t dims[TCZ_MAX_RANK];
    uint32_t count;          /* items: product of dims */
    uint16_t levels;         /* centroids of a codebook of TCZ_SHARED */
    uint32_t parts[TCZ_MAX_RANK]; /* blocks of each axis that have a codebook of their own */
    uint32_t centroids;      /* centroids of all codebooks: product of parts, times levels */
    const uint8_t *values;   /* after tcz_read: plain values, kept values, or centroids; in the */
    uint32_t values_count;   /*   file, little-endian, not aligned */
} tcz_tensor;

const char *tcz_text(tcz_status status);
tcz_status tcz_open(tcz_reader *reader, const uint8_t *file, size_t size);
tcz_status tcz_next(tcz_reader *reader, tcz_tensor *tensor);
/* codes: tensor->count bytes, all 0, for all kinds but TCZ_PLAIN: codes, the mask of TCZ_SPARSE (0 and 1),
 * or the values of TCZ_BYTES. The tables must be the same object for all tensors of a file; set
 * code.symbols and gap.symbols of it to 0 before the first. */
tcz_status tcz_read(tcz_reader *reader, tcz_tensor *tensor, tcz_tables *tables, uint8_t *codes,
                    size_t codes_size);
tcz_status tcz_close(const tcz_reader *reader);

#endif
