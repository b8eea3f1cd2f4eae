#include "trouble.h"

#include <stdint.h>

#include "scratch.h" /* written by the test: SCRATCH_BYTES */

int trouble_layer_000_act(const float *request, float *output);
int trouble_layer_001_scratch(void);

int trouble_layer_000_act(const float *request, float *output)
{
    const int what = (int)request[0];
    output[0] = request[0];
    if (what == 1) {
        *(volatile uint32_t *)(uintptr_t)0xB0000000u = 1; /* no board has memory there */
    }
    if (what == 2) {
        for (;;) {
            __asm__ volatile("nop");
        }
    }
    if (what == 3) {
        return 7;
    }
    if (what == 4) {
        __asm__ volatile("udf #0");
    }
    if (what == 5) { /* SYS_TIME, which the harness never needs */
        __asm__ volatile("movs r0, #0x11\n\tbkpt 0xAB" ::: "r0", "memory");
    }
    return 0;
}

int trouble_layer_001_scratch(void)
{
    unsigned char scratch[SCRATCH_BYTES];
    scratch[0] = 1;
    /* Takes the address, so that the array must exist. */
    __asm__ volatile("" : : "r"(scratch) : "memory");
    return 0;
}
