/* Answers the serial commands of MLPerf Tiny's runner. A command ends with %, and its words are
 * parted by spaces:
 *
 *   name, profile, timestamp, results, help
 *   db load N      expect N bytes, which are those of the inputs in order
 *   db HH[HH]*     some of them, two hexadecimal digits a byte
 *   db print       show them
 *   infer N [W]    take the inputs over and run N times, after W times that are not measured
 *   exit           ends the emulator; the benchmark has no such command
 *
 * Every command is answered with m-ready at last. What is the submitter's in the benchmark begins
 * with th_; change it where your network wants it otherwise. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <zephyr/device.h>
#include <zephyr/drivers/uart.h>
#include <zephyr/kernel.h>
#include <zephyr/sys/printk.h>

struct harness_buffer {
    void *data;
    size_t bytes;
};

#include "harness_model.h" /* generated: harness_inputs, harness_outputs, harness_model_run */

#ifndef MLPERF_VENDOR
#define MLPERF_VENDOR unspecified
#endif
/* What every byte of the inputs is combined with: 0x80 makes int8 of the uint8 of images. */
#ifndef MLPERF_INPUT_XOR
#define MLPERF_INPUT_XOR 0
#endif
#define MLPERF_TEXT(word) MLPERF_WORD(word)
#define MLPERF_WORD(word) #word
#define MLPERF_COMMAND_BYTES 256
#define MLPERF_INPUT_BYTES HARNESS_INPUT_BYTES

static const struct device *const harness_uart = DEVICE_DT_GET(DT_CHOSEN(zephyr_console));
static uint8_t harness_loaded[MLPERF_INPUT_BYTES];
static size_t harness_expected, harness_at;
static int harness_status;

/* Ends the emulator; does nothing on hardware. */
static void harness_exit(void)
{
#ifdef CONFIG_TVM_COMPRESS_SEMIHOST_EXIT
    /* SYS_EXIT_EXTENDED with ADP_Stopped_ApplicationExit, of "Semihosting for AArch32" (Arm). */
    static const uint32_t block[2] = {0x20026u, 0};
    register int r0 __asm__("r0") = 0x20;
    register const void *r1 __asm__("r1") = block;
    __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
#endif
}

/* Microseconds since the start, as the runner reads them. */
static void th_timestamp(void)
{
    printk("m-lap-us-%llu\r\n", (unsigned long long)k_ticks_to_us_floor64(k_uptime_ticks()));
}

/* Takes what was loaded over into the inputs. */
static void th_load_tensor(void)
{
    size_t index, at, from = 0;
    for (index = 0; index < HARNESS_INPUT_COUNT; index++) {
        uint8_t *const data = harness_inputs[index].data;
        for (at = 0; at < harness_inputs[index].bytes; at++) {
            data[at] = harness_loaded[from++] ^ (MLPERF_INPUT_XOR);
        }
    }
}

static void th_infer(void)
{
    harness_status |= harness_model_run();
}

/* Shows the first output; 8-bit numbers are taken for the 256 steps from 0 to 1 of a softmax. */
static void th_results(void)
{
    size_t index;
    printk("m-results-[");
    for (index = 0; index < sizeof harness_output_0 / sizeof harness_output_0[0]; index++) {
#if defined(HARNESS_OUTPUT_0_int8)
        const int32_t thousandths = ((harness_output_0[index] + 128) * 1000 + 128) / 256;
#elif defined(HARNESS_OUTPUT_0_uint8)
        const int32_t thousandths = (harness_output_0[index] * 1000 + 128) / 256;
#elif defined(HARNESS_OUTPUT_0_float32)
        const float value = harness_output_0[index] * 1000.0f;
        const int32_t thousandths = (int32_t)(value < 0.0f ? value - 0.5f : value + 0.5f);
#else
#error "The runner reads results of int8, uint8 and float32; write th_results for another type."
#endif
        const uint32_t size = (uint32_t)(thousandths < 0 ? -thousandths : thousandths);
        printk("%s%s%u.%03u", index ? "," : "", thousandths < 0 ? "-" : "",
               (unsigned int)(size / 1000), (unsigned int)(size % 1000));
    }
    printk("]\r\n");
}

static int harness_digit(int character)
{
    if (character >= '0' && character <= '9') {
        return character - '0';
    }
    if (character >= 'a' && character <= 'f') {
        return character - 'a' + 10;
    }
    if (character >= 'A' && character <= 'F') {
        return character - 'A' + 10;
    }
    return -1;
}

/* Cuts the next word off; NULL where there is none. */
static char *harness_word(char **rest)
{
    char *word = *rest, *end;
    while (*word == ' ' || *word == '\r' || *word == '\n') {
        word++;
    }
    end = word;
    while (*end && *end != ' ' && *end != '\r' && *end != '\n') {
        end++;
    }
    *rest = *end ? end + 1 : end;
    *end = 0;
    return end == word ? NULL : word;
}

