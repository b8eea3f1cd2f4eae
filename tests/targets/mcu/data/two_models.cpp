// Two generated models in one C++ program: both headers, both run functions.
#include <cstdint>
#include <cstdio>
#include <vector>

#include "first.h"
#include "second.h"
#include "first.h"

#if FIRST_ABI_VERSION != SECOND_ABI_VERSION
#error "one generator, two ABI versions"
#endif

template <typename Run>
static int show(Run run, std::size_t inputs, std::size_t outputs, std::size_t arena_bytes)
{
    std::vector<float> x(inputs), y(outputs);
    std::vector<double> arena(arena_bytes / sizeof(double) + 4);
    for (std::size_t i = 0; i < inputs; i++) {
        x[i] = 0.25f * static_cast<float>(i) - 1.0f;
    }
    std::uintptr_t place = (reinterpret_cast<std::uintptr_t>(arena.data()) + 15) / 16 * 16;
    if (run(x.data(), y.data(), reinterpret_cast<void *>(place))) {
        return 1;
    }
    for (float value : y) {
        std::printf("%.9g ", static_cast<double>(value));
    }
    std::printf("\n");
    return 0;
}

int main()
{
    return show(first_run, FIRST_INPUT_0_SIZE, FIRST_OUTPUT_0_SIZE, FIRST_ARENA_BYTES) ||
           show(second_run, SECOND_INPUT_0_SIZE, SECOND_OUTPUT_0_SIZE, SECOND_ARENA_BYTES);
}
