/* Runs a model over the console's UART, a line of text at a time:
 *
 *   host    > and two hexadecimal digits a byte: all inputs, in order
 *   device  < and two hexadecimal digits a byte: all outputs, in order
 *   host    .
 *   device  . and the deepest stack of the main thread in bytes; then the emulator ends
 *   device  ! and what went wrong, in words
 *   device  # and a remark
 *
 * Other lines are for people, or Zephyr's own. Numbers are little-endian as in memory, tensors
 * dense and in C order. */
#include <stddef.h>
#include <stdint.h>

#include <zephyr/device.h>
#include <zephyr/drivers/uart.h>
#include <zephyr/fatal.h>
#include <zephyr/kernel.h>
#include <zephyr/sys/printk.h>

#if __has_include(<zephyr/version.h>)
#include <zephyr/version.h>
#else
#include <version.h>
#endif

struct harness_buffer {
    void *data;
    size_t bytes;
};

#include "harness_model.h" /* generated: harness_inputs, harness_outputs, harness_model_run */

#define HARNESS_FAULT 3 /* the exit code of a fault, as of every firmware of tvm-compress */

static const struct device *const harness_uart = DEVICE_DT_GET(DT_CHOSEN(zephyr_console));

/* Ends the emulator with this exit code; does nothing on hardware. */
static void harness_exit(int code)
{
#ifdef CONFIG_TVM_COMPRESS_SEMIHOST_EXIT
    /* SYS_EXIT_EXTENDED with ADP_Stopped_ApplicationExit, of "Semihosting for AArch32" (Arm). */
    const uint32_t block[2] = {0x20026u, (uint32_t)code};
    register int r0 __asm__("r0") = 0x20;
    register const void *r1 __asm__("r1") = block;
    __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
#else
    (void)code;
#endif
}

/* Takes the place of Zephyr's weak one. The frame's type has had another name since 3.7. */
#if KERNEL_VERSION_NUMBER >= 0x30700
void k_sys_fatal_error_handler(unsigned int reason, const struct arch_esf *frame)
#else
void k_sys_fatal_error_handler(unsigned int reason, const z_arch_esf_t *frame)
#endif
{
    (void)frame;
    printk("\n! the processor faulted, for Zephyr's reason %u\n", reason);
    harness_exit(HARNESS_FAULT);
    k_fatal_halt(reason);
}

static int harness_get(void)
{
    unsigned char character;
    while (uart_poll_in(harness_uart, &character)) {
        k_yield();
    }
    return character == '\r' ? '\n' : character;
}

static int harness_digit(int character)
{
    if (character >= '0' && character <= '9') {
        return character - '0';
    }
    if (character >= 'a' && character <= 'f') {
        return character - 'a' + 10;
    }
    return -1;
}

/* Reads the inputs up to the end of the line, which is always consumed. Returns 0, or 1 where the
 * line is not as long as the inputs are or holds something else than digits. */
static int harness_read(void)
{
    int character = 0;
    size_t index, at;
    for (index = 0; index < HARNESS_INPUT_COUNT; index++) {
        uint8_t *const data = harness_inputs[index].data;
        for (at = 0; at < 2 * harness_inputs[index].bytes; at++) {
            int digit;
            character = harness_get();
            digit = harness_digit(character);
            if (digit < 0) {
                goto bad;
            }
            data[at / 2] = (uint8_t)(at % 2 ? data[at / 2] | digit : digit << 4);
        }
    }
    character = harness_get();
    if (character == '\n') {
        return 0;
    }
bad:
    while (character != '\n') {
        character = harness_get();
    }
    return 1;
}

static void harness_write(void)
{
    static const char digits[] = "0123456789abcdef";
    size_t index, at;
    uart_poll_out(harness_uart, '<');
    for (index = 0; index < HARNESS_OUTPUT_COUNT; index++) {
        const uint8_t *const data = harness_outputs[index].data;
        for (at = 0; at < harness_outputs[index].bytes; at++) {
            uart_poll_out(harness_uart, (unsigned char)digits[data[at] >> 4]);
            uart_poll_out(harness_uart, (unsigned char)digits[data[at] & 15]);
        }
    }
    uart_poll_out(harness_uart, '\n');
}

static void harness_run(void)
{
    uint32_t start;
    int status;
    if (harness_read()) {
        printk("! the line does not hold two digits for each byte of the inputs\n");
        return;
    }
    start = k_cycle_get_32();
    status = harness_model_run();
    if (IS_ENABLED(CONFIG_TVM_COMPRESS_VERBOSE)) {
        printk("# %u cycles of the system's clock\n", k_cycle_get_32() - start);
    }
    if (status) {
        printk("! the model's run function returned %d\n", status);
        return;
    }
    harness_write();
}

int main(void)
{
    if (!device_is_ready(harness_uart)) {
        printk("! the console's UART is not ready\n");
        return 1;
    }
    if (IS_ENABLED(CONFIG_TVM_COMPRESS_VERBOSE)) {
        printk("# " HARNESS_MODEL_NAME " on " CONFIG_BOARD "\n");
    }
    for (;;) {
        const int command = harness_get();
        if (command == '>') {
            harness_run();
        } else if (command == '.') {
            size_t unused = 0;
            k_thread_stack_space_get(k_current_get(), &unused);
            printk(". %u\n", (unsigned int)(k_current_get()->stack_info.size - unused));
            harness_exit(0);
        }
    }
}
