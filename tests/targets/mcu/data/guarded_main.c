/* Runs a generated model between guards. MODEL_H, RUN, ARENA_BYTES, INPUT_BYTES and OUTPUT_BYTES
   are macros of the compiler's command line. Every tensor and the arena is a block of the heap of
   just its size, so that the address sanitizer sees the first byte beyond. The model runs twice,
   in an arena of 0xFF (NaN) and in one of zeros, with equal results. Input bytes come from the
   file "inputs"; the output bytes go to the file "outputs". */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include MODEL_H

#define GUARD 64

static void *take(size_t size)
{
    void *block = NULL;
    if (posix_memalign(&block, 16, size ? size : 1)) {
        abort();
    }
    return block;
}

static unsigned char *guarded(size_t size)
{
    unsigned char *block = take(size + 2 * GUARD);
    memset(block, 0xA5, size + 2 * GUARD);
    return block;
}

static int touched(const unsigned char *block, size_t size)
{
    for (size_t i = 0; i < GUARD; i++) {
        if (block[i] != 0xA5 || block[GUARD + size + i] != 0xA5) {
            return 1;
        }
    }
    return 0;
}

int main(void)
{
    size_t arena_bytes = ARENA_BYTES;
    void *input = take(INPUT_BYTES), *exact = take(OUTPUT_BYTES), *arena = take(ARENA_BYTES);
    unsigned char *output = guarded(OUTPUT_BYTES), *memory = guarded(ARENA_BYTES);
    FILE *in = fopen("inputs", "rb"), *out = fopen("outputs", "wb");
    if (!in || !out || fread(input, 1, INPUT_BYTES, in) != INPUT_BYTES) {
        return 2;
    }
    memset(arena, 0xFF, arena_bytes);
    if (RUN(input, exact, arena)) {
        return 3;
    }
    memset(memory + GUARD, 0, arena_bytes);
    if (RUN(input, (void *)(output + GUARD), memory + GUARD)) {
        return 4;
    }
    if (memcmp(exact, output + GUARD, OUTPUT_BYTES)) {
        return 5;
    }
    if (touched(output, OUTPUT_BYTES) || touched(memory, arena_bytes)) {
        return 6;
    }
    if (RUN(NULL, exact, arena) != 1 || RUN(input, NULL, arena) != 1) {
        return 7;
    }
    if (ARENA_BYTES && (RUN(input, exact, NULL) != 1 || RUN(input, exact, memory + GUARD + 4) != 1)) {
        return 8;
    }
    fwrite(exact, 1, OUTPUT_BYTES, out);
    free(input);
    free(exact);
    free(arena);
    free(output);
    free(memory);
    return fclose(in) || fclose(out);
}
