/* Runs @NAME@ over the serial line, a line of text at a time: > and two hexadecimal digits a byte of
 * all inputs are answered with < and those of all outputs, or with ! and what went wrong. */
#include <@NAME@.h>

struct harness_buffer {
    void *data;
    size_t bytes;
};

#include "harness_model.h"

static int get()
{
    while (!Serial.available()) {
    }
    const int character = Serial.read();
    return character == '\r' ? '\n' : character;
}

static int digit(int character)
{
    if (character >= '0' && character <= '9') {
        return character - '0';
    }
    return character >= 'a' && character <= 'f' ? character - 'a' + 10 : -1;
}

/* Reads the inputs up to the end of the line, which is always consumed; whether it was whole. */
static bool readInputs()
{
    int character = 0;
    for (size_t index = 0; index < HARNESS_INPUT_COUNT; index++) {
        uint8_t *const data = static_cast<uint8_t *>(harness_inputs[index].data);
        for (size_t at = 0; at < 2 * harness_inputs[index].bytes; at++) {
            character = get();
            const int value = digit(character);
            if (value < 0) {
                while (character != '\n') {
                    character = get();
                }
                return false;
            }
            data[at / 2] = static_cast<uint8_t>(at % 2 ? data[at / 2] | value : value << 4);
        }
    }
    character = get();
    const bool whole = character == '\n';
    while (character != '\n') {
        character = get();
    }
    return whole;
}

static void writeOutputs()
{
    Serial.print('<');
    for (size_t index = 0; index < HARNESS_OUTPUT_COUNT; index++) {
        const uint8_t *const data = static_cast<const uint8_t *>(harness_outputs[index].data);
        for (size_t at = 0; at < harness_outputs[index].bytes; at++) {
            Serial.print("0123456789abcdef"[data[at] >> 4]);
            Serial.print("0123456789abcdef"[data[at] & 15]);
        }
    }
    Serial.print('\n');
}

void setup()
{
    Serial.begin(115200);
}

void loop()
{
    if (get() != '>') {
        return;
    }
    if (!readInputs()) {
        Serial.print("! the line does not hold two digits for each byte of the inputs\n");
    } else if (harness_model_run()) {
        Serial.print("! the model's run function failed\n");
    } else {
        writeOutputs();
    }
}
