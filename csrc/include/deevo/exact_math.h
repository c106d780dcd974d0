// Elementary functions from + - * / sqrt alone, in float64 and in a fixed order, so that every
// backend gives the same bits (libm and CUDA's libdevice differ in their last bits).
// Errors, checked by python_tests/ops/test_exact_math.py against 120-bit values over the arguments
// that deevo uses, stay below 1 ulp for exact_log, 3 ulp for sin2pi, 6 ulp for cauchy_quantile and
// 7 ulp for normal_quantile.
#pragma once

#include <cmath>

#include "deevo/common.h"

namespace deevo {

// Natural logarithm of a positive normal float64: x = m 2^e with m in [sqrt(1/2), sqrt(2)),
// log m = 2 atanh(s), s = (m - 1)/(m + 1), by its Taylor series in s^2 <= 0.0295.
DEEVO_HD double exact_log(double x) {
  const uint64_t bits = bits_of(x);
  int exponent = static_cast<int>(bits >> 52) - 1022;
  double m = double_of((bits & 0x000FFFFFFFFFFFFFull) | 0x3FE0000000000000ull);  // [1/2, 1)
  if (m < 0.70710678118654752440) {
    m = m + m;
    exponent -= 1;
  }
  const double f = m - 1.0;
  const double s = f / (m + 1.0);
  const double z = s * s;
  double p = 1.0 / 23.0;
  for (int k = 21; k >= 3; k -= 2) p = p * z + 1.0 / k;
  // 2 s = f - s f exactly in real arithmetic; this form keeps the leading term f unrounded.
  const double tail = s * (f - 2.0 * (z * p));
  const double e = exponent;
  return (e * 6.93147180369123816490e-01) + (f - (tail - e * 1.90821492927058770002e-10));
}

// sin(2 pi t), t in turns. The reduction is exact; the Taylor series ends at x^23.
DEEVO_HD double sin2pi(double t) {
  double r = t - nearbyint(t);
  if (r > 0.25) r = 0.5 - r;
  if (r < -0.25) r = -0.5 - r;
  const double x = r * 6.283185307179586477;
  const double z = x * x;
  double p = 1.0;
  for (int k = 22; k >= 2; k -= 2) p = 1.0 - (z / (k * (k + 1.0))) * p;
  return x * p;
}

// Polynomial of degree 7, highest coefficient first.
DEEVO_HD double horner(const double (&coefficients)[8], double x) {
  double value = coefficients[0];
  for (int i = 1; i < 8; ++i) value = value * x + coefficients[i];
  return value;
}

// Quantile of the standard normal distribution for p in [2^-33, 1 - 2^-33], which is all that a
// 32-bit uniform reaches: Wichura's AS 241, PPND16 (Applied Statistics 37, 1988), whose third
// branch would begin at p < 1.4e-11.
DEEVO_HD double normal_quantile(double p) {
  constexpr double kCentreTop[8] = {2.5090809287301226727e+3, 3.3430575583588128105e+4,
                                    6.7265770927008700853e+4, 4.5921953931549871457e+4,
                                    1.3731693765509461125e+4, 1.9715909503065514427e+3,
                                    1.3314166789178437745e+2, 3.3871328727963666080e+0};
  constexpr double kCentreBottom[8] = {5.2264952788528545610e+3, 2.8729085735721942674e+4,
                                       3.9307895800092710610e+4, 2.1213794301586595867e+4,
                                       5.3941960214247511077e+3, 6.8718700749205790830e+2,
                                       4.2313330701600911252e+1, 1.0};
  constexpr double kTailTop[8] = {7.74545014278341407640e-4, 2.27238449892691845833e-2,
                                  2.41780725177450611770e-1, 1.27045825245236838258e+0,
                                  3.64784832476320460504e+0, 5.76949722146069140550e+0,
                                  4.63033784615654529590e+0, 1.42343711074968357734e+0};
  constexpr double kTailBottom[8] = {1.05075007164441684324e-9, 5.47593808499534494600e-4,
                                     1.51986665636164571966e-2, 1.48103976427480074590e-1,
                                     6.89767334985100004550e-1, 1.67638483018380384940e+0,
                                     2.05319162663775882187e+0, 1.0};
  const double q = p - 0.5;
  if (q >= -0.425 && q <= 0.425) {
    const double r = 0.180625 - q * q;
    return q * horner(kCentreTop, r) / horner(kCentreBottom, r);
  }
  const double r = sqrt(-exact_log(q < 0.0 ? p : 1.0 - p)) - 1.6;
  const double x = horner(kTailTop, r) / horner(kTailBottom, r);
  return q < 0.0 ? -x : x;
}

// Quantile of the standard Cauchy distribution, tan(pi (p - 1/2)), as a quotient of two sines of
// arguments in [0, 1/4] turns; every subtraction here is exact for p = (word + 1/2) 2^-32.
DEEVO_HD double cauchy_quantile(double p) {
  const double a = p - 0.5;
  const double t = a < 0.0 ? -a : a;
  const double x = sin2pi(t * 0.5) / sin2pi(0.25 - t * 0.5);
  return a < 0.0 ? -x : x;
}

}  // namespace deevo
