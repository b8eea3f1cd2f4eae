/* The block hook of unicorn in C: a callback in Python for every block is far too slow.
 * Compiled for the host and given to uc_hook_add through ctypes. */
#include "layer_counter.h"

struct count_hook {
    struct layer_counter counter;
    const uint8_t *code; /* bytes of the code, two a halfword */
    uint32_t *sizes;     /* [halfwords]: bytes of the block that was decoded last here */
    uint32_t *lengths;   /* [halfwords]: instructions of that block */
    uint64_t unknown_blocks; /* blocks outside the code, which could not be counted */
};

/* Thumb: an instruction has 32 bits where the top five bits of its first halfword are
 * 0b11101, 0b11110 or 0b11111 (Armv7-M Architecture Reference Manual, A5.1). */
static uint32_t count_hook_decode(const uint8_t *code, uint32_t bytes)
{
    uint32_t at = 0, instructions = 0;
    while (at < bytes) {
        at += (code[at + 1] >> 3) >= 0x1d ? 4 : 2;
        instructions++;
    }
    return instructions;
}

#if defined(_WIN32)
__declspec(dllexport)
#endif
void count_hook_block(void *engine, uint64_t address, uint32_t bytes, struct count_hook *hook);

void count_hook_block(void *engine, uint64_t address, uint32_t bytes, struct count_hook *hook)
{
    const uint64_t index = (address - hook->counter.base) >> 1;
    (void)engine;
    if (index >= hook->counter.halfwords || index + (bytes >> 1) > hook->counter.halfwords) {
        hook->unknown_blocks++;
        return;
    }
    if (hook->sizes[index] != bytes) {
        hook->sizes[index] = bytes;
        hook->lengths[index] = count_hook_decode(hook->code + 2 * index, bytes);
    }
    layer_counter_block(&hook->counter, address, hook->lengths[index]);
}
