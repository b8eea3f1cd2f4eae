/* Start of a Cortex-M: vector table, FPU, .data, .bss, then main.
 * Source: Armv7-M Architecture Reference Manual, B1.5 (reset, vector table) and B3.2.20 (CPACR). */
#include <stdint.h>

#include "exit_codes.h"
#include "semihost.h"

extern uint32_t link_data_start[], link_data_end[], link_bss_start[], link_bss_end[];
extern const uint32_t link_data_image[];
extern uint32_t link_stack_top[];

int main(void);
void startup_reset(void);

static void startup_fault(void)
{
    semihost_exit(HARNESS_FAULT);
}

void startup_reset(void)
{
    const uint32_t *from = link_data_image;
    uint32_t *to;
#if defined(__ARM_FP)
    /* Full access to coprocessors 10 and 11, the FPU, which is off after reset. */
    volatile uint32_t *const cpacr = (volatile uint32_t *)(uintptr_t)0xE000ED88u;
    *cpacr |= 0xFu << 20;
    __asm__ volatile("dsb\n\tisb" ::: "memory");
#endif
    for (to = link_data_start; to < link_data_end;) {
        *to++ = *from++;
    }
    for (to = link_bss_start; to < link_bss_end;) {
        *to++ = 0;
    }
    semihost_exit(main());
}

struct startup_vectors {
    uint32_t *stack;
    void (*handlers[15])(void);
};

extern const struct startup_vectors startup_vector_table;
const struct startup_vectors startup_vector_table __attribute__((section(".vectors"), used)) = {
    link_stack_top,
    {startup_reset, startup_fault, startup_fault, startup_fault, startup_fault, startup_fault,
     startup_fault, startup_fault, startup_fault, startup_fault, startup_fault, startup_fault,
     startup_fault, startup_fault, startup_fault},
};
