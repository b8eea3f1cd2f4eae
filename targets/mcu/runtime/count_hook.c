/* The hooks of unicorn in C: a callback in Python for every block is far too slow.
 * Compiled for the host and given to uc_hook_add through ctypes. */
#include "layer_counter.h"

#if defined(_WIN32)
#define COUNT_HOOK_EXPORT __declspec(dllexport)
#else
#define COUNT_HOOK_EXPORT
#endif

COUNT_HOOK_EXPORT void count_hook_block(void *engine, uint64_t address, uint32_t bytes,
                                        struct layer_counter *counter);
COUNT_HOOK_EXPORT void count_hook_pass(void *engine, uint64_t address, uint32_t bytes,
                                       struct layer_counter *counter);

void count_hook_block(void *engine, uint64_t address, uint32_t bytes, struct layer_counter *counter)
{
    (void)engine;
    layer_counter_block(counter, address, bytes);
}

/* Unicorn calls a hook of one instruction behind the test of its condition: a skipped one is not
 * seen here. */
void count_hook_pass(void *engine, uint64_t address, uint32_t bytes, struct layer_counter *counter)
{
    (void)engine;
    (void)bytes;
    layer_counter_pass(counter, address);
}
