/* A model that does what its first input asks for, to see how each trouble is told. */
#ifndef TROUBLE_H
#define TROUBLE_H
#define TROUBLE_ARENA_BYTES 0
#define TROUBLE_ABI_VERSION 1
int trouble_run(const float *request, float *output, void *arena);
#endif
