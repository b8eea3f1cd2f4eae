/* Every way a firmware ends, once: the C names and the sentences that the host prints. */
#ifndef TVM_COMPRESS_EXIT_CODES_H
#define TVM_COMPRESS_EXIT_CODES_H

/* X(name, exit code, what happened and what to do next) */
#define HARNESS_EXIT_CODES(X)                                                                     \
    X(HARNESS_OK, 0, "The firmware ran to its end.")                                              \
    X(HARNESS_FAULT, 3, "The processor faulted: the code touched memory that the board does not have or an instruction that it does not know. Report the model as a bug.") \
    X(HARNESS_NO_INPUT, 4, "The firmware could not read input.bin. Run it through Firmware.run, or put an input.bin of whole samples beside the emulator.") \
    X(HARNESS_NO_OUTPUT, 5, "The firmware could not write output.bin. Free space in the folder where the emulator runs.") \
    X(HARNESS_MODEL_FAILED, 6, "The model's run function returned an error instead of 0. Report the model as a bug.")

#define HARNESS_EXIT_ENUM(name, code, text) name = code,
enum harness_exit { HARNESS_EXIT_CODES(HARNESS_EXIT_ENUM) HARNESS_EXIT_LAST };

#endif
