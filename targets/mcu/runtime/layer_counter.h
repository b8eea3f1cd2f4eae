/* Counts what runs, by layer; shared by the hook of unicorn and the plugin of QEMU.
 *
 * owners[halfword of code] says whose code it is: 0 inherits (libm and memcpy count for whoever
 * called them), 1 is outside (the harness: nothing counts), 2 and up are counted.
 *
 * What is counted are blocks, which run from their first instruction to their last:
 *   edges   where blocks begin, less where they end: the running sum over a row is how often each
 *           instruction ran, however an emulator cuts code into blocks;
 *   jumps   where blocks end that other code than the next followed: branches that were taken;
 *   passed  watched instructions that did their memory access: an IT block did not skip them. */
#ifndef TVM_COMPRESS_LAYER_COUNTER_H
#define TVM_COMPRESS_LAYER_COUNTER_H

#include <stdint.h>

#define LAYER_COUNTER_INHERIT 0u
#define LAYER_COUNTER_OUTSIDE 1u

#define LAYER_COUNTER_EDGES 0u
#define LAYER_COUNTER_JUMPS 1u
#define LAYER_COUNTER_PASSED 2u
#define LAYER_COUNTER_PLANES 3u

struct layer_counter {
    uint64_t base;          /* address of the first halfword */
    uint64_t halfwords;     /* entries of owners */
    uint64_t owner_count;   /* one more than the largest owner */
    const uint16_t *owners; /* [halfwords] */
    uint64_t *counts;       /* [planes][owner_count][halfwords + 1]; edges wrap below 0 */
    uint64_t end;           /* the address behind the block that ran last */
    uint64_t unknown;       /* blocks outside the code, which could not be counted */
    uint32_t current;       /* the owner that runs now; begin with LAYER_COUNTER_OUTSIDE */
    uint32_t unused;
};

/* The count of this plane at this address, for the owner that runs now. */
static inline uint64_t *layer_counter_at(const struct layer_counter *counter, uint32_t plane,
                                         uint64_t address)
{
    const uint64_t row = plane * counter->owner_count + counter->current;
    return &counter->counts[row * (counter->halfwords + 1) + ((address - counter->base) >> 1)];
}

/* A block of so many bytes at this address is about to run. */
static inline void layer_counter_block(struct layer_counter *counter, uint64_t address,
                                       uint64_t bytes)
{
    const uint64_t index = (address - counter->base) >> 1;
    if (index >= counter->halfwords || index + (bytes >> 1) > counter->halfwords) {
        /* A machine's own ROM may run first: nothing is lost before the code is reached. */
        counter->unknown += counter->end != 0;
        counter->current = LAYER_COUNTER_OUTSIDE;
        return;
    }
    if (counter->current != LAYER_COUNTER_OUTSIDE && counter->end != address) {
        ++*layer_counter_at(counter, LAYER_COUNTER_JUMPS, counter->end);
    }
    if (counter->owners[index] != LAYER_COUNTER_INHERIT) {
        counter->current = counter->owners[index];
    }
    counter->end = address + bytes;
    if (counter->current != LAYER_COUNTER_OUTSIDE) {
        ++*layer_counter_at(counter, LAYER_COUNTER_EDGES, address);
        --*layer_counter_at(counter, LAYER_COUNTER_EDGES, counter->end);
    }
}

/* A watched instruction at this address does its memory access. */
static inline void layer_counter_pass(const struct layer_counter *counter, uint64_t address)
{
    if (counter->current != LAYER_COUNTER_OUTSIDE) {
        ++*layer_counter_at(counter, LAYER_COUNTER_PASSED, address);
    }
}

#endif
