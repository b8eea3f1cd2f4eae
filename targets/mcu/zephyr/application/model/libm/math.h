/* What generated code takes of <math.h>; some C libraries have next to nothing of it. The functions
 * are those of libm.c and of the toolchain's libm. */
#ifndef TVM_COMPRESS_MATH_H
#define TVM_COMPRESS_MATH_H

#define INFINITY (__builtin_inff())
#define NAN (__builtin_nanf(""))
#define isnan(x) __builtin_isnan(x)
#define isinf(x) __builtin_isinf(x)
#define isfinite(x) __builtin_isfinite(x)
#define signbit(x) __builtin_signbit(x)

#define TVM_COMPRESS_UNARY(name) double name(double x); float name##f(float x);
#define TVM_COMPRESS_BINARY(name) double name(double x, double y); float name##f(float x, float y);
TVM_COMPRESS_UNARY(acos)
TVM_COMPRESS_UNARY(acosh)
TVM_COMPRESS_UNARY(asin)
TVM_COMPRESS_UNARY(asinh)
TVM_COMPRESS_UNARY(atan)
TVM_COMPRESS_UNARY(atanh)
TVM_COMPRESS_UNARY(ceil)
TVM_COMPRESS_UNARY(cos)
TVM_COMPRESS_UNARY(cosh)
TVM_COMPRESS_UNARY(erf)
TVM_COMPRESS_UNARY(exp)
TVM_COMPRESS_UNARY(exp2)
TVM_COMPRESS_UNARY(fabs)
TVM_COMPRESS_UNARY(floor)
TVM_COMPRESS_UNARY(log)
TVM_COMPRESS_UNARY(log10)
TVM_COMPRESS_UNARY(log1p)
TVM_COMPRESS_UNARY(log2)
TVM_COMPRESS_UNARY(nearbyint)
TVM_COMPRESS_UNARY(rint)
TVM_COMPRESS_UNARY(round)
TVM_COMPRESS_UNARY(sin)
TVM_COMPRESS_UNARY(sinh)
TVM_COMPRESS_UNARY(sqrt)
TVM_COMPRESS_UNARY(tan)
TVM_COMPRESS_UNARY(tanh)
TVM_COMPRESS_UNARY(trunc)
TVM_COMPRESS_BINARY(atan2)
TVM_COMPRESS_BINARY(copysign)
TVM_COMPRESS_BINARY(fmax)
TVM_COMPRESS_BINARY(fmin)
TVM_COMPRESS_BINARY(fmod)
TVM_COMPRESS_BINARY(hypot)
TVM_COMPRESS_BINARY(nextafter)
TVM_COMPRESS_BINARY(pow)
double ldexp(double x, int n);
float ldexpf(float x, int n);

#endif
