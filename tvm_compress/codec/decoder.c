/* Decoder of .tcz files of the flash profile, in the order of SPEC.md. */
#include "decoder.h"

#include <string.h>

/* An entry of the fast table has the word's length in its low byte and the symbol in the high one:
 * a shift by a register reads the low byte alone, so no instruction takes it out. */
#define SPECIAL 0x80u /* with length 0: the word is longer than 8 bits; else it is the escape */
#define TCZ_SINGLE 15u
#define PROMISE 1024u
#define PROMISE_FREE 65536u
#define LOOK_AHEAD 4u

const char *tcz_text(tcz_status status) {
#define TCZ_STATUS_TEXT(name, text) text,
    static const char *const texts[] = {TCZ_STATUS(TCZ_STATUS_TEXT)};
#undef TCZ_STATUS_TEXT
    return (unsigned)status < TCZ_STATUS_COUNT ? texts[status] : "There is no such status.";
}

/* ---- header -------------------------------------------------------------------------------- */

static uint32_t word32(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* CRC-32 (ISO-HDLC) by four bits: a table of 64 bytes instead of 1024. */
static uint32_t crc32(const uint8_t *p, size_t size) {
    static const uint32_t table[16] = {
        0x00000000u, 0x1db71064u, 0x3b6e20c8u, 0x26d930acu, 0x76dc4190u, 0x6b6b51f4u,
        0x4db26158u, 0x5005713cu, 0xedb88320u, 0xf00f9344u, 0xd6d6a3e8u, 0xcb61b38cu,
        0x9b64c2b0u, 0x86d3d2d4u, 0xa00ae278u, 0xbdbdf21cu};
    uint32_t crc = 0xFFFFFFFFu;
    while (size--) {
        crc ^= *p++;
        crc = crc >> 4 ^ table[crc & 15];
        crc = crc >> 4 ^ table[crc & 15];
    }
    return ~crc;
}

/* ---- numbers ------------------------------------------------------------------------------- */

/* The next number of up to five bytes, in its shortest form, below 2**35. */
static int number(const uint8_t **at, const uint8_t *end, uint64_t *value) {
    uint64_t got = 0;
    for (unsigned shift = 0; shift < 35; shift += 7) {
        if (*at == end) return 0;
        uint8_t byte = *(*at)++;
        got |= (uint64_t)(byte & 0x7F) << shift;
        if (byte < 0x80) {
            *value = got;
            return !(shift && !byte);
        }
    }
    return 0;
}

tcz_status tcz_open(tcz_reader *reader, const uint8_t *file, size_t size) {
    enum { FIXED = 9, ENTRY = 9, SECTIONS = 3, HEADER = FIXED + SECTIONS * ENTRY + 4 };
    static const uint8_t start[FIXED] = {'T', 'C', 'Z', 0x1A, 1, 1, 0, 0, SECTIONS};
    if (size < FIXED || memcmp(file, start, FIXED) != 0) return TCZ_NOT_TCZ;
    if (size < HEADER || crc32(file, HEADER - 4) != word32(file + HEADER - 4)) return TCZ_HEADER;
    const uint8_t *part[SECTIONS];
    size_t length[SECTIONS], left = size - HEADER;
    for (unsigned i = 0; i < SECTIONS; i++) {
        const uint8_t *entry = file + FIXED + i * ENTRY;
        if (entry[0] != i + 1) return TCZ_HEADER;
        length[i] = word32(entry + 1);
        if (length[i] > left) return TCZ_HEADER;
        part[i] = file + (size - left);
        left -= length[i];
        if (crc32(part[i], length[i]) != word32(entry + 5)) return TCZ_CHECKSUM;
    }
    if (left || length[2] < LOOK_AHEAD) return TCZ_HEADER;
    reader->record = part[1];
    reader->record_end = part[1] + length[1];
    reader->at = part[2];
    reader->end = part[2] + length[2];
    reader->allowed = (uint64_t)PROMISE * length[2] + PROMISE_FREE;
    uint64_t tensors;
    if (!number(&reader->record, reader->record_end, &tensors)) return TCZ_RECORD;
    /* A record takes two bytes at least, so the count is below 2**32. */
    if (tensors > length[1] / 2) return TCZ_RECORD;
    /* What is behind the last record is refused there; here where there is none. */
    if (!tensors && reader->record != reader->record_end) return TCZ_RECORD;
    reader->tensors_left = (uint32_t)tensors;
    return TCZ_OK;
}

/* ---- records ------------------------------------------------------------------------------- */

tcz_status tcz_next(tcz_reader *reader, tcz_tensor *tensor) {
    /* Bytes of an item; bit 4 where it is a float, bit 5 where it is a byte that may be coded. */
    static const uint8_t types[12] = {0x14, 0x12, 0x18, 0x21, 0x21, 2, 2, 4, 4, 8, 8, 1};
    enum { INT8 = 3 };
    if (!reader->tensors_left || reader->record_end - reader->record < 2) return TCZ_RECORD;
    uint8_t head = *reader->record++, rank = *reader->record++;
    if (head & 4 || head >> 4 >= 12 || rank > TCZ_MAX_RANK) return TCZ_RECORD;
    if (head & 8 && ((head & 3) != TCZ_SHARED || !rank)) return TCZ_RECORD;
    uint8_t type = types[head >> 4];
    tensor->kind = head & 3;
    tensor->dtype = head >> 4;
    tensor->itemsize = type & 15;
    tensor->rank = rank;
    int whole = tensor->kind == TCZ_SHARED && tensor->dtype == INT8;
    if (tensor->kind == TCZ_BYTES ? !(type & 0x20) : tensor->kind && !(type & 0x10) && !whole) {
        return TCZ_RECORD;
    }
    uint64_t count = 1;
    int empty = 0;
    for (unsigned i = 0; i < rank; i++) {
        uint64_t dim;
        if (!number(&reader->record, reader->record_end, &dim) || dim >> 32) return TCZ_RECORD;
        tensor->dims[i] = (uint32_t)dim;
        if (!dim) empty = 1;
        else count *= dim; /* of 31 bits and of 32 */
        if (count >> 31) return TCZ_RECORD;
    }
    if (empty) count = 0;
    tensor->count = (uint32_t)count;
    tensor->levels = tensor->kind == TCZ_SPARSE ? 2 : tensor->kind == TCZ_BYTES ? 256 : 0;
    if (tensor->kind == TCZ_SHARED) {
        uint64_t levels;
        if (!number(&reader->record, reader->record_end, &levels) || levels > 255) {
            return TCZ_RECORD;
        }
        tensor->levels = (uint16_t)(levels + 1);
    }
    uint64_t centroids = tensor->levels;
    for (unsigned i = 0; i < rank; i++) {
        uint64_t parts = 1;
        if (head & 8 && !number(&reader->record, reader->record_end, &parts)) return TCZ_RECORD;
        if (!parts || parts >> 32 || tensor->dims[i] % (uint32_t)parts) return TCZ_RECORD;
        tensor->parts[i] = (uint32_t)parts;
        if (centroids > reader->allowed / parts) return TCZ_RECORD;
        centroids *= parts;
    }
    if (centroids >> 32) return TCZ_RECORD;
    tensor->centroids = (uint32_t)centroids;
    uint64_t bytes = count * (tensor->itemsize + (tensor->kind == TCZ_SPARSE));
    if (tensor->kind == TCZ_SHARED) bytes = count + centroids * tensor->itemsize;
    if (bytes > reader->allowed) return TCZ_RECORD;
    reader->allowed -= bytes;
    reader->tensors_left--;
    if (!reader->tensors_left && reader->record != reader->record_end) return TCZ_RECORD;
    tensor->values = NULL;
    tensor->values_count = 0;
    return TCZ_OK;
}

/* ---- tables -------------------------------------------------------------------------------- */

static int read_code(tcz_reader *reader, tcz_code *code, unsigned symbols, unsigned escape) {
    size_t bytes = (symbols + 1) / 2;
    const uint8_t *packed = reader->at;
    if ((size_t)(reader->end - packed) < bytes) return 0;
    reader->at += bytes;
    if (symbols & 1 && packed[bytes - 1] >> 4) return 0;
    uint16_t first[16] = {0};
    unsigned used = 0, total = 0;
    for (unsigned s = 0; s < symbols; s++) {
        first[packed[s / 2] >> 4 * (s & 1) & 15]++;
    }
    used = symbols - first[0];
    code->symbols = 0; /* until the table stands */
    if (first[TCZ_SINGLE]) {
        if (used != 1) return 0;
    } else {
        if (first[13] || first[14]) return 0;
        for (unsigned length = 1; length <= TCZ_LONGEST; length++) {
            total += (unsigned)first[length] << (TCZ_LONGEST - length);
        }
        if (total != 1u << TCZ_LONGEST) return 0;
    }
    /* Counts become the first index of each length; limits and offsets follow from them. */
    unsigned word = 0, index = 0;
    for (unsigned length = 1; length <= 15; length++) {
        unsigned many = first[length];
        first[length] = (uint16_t)index;
        if (length <= TCZ_LONGEST) {
            word <<= 1;
            code->offset[length] = (int16_t)((int)index - (int)word);
            word += many;
            code->limit[length] = (uint16_t)(word << (TCZ_LONGEST - length));
        }
        index += many;
    }
    for (unsigned s = 0; s < symbols; s++) {
        unsigned length = packed[s / 2] >> 4 * (s & 1) & 15;
        if (length) code->sorted[first[length]++] = (uint8_t)s;
    }
    /* Words come in order, so the table fills from its start; what is left begins longer words. */
    uint16_t *to = code->fast;
    unsigned place = 0;
    for (unsigned length = 1; length <= TCZ_FAST; length++) {
        for (; place < first[length]; place++) {
            unsigned entry = (unsigned)code->sorted[place] << 8 | length;
            if (code->sorted[place] == escape) entry |= SPECIAL;
            if (length == TCZ_FAST) {
                *to++ = (uint16_t)entry;
                continue;
            }
            uint32_t pair = entry << 16 | entry;
            for (unsigned many = 1u << (TCZ_FAST - 1 - length); many; many--, to += 2) {
                memcpy(to, &pair, 4);
            }
        }
    }
    unsigned rest = SPECIAL;
    if (first[TCZ_SINGLE] && used == 1 && code->fast == to) {
        /* The one word without bits; an escape alone would never move, so it is no stream. */
        if (code->sorted[0] == escape) return 0;
        rest = (unsigned)code->sorted[0] << 8;
    }
    while (to < code->fast + (1 << TCZ_FAST)) *to++ = (uint16_t)rest;
    code->symbols = (uint16_t)symbols;
    return 1;
}

/* A word of more than 8 bits, as an entry: compare with where each length ends. */
static uint32_t long_word(const tcz_code *code, uint32_t window) {
    uint32_t bits = window >> (32 - TCZ_LONGEST);
    unsigned length = bits < code->limit[10] ? bits < code->limit[9] ? 9 : 10
                      : bits < code->limit[11] ? 11 : 12;
    uint32_t word = window >> (32 - length);
    return (uint32_t)code->sorted[(uint8_t)(word + (uint32_t)code->offset[length])] << 8 | length;
}

/* An escape, told by its flag, or a gap of more than 8 bits, which may be one too. */
static uint32_t special_gap(const tcz_code *code, uint32_t window, uint32_t entry) {
    if ((entry & 0xFF) != SPECIAL) return entry;
    entry = long_word(code, window);
    return entry >> 8 == code->symbols - 1u ? entry | SPECIAL : entry;
}

/* ---- streams ------------------------------------------------------------------------------- */

/* The lengths of all chunks but the last, in one bit string: the next one. Width and start take at
 * most 20 bits; the bytes behind the string are read too, and every stream has 4 behind it. */
static uint32_t chunk_bits(const uint8_t *index, uint32_t chunk, unsigned width) {
    uint64_t bit = (uint64_t)chunk * width;
    const uint8_t *p = index + (size_t)(bit >> 3);
    uint32_t window = (uint32_t)p[0] << 16 | (uint32_t)p[1] << 8 | (uint32_t)p[2];
    return window >> (24 - (unsigned)(bit & 7) - width) & ((1u << width) - 1);
}

/* Decode `entries` entries at bit `bit` of `data`, none of which reads at `end` or behind; gives the
 * bit behind them, or UINT32_MAX where they leave the bytes or the codes. Places are numbers, not
 * pointers, for one behind `codes_end` may be computed before it is compared. */
static uint32_t decode_chunk(const tcz_tables *tables, const uint8_t *data, const uint8_t *end,
                             uint32_t bit, uint32_t entries, uintptr_t *place,
                             uintptr_t codes_end) {
    const uint16_t *const gaps = tables->gap.fast, *const words = tables->code.fast;
    uintptr_t at = *place;
    while (entries) {
        /* One check for many reads: an entry has at most 24 bits, a read looks at 4 bytes. */
        size_t left = (size_t)(end - data);
        if (left < bit / 8 + 4) return UINT32_MAX;
        size_t safe = (left - bit / 8 - 4) / 3 + 1;
        uint32_t many = safe < entries ? (uint32_t)safe : entries;
        entries -= many;
        do {
            const uint8_t *p = data + (bit >> 3);
            uint32_t window = ((uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 |
                               (uint32_t)p[2] << 8 | (uint32_t)p[3])
                              << (bit & 7);
            uint32_t entry = gaps[window >> (32 - TCZ_FAST)];
            if (entry & SPECIAL) {
                entry = special_gap(&tables->gap, window, entry);
                if (entry & SPECIAL) {
                    bit += entry & 0x7F;
                    at += entry >> 8;
                    if (at > codes_end) return UINT32_MAX;
                    continue;
                }
            }
            window <<= entry & 0xFF;
            bit += entry & 0xFF;
            at += entry >> 8;
            if (at >= codes_end) return UINT32_MAX;
            entry = words[window >> (32 - TCZ_FAST)];
            if (entry & SPECIAL) entry = long_word(&tables->code, window);
            bit += entry & 0xFF;
            *(uint8_t *)at++ = (uint8_t)(entry >> 8);
        } while (--many);
    }
    *place = at;
    return bit;
}

static tcz_status read_stream(tcz_reader *reader, const tcz_tensor *tensor, tcz_tables *tables,
                              uint8_t *codes) {
    uint64_t entries, last_bits, base = 0;
    unsigned width = 0;
    if (!number(&reader->at, reader->end, &entries) || entries > tensor->count) return TCZ_STREAM;
    if (!entries) return TCZ_OK;
    if (reader->at == reader->end) return TCZ_STREAM;
    unsigned same = *reader->at++;
    if (same > 3) return TCZ_STREAM;
    if (same & 1) {
        if (!tables->gap.symbols) return TCZ_STREAM;
    } else {
        if (reader->at == reader->end) return TCZ_STREAM;
        unsigned symbols = *reader->at++;
        if (!read_code(reader, &tables->gap, symbols, symbols - 1)) return TCZ_STREAM;
    }
    if (same & 2) {
        if (tables->code.symbols != tensor->levels) return TCZ_STREAM;
    } else if (!read_code(reader, &tables->code, tensor->levels, 256)) {
        return TCZ_STREAM;
    }
    if (!number(&reader->at, reader->end, &last_bits)) return TCZ_STREAM;
    uint32_t chunks = ((uint32_t)entries - 1) / TCZ_CHUNK + 1;
    const uint8_t *index = reader->at;
    if (chunks > 1) {
        if (!number(&reader->at, reader->end, &base) || reader->at == reader->end) {
            return TCZ_STREAM;
        }
        width = *reader->at++;
        if (width > 13) return TCZ_STREAM;
        index = reader->at;
        uint64_t bytes = ((uint64_t)(chunks - 1) * width + 7) / 8;
        if ((uint64_t)(reader->end - reader->at) < bytes + LOOK_AHEAD) return TCZ_STREAM;
        reader->at += bytes;
    }
    const uint32_t most = TCZ_CHUNK * 2 * TCZ_LONGEST;
    uintptr_t place = (uintptr_t)codes;
    uint32_t bit = 0;
    for (uint32_t chunk = 0; chunk < chunks; chunk++) {
        uint64_t bits = chunk + 1 < chunks ? base + chunk_bits(index, chunk, width) : last_bits;
        if (bits > most) return TCZ_STREAM;
        /* Bits count from the byte that holds the first one, so that 32 bits are enough. */
        uint32_t stop = bit + (uint32_t)bits;
        /* The section's last 4 bytes belong to no stream. */
        if ((uint64_t)(reader->end - reader->at) < (uint64_t)LOOK_AHEAD + (stop + 7) / 8) {
            return TCZ_STREAM;
        }
        uint32_t many = chunk + 1 < chunks ? TCZ_CHUNK : (uint32_t)entries - chunk * TCZ_CHUNK;
        uint32_t behind = decode_chunk(tables, reader->at, reader->end, bit, many, &place,
                                       (uintptr_t)codes + tensor->count);
        if (behind != stop) return TCZ_STREAM;
        reader->at += stop / 8;
        bit = stop % 8;
    }
    if (bit) {
        if (*reader->at++ & 0xFF >> bit) return TCZ_STREAM;
    }
    return TCZ_OK;
}

static tcz_status take_values(tcz_reader *reader, tcz_tensor *tensor, uint64_t count) {
    /* count is at most the tensor's, so the product fits. */
    uint64_t bytes = count * tensor->itemsize;
    if ((uint64_t)(reader->end - reader->at) < bytes) return TCZ_STREAM;
    tensor->values = reader->at;
    tensor->values_count = (uint32_t)count;
    reader->at += bytes;
    return TCZ_OK;
}

tcz_status tcz_read(tcz_reader *reader, tcz_tensor *tensor, tcz_tables *tables, uint8_t *codes,
                    size_t codes_size) {
    tcz_status status = TCZ_OK;
    if (tensor->kind == TCZ_PLAIN) {
        status = take_values(reader, tensor, tensor->count);
        if (status == TCZ_OK && tensor->dtype == 11) {
            for (uint32_t i = 0; i < tensor->count; i++) {
                if (tensor->values[i] > 1) return TCZ_STREAM;
            }
        }
        return status;
    }
    if (codes_size < tensor->count) return TCZ_SPACE;
    if (tensor->kind == TCZ_SHARED) status = take_values(reader, tensor, tensor->centroids);
    if (status == TCZ_OK) status = read_stream(reader, tensor, tables, codes);
    if (status == TCZ_OK && tensor->kind == TCZ_SPARSE) {
        uint64_t kept, places = 0;
        for (uint32_t i = 0; i < tensor->count; i++) places += codes[i];
        if (!number(&reader->at, reader->end, &kept) || kept != places) return TCZ_STREAM;
        status = take_values(reader, tensor, kept);
    }
    return status;
}

tcz_status tcz_close(const tcz_reader *reader) {
    if (reader->tensors_left || reader->end - reader->at < (ptrdiff_t)LOOK_AHEAD) {
        return TCZ_STREAM;
    }
    for (const uint8_t *p = reader->at; p < reader->end; p++) {
        if (*p) return TCZ_STREAM;
    }
    return TCZ_OK;
}
