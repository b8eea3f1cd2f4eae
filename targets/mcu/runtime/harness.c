/* Runs a model on a batch: input.bin -> output.bin, through semihosting.
 *
 * input.bin:  u32 number of samples; then for each sample all inputs in order.
 * output.bin: for each sample all outputs in order; then struct harness_trailer.
 * All numbers little-endian, tensors dense and in C order. */
#include <stddef.h>
#include <stdint.h>

#include "exit_codes.h"
#include "semihost.h"

struct harness_buffer {
    void *data;
    size_t bytes;
};

#include "harness_model.h" /* generated: harness_inputs, harness_outputs, harness_model_run */

struct harness_trailer {
    uint32_t magic; /* "TCMP" */
    uint32_t abi_version;
    uint32_t stack_bytes; /* the deepest stack of the model's run function, over all samples */
    int32_t model_status; /* what the run function returned last */
};

#define HARNESS_MAGIC 0x504D4354u
#define HARNESS_PAINT 0xC5C5C5C5u

/* The stack is painted from here upward: twice what the board keeps for it, where RAM allows. */
extern uint32_t link_paint_start[];

static struct harness_trailer harness_trailer = {HARNESS_MAGIC, HARNESS_MODEL_ABI_VERSION, 0, 0};
static volatile uint32_t *harness_stack; /* the stack pointer that the model is called with */

/* The model is called from here, and from here alone, so that its stack begins at this frame. */
static int __attribute__((noinline)) harness_measured_run(void)
{
    int status;
    /* Painted before the first sample alone: the mark is over all samples. */
    if (!harness_stack) {
        volatile uint32_t *word;
#if defined(__riscv)
        __asm__ volatile("mv %0, sp" : "=r"(harness_stack));
#else
        __asm__ volatile("mov %0, sp" : "=r"(harness_stack));
#endif
        for (word = link_paint_start; word < harness_stack; word++) {
            *word = HARNESS_PAINT;
        }
    }
    status = harness_model_run();
    /* No tail call: it would give the model a higher stack than the one that was noted. */
    __asm__ volatile("" : "+r"(status));
    return status;
}

static uint32_t harness_stack_bytes(void)
{
    volatile uint32_t *word = link_paint_start;
    while (word < harness_stack && *word == HARNESS_PAINT) {
        word++;
    }
    return (uint32_t)((uintptr_t)harness_stack - (uintptr_t)word);
}

static void harness_transfer(int handle, const struct harness_buffer *buffers, size_t count,
                             int writing)
{
    size_t index;
    for (index = 0; index < count; index++) {
        const struct harness_buffer *buffer = &buffers[index];
        if (writing && semihost_write(handle, buffer->data, buffer->bytes)) {
            semihost_exit(HARNESS_NO_OUTPUT);
        }
        if (!writing && semihost_read(handle, buffer->data, buffer->bytes)) {
            semihost_exit(HARNESS_NO_INPUT);
        }
    }
}

int main(void)
{
    const struct harness_buffer trailer = {&harness_trailer, sizeof harness_trailer};
    uint32_t samples = 0;
    const int input = semihost_open("input.bin", SEMIHOST_READ_BINARY);
    const int output = semihost_open("output.bin", SEMIHOST_WRITE_BINARY);

    if (input < 0 || semihost_read(input, &samples, sizeof samples)) {
        return HARNESS_NO_INPUT;
    }
    if (output < 0) {
        return HARNESS_NO_OUTPUT;
    }
    while (samples-- && !harness_trailer.model_status) {
        harness_transfer(input, harness_inputs, HARNESS_INPUT_COUNT, 0);
        harness_trailer.model_status = harness_measured_run();
        harness_transfer(output, harness_outputs, HARNESS_OUTPUT_COUNT, 1);
    }
    harness_trailer.stack_bytes = harness_stack_bytes();
    harness_transfer(output, &trailer, 1, 1);
    semihost_close(input);
    semihost_close(output);
    return harness_trailer.model_status ? HARNESS_MODEL_FAILED : HARNESS_OK;
}
