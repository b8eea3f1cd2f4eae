/* Layers in assembly whose cost test_cycles.py counts by hand; the list is CYCLES_LAYERS. */
#ifndef CYCLES_H
#define CYCLES_H
#define CYCLES_ARENA_BYTES 0
#define CYCLES_ABI_VERSION 1
int cycles_run(const float *x, float *y, void *arena);
#define CYCLES_LAYERS(X)                                                                           \
    X(alu) X(move_pc) X(multiply) X(extend) X(divide) X(load) X(load_loop) X(store) X(doubles)     \
    X(multiples) X(pop_pc) X(load_pc) X(behind_pc) X(branches) X(joined) X(call) X(tables)         \
    X(skipped) X(skipped_more) X(arms) X(skipped_returns) X(taken_return) X(full_price)            \
    X(floats) X(float_memory)
#endif
