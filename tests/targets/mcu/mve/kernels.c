/* Calls kernels one by one, each in surroundings that show what it must not do.
 *
 * Inputs end where the memory ends, or begin where it begins: a read behind or in front faults.
 * Output and scratch lie between guards, and scratch holds no zeros. */
#include "kernels.h"

#include <string.h>

enum { GUARD = 64, FILL = 0xA5 };

struct kernels_case {
    void (*function)(void);
    const void *stream; /* or null */
    int inputs, input_bytes, output_bytes, scratch_bytes;
    int at_end;
    int odd;  /* the output's address is odd */
    int over; /* the output is written over the first input */
};

#include "kernels_cases.h"

int harness_checked_call(void (*function)(void), void *const *arguments);

/* 2 MiB of SRAM that nothing else uses; no memory is in front of it or behind it. */
static uint8_t *const kernels_first = (uint8_t *)0x01000000;
static uint8_t *const kernels_end = (uint8_t *)0x01200000;

static int kernels_changed(const uint8_t *bytes, int count)
{
    int changed = 0;
    while (count--) {
        changed += *bytes++ != FILL;
    }
    return changed;
}

int kernels_run(const int8_t *in, int8_t *out, int32_t *problems, void *arena)
{
    unsigned n;
    for (n = 0; n < sizeof kernels_cases / sizeof *kernels_cases; n++) {
        const struct kernels_case *one = &kernels_cases[n];
        void *arguments[4] = {0, 0, 0, 0};
        uint8_t *y = (uint8_t *)arena + GUARD + one->odd;
        uint8_t *scratch = (uint8_t *)arena + 2 * GUARD + (one->output_bytes + 16) / 16 * 16;
        const int total = (int)(scratch - (uint8_t *)arena) + one->scratch_bytes + GUARD;
        int i, count = 0;
        memset(arena, FILL, (size_t)total);
        for (i = 0; i < one->inputs; i++) {
            /* The inputs behind the first one lie in the middle of the memory. */
            uint8_t *x = one->at_end ? kernels_end - one->input_bytes : kernels_first;
            x += one->at_end ? -0x40001 * i : 0x40001 * i;
            memcpy(x, in, (size_t)one->input_bytes);
            in += one->input_bytes;
            arguments[count++] = x;
        }
        if (one->stream) {
            arguments[count++] = (void *)(uintptr_t)one->stream;
        }
        if (one->over) {
            y = arguments[0];
        }
        arguments[count++] = y;
        if (count < 4) {
            arguments[count] = scratch;
        }
        problems[n] = 1000000 * harness_checked_call(one->function, arguments);
        if (!one->over) {
            problems[n] += kernels_changed(arena, GUARD + one->odd);
            problems[n] += kernels_changed(y + one->output_bytes,
                                           (int)(scratch - y) - one->output_bytes);
        }
        problems[n] += kernels_changed(scratch + one->scratch_bytes, GUARD);
        memcpy(out, y, (size_t)one->output_bytes);
        out += one->output_bytes;
    }
    return 0;
}
