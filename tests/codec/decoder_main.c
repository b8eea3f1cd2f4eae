/* The C decoder as a server: files in, status and tensors out. See conftest.py for the bytes. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "decoder.h"

static void put(const void *data, size_t size) {
    if (size && fwrite(data, 1, size, stdout) != size) exit(3);
}

static void put32(uint32_t value) { put(&value, 4); }

int main(void) {
    uint32_t size;
    while (fread(&size, 4, 1, stdin) == 1) {
        /* Each file in an allocation of its own size, so that the sanitizer sees a byte too far. */
        uint8_t *file = malloc(size ? size : 1);
        if (!file || (size && fread(file, 1, size, stdin) != size)) return 2;
        static tcz_tables tables;
        tcz_reader reader;
        tcz_tensor tensor;
        memset(&tables, 0xA5, sizeof tables);
        tables.code.symbols = tables.gap.symbols = 0;
        tcz_status status = tcz_open(&reader, file, size);
        while (status == TCZ_OK && reader.tensors_left) {
            status = tcz_next(&reader, &tensor);
            if (status != TCZ_OK) break;
            uint32_t room = tensor.kind == TCZ_PLAIN ? 0 : tensor.count;
            uint8_t *codes = calloc(room ? room : 1, 1);
            if (!codes) return 2;
            status = tcz_read(&reader, &tensor, &tables, codes, room);
            if (status == TCZ_OK && room && tcz_read(&reader, &tensor, &tables, codes, room - 1) !=
                                                TCZ_SPACE) {
                return 4;
            }
            if (status == TCZ_OK) {
                put32(1);
                put32(room);
                put(codes, room);
                put32(tensor.values_count * tensor.itemsize);
                put(tensor.values, (size_t)tensor.values_count * tensor.itemsize);
            }
            free(codes);
        }
        if (status == TCZ_OK) status = tcz_close(&reader);
        put32(0);
        put32((uint32_t)status);
        put32((uint32_t)strlen(tcz_text(status)));
        put(tcz_text(status), strlen(tcz_text(status)));
        fflush(stdout);
        free(file);
    }
    return 0;
}
