/* Start of a 32-bit RISC-V: stack, FPU, .data, .bss, then main.
 * Source: The RISC-V Instruction Set Manual, Volume II, 3.1.6.6 (mstatus.FS) and 3.1.7 (mtvec). */
#include <stdint.h>

#include "exit_codes.h"
#include "semihost.h"

extern uint32_t link_data_start[], link_data_end[], link_bss_start[], link_bss_end[];
extern const uint32_t link_data_image[];

int main(void);
void startup_reset(void);
void startup_memory(void);
void startup_fault(void);

/* A trap is an error: nothing here asks for an interrupt. mtvec wants multiples of 4. */
void __attribute__((aligned(4))) startup_fault(void)
{
    semihost_exit(HARNESS_FAULT);
}

/* The processor begins at the first byte of flash, which this is, and without a stack. */
void __attribute__((naked)) startup_reset(void)
{
    __asm__ volatile("la sp, link_stack_top\n\t"
                     "la t0, startup_fault\n\t"
                     "csrw mtvec, t0\n\t"
                     "j startup_memory");
}

void startup_memory(void)
{
    const uint32_t *from = link_data_image;
    uint32_t *to;
#if defined(__riscv_flen)
    /* mstatus.FS is 0, off, after reset; 1 is "initial". Rounding is to nearest from the start. */
    __asm__ volatile("csrs mstatus, %0" : : "r"(1u << 13));
    __asm__ volatile("csrw fcsr, zero");
#endif
    for (to = link_data_start; to < link_data_end;) {
        *to++ = *from++;
    }
    for (to = link_bss_start; to < link_bss_end;) {
        *to++ = 0;
    }
    semihost_exit(main());
}
