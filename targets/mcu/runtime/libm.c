/* The functions of <math.h> that networks use and that toolchains do differently or lack:
 * expf, tanhf, erff, powf, rintf, nearbyintf. Linked before the toolchain's own, so that every
 * compiler's firmware gives the same bits. Single precision throughout, but for powf's logarithm.
 *
 * The polynomials are our own minimax fits (weighted least squares, Lawson's iteration, on 2001
 * Chebyshev nodes, in double precision, then rounded to float); the relative error of each fit is
 * below 4e-9, and rounding dominates. Errors that tests hold: 1.1 ulp (expf, powf), 1.5 ulp (tanhf,
 * erff). Compile with -ffp-contract=off. errno and floating-point flags are not kept. */
#include <math.h>
#include <stdint.h>
#include <string.h>

static uint32_t libm_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static float libm_float(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* 2^n, -126 <= n <= 127. */
static float libm_power_of_two(int n)
{
    return libm_float((uint32_t)(n + 127) << 23);
}

/* x * 2^n for -252 <= n <= 254, in two exact steps but for a denormal result. */
static float libm_scale(float x, int n)
{
    const int half = n / 2;
    return x * libm_power_of_two(half) * libm_power_of_two(n - half);
}

/* The nearest integer, ties to even, |x| < 2^22: the addition drops the fraction bits. */
static float libm_nearest(float x)
{
    const float shift = 12582912.0f; /* 1.5 * 2^23 */
    return (x + shift) - shift;
}

/* e^r for |r| <= 0.347. */
static float libm_exp_reduced(float r)
{
    float p = 0.001381443114951253f;
    p = p * r + 0.008368797600269318f;
    p = p * r + 0.041668396443128586f;
    p = p * r + 0.1666651964187622f;
    p = p * r + 0.4999999403953552f;
    return 1.0f + (r + r * r * p);
}

float expf(float x)
{
    float n, r;
    if (!(x <= 88.72284f)) {
        return x * INFINITY; /* also NaN */
    }
    if (x < -103.97208f) {
        return 0.0f;
    }
    n = libm_nearest(x * 1.44269504f);
    /* ln 2 in two parts; the first has 9 bits, so that n times it is exact (Cody and Waite). */
    r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    return libm_scale(libm_exp_reduced(r), (int)n);
}

float tanhf(float x)
{
    const float a = fabsf(x);
    float y;
    if (a < 0.5625f) {
        const float u = x * x;
        float p = -0.006179801654070616f;
        p = p * u + 0.02100745402276516f;
        p = p * u - 0.053837429732084274f;
        p = p * u + 0.1333245187997818f;
        p = p * u - 0.3333331346511841f;
        return copysignf(x + x * u * p, x); /* the sum alone would lose the sign of -0 */
    }
    /* Above 9.02 the result rounds to 1. */
    y = a > 9.02f ? 1.0f : 1.0f - 2.0f / (expf(2.0f * a) + 1.0f);
    return x != x ? x : copysignf(y, x);
}

float erff(float x)
{
    const float a = fabsf(x);
    float p;
    if (a < 1.0f) {
        const float u = x * x;
        p = 7.85385855124332e-05f;
        p = p * u - 0.0008010193123482168f;
        p = p * u + 0.005188327748328447f;
        p = p * u - 0.026853812858462334f;
        p = p * u + 0.1128358542919159f;
        p = p * u - 0.3761262595653534f;
        /* The constant term is 1 + 0.128..: the leading product is exact. */
        p = p * u + 0.1283791670955126f;
        return x + x * p;
    }
    if (x != x) {
        return x;
    }
    if (a > 3.93f) {
        return copysignf(1.0f, x);
    }
    /* ln(1 - erf(a)) is smooth. */
    p = 0.00018557539442554116f;
    p = p * a - 0.0029396209865808487f;
    p = p * a + 0.021805372089147568f;
    p = p * a - 0.10303748399019241f;
    p = p * a - 0.6382255554199219f;
    p = p * a - 1.127040147781372f;
    p = p * a - 0.00035369975375942886f;
    return copysignf(1.0f - expf(p), x);
}

/* log2 of a positive finite x, to 33 bits: 2 / ln 2 * atanh((m - 1) / (m + 1)) and the exponent. */
static double libm_log2(float x)
{
    static const double series[7] = {1.0,       1.0 / 3.0, 1.0 / 5.0, 1.0 / 7.0,
                                     1.0 / 9.0, 1.0 / 11.0, 1.0 / 13.0};
    int exponent = 0, i;
    uint32_t bits;
    double m, s, u, p;
    if (x < 1.17549435e-38f) { /* denormal */
        x *= 16777216.0f;
        exponent = -24;
    }
    bits = libm_bits(x);
    /* The mantissa in [0.70, 1.41): subtract the bits of about sqrt(1/2), take the exponent. */
    exponent += (int)((bits - 0x3f3504f3u) & 0xff800000u) >> 23;
    bits -= (bits - 0x3f3504f3u) & 0xff800000u;
    m = libm_float(bits);
    s = (m - 1.0) / (m + 1.0);
    u = s * s;
    p = series[6];
    for (i = 5; i >= 0; i--) {
        p = p * u + series[i];
    }
    return exponent + 2.885390081777927 * s * p;
}

/* 0: no integer, 1: odd, 2: even. */
static int libm_parity(float y)
{
    const float a = fabsf(y);
    if (a >= 16777216.0f) {
        return 2; /* also infinity */
    }
    if (a != (float)(int32_t)a) {
        return 0;
    }
    return ((int32_t)a & 1) ? 1 : 2;
}

/* C99 F.9.4.4 lists the special cases. */
float powf(float x, float y)
{
    const int parity = libm_parity(y);
    const float a = fabsf(x);
    float sign = 1.0f, n;
    double t;
    if (y == 0.0f || x == 1.0f) {
        return 1.0f;
    }
    if (x != x || y != y) {
        return x + y;
    }
    if (y == 1.0f) {
        return x;
    }
    if (y == 2.0f) {
        return x * x;
    }
    if (signbit(x) && parity == 1) {
        sign = -1.0f;
    }
    if (a == 0.0f || isinf(a)) {
        return sign * ((a == 0.0f) == (y > 0.0f) ? 0.0f : INFINITY);
    }
    if (isinf(y)) {
        if (a == 1.0f) {
            return 1.0f;
        }
        return (a > 1.0f) == (y > 0.0f) ? INFINITY : 0.0f;
    }
    if (x < 0.0f && !parity) {
        return (x - x) / (x - x); /* NaN */
    }
    t = (double)y * libm_log2(a);
    if (t >= 128.0) {
        return sign * INFINITY;
    }
    if (t < -150.0) {
        return sign * 0.0f;
    }
    n = libm_nearest((float)t);
    return sign * libm_scale(libm_exp_reduced((float)((t - (double)n) * 0.6931471805599453)), (int)n);
}

float rintf(float x)
{
    const float a = fabsf(x);
    if (!(a < 8388608.0f)) {
        return x; /* an integer already, infinite or NaN */
    }
    return copysignf((a + 8388608.0f) - 8388608.0f, x);
}

float nearbyintf(float x)
{
    return rintf(x);
}
