/* Stands in for Zephyr on this machine, as far as the application calls it: the serial line is
 * standard input and output, and the end of the input ends the process. */
#ifndef STUB_KERNEL_H
#define STUB_KERNEL_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define CONFIG_BOARD "stub"
#define IS_ENABLED(setting) STUB_IS_ENABLED(setting)
#define STUB_IS_ENABLED(setting) STUB_VALUE_##setting
#define STUB_VALUE_1 1
#ifndef STUB_VALUE_CONFIG_TVM_COMPRESS_VERBOSE
#define STUB_VALUE_CONFIG_TVM_COMPRESS_VERBOSE 0
#endif

struct k_thread {
    struct {
        size_t size;
    } stack_info;
};

static inline struct k_thread *k_current_get(void)
{
    static struct k_thread thread = {{4096}};
    return &thread;
}

static inline int k_thread_stack_space_get(const struct k_thread *thread, size_t *unused)
{
    *unused = thread->stack_info.size - 1234;
    return 0;
}

static inline uint32_t k_cycle_get_32(void)
{
    static uint32_t now;
    return now += 7;
}

static inline int64_t k_uptime_ticks(void)
{
    return k_cycle_get_32();
}

static inline uint64_t k_ticks_to_us_floor64(int64_t ticks)
{
    return 100 * (uint64_t)ticks;
}

static inline void k_yield(void)
{
}

#endif
