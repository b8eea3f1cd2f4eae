#define HARNESS_MODEL_NAME "net"
#define HARNESS_INPUT_BYTES 40
#define HARNESS_OUTPUT_0_float32
#include <stdint.h>
#include "net.h"

#define HARNESS_MODEL_ABI_VERSION NET_ABI_VERSION
#define HARNESS_INPUT_COUNT 2
#define HARNESS_OUTPUT_COUNT 2
/* A compile error here: the header and the description of the model disagree. */
typedef char harness_arena_agrees[NET_ARENA_BYTES == 0 ? 1 : -1];

static float harness_input_0[6] __attribute__((aligned(16)));
static float harness_input_1[4] __attribute__((aligned(16)));
static float harness_output_0[4] __attribute__((aligned(16)));
static float harness_output_1[4] __attribute__((aligned(16)));
static const struct harness_buffer harness_inputs[] = {{harness_input_0, sizeof harness_input_0}, {harness_input_1, sizeof harness_input_1}};
static const struct harness_buffer harness_outputs[] = {{harness_output_0, sizeof harness_output_0}, {harness_output_1, sizeof harness_output_1}};

static int harness_model_run(void) { return net_run(harness_input_0, harness_input_1, harness_output_0, harness_output_1, (void *)0); }
