/* A small libFuzzer for compilers that bring none: mutates a corpus and keeps what reaches new code.
 *
 *     driver SECONDS RUNS SEED FINDING FILE...
 *
 * ends after so many seconds or runs, the first of both, where 0 is no limit. The same seed makes
 * the same inputs. A crash leaves its input in the file FINDING. Code is seen to be new by the
 * callback of -fsanitize-coverage=trace-pc; without that, only the corpus is mutated. */
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { LONGEST = 4096, MOST_INPUTS = 1 << 14, EDGES = 1 << 16 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
/* Of the sanitizers, where there are some. */
void __sanitizer_set_death_callback(void (*callback)(void)) __attribute__((weak));
void __sanitizer_cov_trace_pc(void);

static struct {
    uint8_t *data;
    size_t size;
} corpus[MOST_INPUTS];
static size_t inputs;
static uint8_t current[LONGEST];
static size_t current_size;
static const char *finding;

static uint8_t known[EDGES];
static uintptr_t before;
static int fresh;

void __sanitizer_cov_trace_pc(void) {
    /* Relative, so that it is the same wherever the program is loaded. */
    uintptr_t here = (uintptr_t)__builtin_return_address(0) - (uintptr_t)&LLVMFuzzerTestOneInput;
    size_t edge = (here ^ before << 5) % EDGES;
    before = here;
    if (!known[edge]) known[edge] = 1, fresh = 1;
}

static void keep_finding(void) {
    FILE *file = fopen(finding, "wb");
    if (file) {
        fwrite(current, 1, current_size, file);
        fclose(file);
        fprintf(stderr, "The input is in %s.\n", finding);
    }
}

static void on_abort(int number) {
    keep_finding();
    signal(number, SIG_DFL); /* and abort() goes on */
}

static uint64_t state;

static size_t chance(size_t below) { /* xorshift64* (Vigna 2016) */
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return (size_t)((state * 0x2545F4914F6CDD1Du) >> 32) % below;
}

static void keep(void) {
    if (inputs == MOST_INPUTS) return;
    corpus[inputs].data = malloc(current_size ? current_size : 1);
    if (!corpus[inputs].data) abort();
    memcpy(corpus[inputs].data, current, current_size);
    corpus[inputs++].size = current_size;
}

static void run(void) {
    /* In an allocation of its own size, so that a byte too far is seen. */
    uint8_t *data = malloc(current_size ? current_size : 1);
    if (!data) abort();
    memcpy(data, current, current_size);
    before = 0;
    LLVMFuzzerTestOneInput(data, current_size);
    free(data);
}

static void insert(const uint8_t *from, size_t count) {
    size_t at = chance(current_size + 1);
    if (count > LONGEST - current_size) count = LONGEST - current_size;
    memmove(current + at + count, current + at, current_size - at);
    memcpy(current + at, from, count);
    current_size += count;
}

static void mutate(void) {
    static const uint8_t telling[] = {0, 1, 2, 0x0F, 0x10, 0x7F, 0x80, 0xFE, 0xFF};
    uint8_t piece[16];
    size_t at = current_size ? chance(current_size) : 0, other = chance(inputs), count;
    switch (current_size ? chance(7) : 5) {
    case 0: current[at] ^= (uint8_t)(1 << chance(8)); break;
    case 1: current[at] = telling[chance(sizeof telling)]; break;
    case 2: current[at] = (uint8_t)(current[at] + chance(33) - 16); break;
    case 3: /* remove */
        count = 1 + chance(8);
        if (count > current_size - at) count = current_size - at;
        memmove(current + at, current + at + count, current_size - at - count);
        current_size -= count;
        break;
    case 4: /* repeat */
        count = 1 + chance(sizeof piece);
        if (count > current_size - at) count = current_size - at;
        memcpy(piece, current + at, count);
        insert(piece, count);
        break;
    case 5:
        for (count = 0; count < sizeof piece; count++) piece[count] = (uint8_t)chance(256);
        insert(piece, 1 + chance(4));
        break;
    default: /* the tail of another */
        if (at < corpus[other].size) {
            current_size = corpus[other].size;
            memcpy(current + at, corpus[other].data + at, current_size - at);
        }
    }
}

int main(int argc, char **argv) {
    if (argc < 6) {
        fprintf(stderr, "driver SECONDS RUNS SEED FINDING FILE...\n");
        return 2;
    }
    time_t end = time(NULL) + atol(argv[1]);
    unsigned long runs = strtoul(argv[2], NULL, 10), done = 0;
    state = strtoull(argv[3], NULL, 10) * 2 + 1;
    finding = argv[4];
    signal(SIGABRT, on_abort);
    if (__sanitizer_set_death_callback) __sanitizer_set_death_callback(keep_finding);
    for (int i = 5; i < argc; i++) {
        FILE *file = fopen(argv[i], "rb");
        if (!file) {
            fprintf(stderr, "%s cannot be read.\n", argv[i]);
            return 2;
        }
        current_size = fread(current, 1, LONGEST, file);
        fclose(file);
        run();
        keep();
    }
    size_t seeds = inputs;
    while ((!runs || done < runs) && (!atol(argv[1]) || time(NULL) < end)) {
        for (int batch = 0; batch < 64 && (!runs || done < runs); batch++, done++) {
            size_t from = chance(inputs);
            current_size = corpus[from].size;
            memcpy(current, corpus[from].data, current_size);
            for (size_t times = 1 + chance(4); times; times--) mutate();
            fresh = 0;
            run();
            if (fresh) keep();
        }
    }
    printf("%lu runs, %zu inputs reached new code\n", done, inputs - seeds);
    return 0;
}