/* Returns the number, or -1 where the word is none. */
static long harness_number(const char *word)
{
    char *end;
    const long number = strtol(word, &end, 10);
    return end == word || *end || number > 0x7fffff ? -1 : number;
}

static void harness_load(const char *digits)
{
    const size_t count = strlen(digits) / 2;
    size_t at;
    if (strlen(digits) % 2 || count > harness_expected - harness_at) {
        printk("e-[Expected %u bytes more of two digits each]\r\n",
               (unsigned int)(harness_expected - harness_at));
        return;
    }
    for (at = 0; at < count; at++) {
        const int high = harness_digit(digits[2 * at]), low = harness_digit(digits[2 * at + 1]);
        if (high < 0 || low < 0) {
            printk("e-[No hexadecimal digits at byte %u]\r\n", (unsigned int)harness_at);
            return;
        }
        harness_loaded[harness_at++] = (uint8_t)(high << 4 | low);
    }
    if (harness_at == harness_expected) {
        printk("m-load-done\r\n");
    }
}

static void harness_db(char *rest)
{
    const char *const word = harness_word(&rest);
    if (word == NULL) {
        printk("e-[Command 'db' needs load, print or digits]\r\n");
    } else if (strcmp(word, "load") == 0) {
        const char *const size = harness_word(&rest);
        if (size == NULL || harness_number(size) != MLPERF_INPUT_BYTES) {
            printk("e-[Command 'db load' takes the %u bytes of the inputs]\r\n",
                   (unsigned int)MLPERF_INPUT_BYTES);
            return;
        }
        harness_expected = MLPERF_INPUT_BYTES;
        harness_at = 0;
        printk("m-[Expecting %u bytes]\r\n", (unsigned int)harness_expected);
    } else if (strcmp(word, "print") == 0) {
        size_t at;
        printk("m-buffer-");
        for (at = 0; at < harness_at; at++) {
            printk("%02x", harness_loaded[at]);
        }
        printk("\r\n");
    } else {
        harness_load(word);
    }
}

static void harness_infer(char *rest)
{
    const char *const times = harness_word(&rest), *const before = harness_word(&rest);
    const long count = times ? harness_number(times) : 1;
    const long warmup = before ? harness_number(before) : 10;
    long run;
    if (count <= 0 || warmup < 0) {
        printk("e-[Command 'infer' takes a count from 1 on and a count from 0 on]\r\n");
        return;
    }
    harness_status = 0;
    th_load_tensor();
    printk("m-warmup-start-%ld\r\n", warmup);
    for (run = 0; run < warmup; run++) {
        th_infer();
    }
    printk("m-warmup-done\r\n");
    printk("m-infer-start-%ld\r\n", count);
    th_timestamp();
    for (run = 0; run < count; run++) {
        th_infer();
    }
    th_timestamp();
    printk("m-infer-done\r\n");
    if (harness_status) {
        printk("e-[The model's run function returned %d]\r\n", harness_status);
        return;
    }
    th_results();
}

static void harness_command(char *text)
{
    char *rest = text;
    const char *const word = harness_word(&rest);
    if (word == NULL) {
        printk("e-[The command is empty]\r\n");
    } else if (strcmp(word, "name") == 0) {
        printk("m-name-dut-[" MLPERF_TEXT(MLPERF_VENDOR) "]\r\n");
    } else if (strcmp(word, "profile") == 0) {
        printk("m-profile-[tvm-compress for MLPerf Tiny]\r\n");
        printk("m-model-[" HARNESS_MODEL_NAME "]\r\n");
    } else if (strcmp(word, "timestamp") == 0) {
        th_timestamp();
    } else if (strcmp(word, "db") == 0) {
        harness_db(rest);
    } else if (strcmp(word, "infer") == 0) {
        harness_infer(rest);
    } else if (strcmp(word, "results") == 0) {
        th_results();
    } else if (strcmp(word, "help") == 0) {
        printk("name, profile, timestamp, db load N, db HH[HH]*, db print, infer N [W], results\r\n");
    } else if (strcmp(word, "exit") == 0) {
        harness_exit();
    } else {
        printk("e-[Unknown command: %s]\r\n", word);
    }
}

int main(void)
{
    static char command[MLPERF_COMMAND_BYTES];
    size_t length = 0;
    printk("m-timestamp-mode-performance\r\n");
    th_timestamp();
    printk("m-init-done\r\nm-ready\r\n");
    for (;;) {
        unsigned char character;
        if (uart_poll_in(harness_uart, &character)) {
            k_yield();
        } else if (character != '%') {
            if (length < sizeof command) {
                command[length++] = (char)character;
            }
        } else {
            if (length < sizeof command) {
                command[length] = 0;
                harness_command(command);
            } else {
                printk("e-[A command has at most %u characters]\r\n",
                       (unsigned int)(sizeof command - 1));
            }
            printk("m-ready\r\n");
            length = 0;
        }
    }
}
