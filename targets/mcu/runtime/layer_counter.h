/* Counts instructions by layer; shared by the hook of unicorn and the plugin of QEMU.
 *
 * owners[halfword of code] says whose code it is: 0 inherits (libm and memcpy count for whoever
 * called them), 1 is outside (the harness: nothing counts), 2 and up are counted. */
#ifndef TVM_COMPRESS_LAYER_COUNTER_H
#define TVM_COMPRESS_LAYER_COUNTER_H

#include <stdint.h>

#define LAYER_COUNTER_INHERIT 0u
#define LAYER_COUNTER_OUTSIDE 1u

struct layer_counter {
    uint64_t base;          /* address of the first halfword */
    uint64_t halfwords;     /* entries of owners */
    const uint16_t *owners; /* [halfwords] */
    uint64_t *counts;       /* [owners]: instructions by owner */
    uint32_t current;       /* the owner that runs now; begin with LAYER_COUNTER_OUTSIDE */
    uint32_t unused;
};

/* A block of this many instructions at this address is about to run. */
static inline void layer_counter_block(struct layer_counter *counter, uint64_t address,
                                       uint64_t instructions)
{
    const uint64_t index = (address - counter->base) >> 1;
    if (index < counter->halfwords && counter->owners[index] != LAYER_COUNTER_INHERIT) {
        counter->current = counter->owners[index];
    }
    if (counter->current != LAYER_COUNTER_OUTSIDE) {
        counter->counts[counter->current] += instructions;
    }
}

#endif
