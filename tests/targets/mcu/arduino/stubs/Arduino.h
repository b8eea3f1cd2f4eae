/* Stands in for the Arduino environment on this machine: the serial line is standard input and
 * output, and the end of the input ends the process. */
#ifndef STUB_ARDUINO_H
#define STUB_ARDUINO_H

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

struct StubSerial {
    int next = -2;
    void begin(long) {}
    int available()
    {
        if (next == -2 && (next = std::getchar()) == EOF) {
            std::exit(0);
        }
        return 1;
    }
    int read()
    {
        const int character = next;
        next = -2;
        return character;
    }
    void print(char character) { std::putchar(character); }
    void print(const char *text) { std::fputs(text, stdout); }
};
static StubSerial Serial;

void setup();
void loop();

#endif
