/* What a fuzzer calls: decodes one input as it is, and once more with its checksums mended, so that
 * the mutations reach what the checksums guard. Whatever the decoder promises is checked. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "decoder.h"

enum { SECTIONS = 3, FIXED = 9, ENTRY = 9, HEADER = FIXED + SECTIONS * ENTRY + 4 };

static void check(int holds, const char *what) {
    if (holds) return;
    fprintf(stderr, "The decoder broke its promise: %s.\n", what);
    abort();
}

static void decode(const uint8_t *file, size_t size) {
    static tcz_tables tables;
    tcz_reader reader;
    tcz_tensor tensor;
    uint64_t decoded = 0;
    memset(&tables, 0xA5, sizeof tables);
    tables.code.symbols = tables.gap.symbols = 0;
    tcz_status status = tcz_open(&reader, file, size);
    uint64_t promised = status == TCZ_OK ? reader.allowed : 0;
    check(promised <= (uint64_t)1024 * size + 65536, "the output is bounded by the file's size");
    while (status == TCZ_OK && reader.tensors_left) {
        status = tcz_next(&reader, &tensor);
        if (status != TCZ_OK) break;
        uint32_t room = tensor.kind == TCZ_PLAIN ? 0 : tensor.count;
        decoded += room;
        check(decoded <= promised, "a tensor's size is told before it is decoded, and bounded");
        uint8_t *codes = calloc(room ? room : 1, 1); /* of its own size: a byte too far is seen */
        if (!codes) abort();
        status = tcz_read(&reader, &tensor, &tables, codes, room);
        if (status == TCZ_OK) {
            check(tensor.values_count == 0 ||
                      (tensor.values >= file &&
                       (uint64_t)tensor.values_count * tensor.itemsize <=
                           (uint64_t)(file + size - tensor.values)),
                  "values lie in the file");
            unsigned levels = tensor.kind == TCZ_SHARED   ? tensor.levels
                              : tensor.kind == TCZ_SPARSE ? 2
                                                          : 256;
            uint32_t kept = 0;
            for (uint32_t i = 0; i < room; i++) {
                check(codes[i] < levels, "each code has a centroid");
                kept += codes[i] != 0;
            }
            check(tensor.kind != TCZ_SPARSE || kept == tensor.values_count,
                  "a sparse tensor has a value for each place");
        }
        free(codes);
    }
    if (status == TCZ_OK) status = tcz_close(&reader);
    check(tcz_text(status)[0] != 0, "each status has a text");
}

static uint32_t crc32(const uint8_t *data, size_t size) {
    uint32_t crc = 0xFFFFFFFFu;
    while (size--) {
        crc ^= *data++;
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (0xEDB88320u & (0u - (crc & 1)));
    }
    return ~crc;
}

static uint32_t get32(const uint8_t *at) {
    return at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static void put32(uint8_t *at, uint32_t value) {
    for (int i = 0; i < 4; i++) at[i] = (uint8_t)(value >> 8 * i);
}

/* Right checksums, and lengths that the bytes can have; fuzz_tcz.py mends alike. */
static void mend(uint8_t *file, size_t size) {
    memcpy(file, "TCZ\x1a\x01\x01\0\0\x03", FIXED);
    size_t at = HEADER;
    for (int i = 0; i < SECTIONS; i++) {
        uint8_t *entry = file + FIXED + i * ENTRY;
        uint32_t left = (uint32_t)(size - at), length = get32(entry + 1);
        if (i == SECTIONS - 1 || length > left) length = left;
        entry[0] = (uint8_t)(i + 1);
        put32(entry + 1, length);
        put32(entry + 5, crc32(file + at, length));
        at += length;
    }
    put32(file + HEADER - 4, crc32(file, HEADER - 4));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    decode(data, size);
    if (size < HEADER) return 0;
    uint8_t *file = malloc(size);
    if (!file) abort();
    memcpy(file, data, size);
    mend(file, size);
    decode(file, size);
    free(file);
    return 0;
}
