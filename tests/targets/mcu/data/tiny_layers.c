#include <math.h>
#include <string.h>

int tiny_layer_000_dense(const float *input, float *output);
int tiny_layer_001_softmax(const float *input, float *output);

/* Row r, column c: (r + 1) * 2^-c%8, so that a test can write it as a formula. */
#define ROW(r) r, r / 2, r / 4, r / 8, r / 16, r / 32, r / 64, r / 128
static const float tiny_w_dense[96] = {
    ROW(1.0f), ROW(1.0f), ROW(1.0f), ROW(1.0f), ROW(2.0f), ROW(2.0f),
    ROW(2.0f), ROW(2.0f), ROW(3.0f), ROW(3.0f), ROW(3.0f), ROW(3.0f)};
static const float tiny_c_bias[3] = {0.1f, -0.2f, 0.3f};

int tiny_layer_000_dense(const float *input, float *output)
{
    int row, column;
    for (row = 0; row < 3; row++) {
        float sum = tiny_c_bias[row];
        for (column = 0; column < 32; column++) {
            sum += tiny_w_dense[row * 32 + column] * input[column];
        }
        output[row] = sum;
    }
    return 0;
}

int tiny_layer_001_softmax(const float *input, float *output)
{
    float values[3], total = 0.0f;
    int i;
    memcpy(values, input, sizeof values);
    for (i = 0; i < 3; i++) {
        values[i] = expf(values[i]);
        total += values[i];
    }
    for (i = 0; i < 3; i++) {
        output[i] = values[i] / total;
    }
    return 0;
}
