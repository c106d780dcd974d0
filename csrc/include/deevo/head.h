// head: cross-entropy and rank of the true class from float32 logits, the same bits everywhere.
//   loss = log sum_j exp(z_j - max) + (1 - s) (max - z_y) + s mean_j (max - z_j)
//   rank = #(z_j > z_y) + #(z_j == z_y, j < y)
// (label smoothing s: Szegedy et al., "Rethinking the Inception Architecture", CVPR 2016). The sums
// over classes are exact: terms are rounded to fixed point and added as integers, so that no tiling
// or order of the classes shows. float64 elsewhere.
// Traffic: a logit read once, or the features of the last layer read once.
#pragma once

#include "deevo/arguments.h"
#include "deevo/exact_math.h"

namespace deevo {

constexpr int kHeadLanes = 16;  // partial sums of a dot product: lane l has channels l, l + 16, ...
constexpr int kExpBits = 40;
constexpr double kLargestGap = 0x1p20;

// rint of a float64 in [0, 2^51]: what the sum with 2^52 has in its low bits. Many CPUs convert
// single numbers only.
DEEVO_HD int64_t round_half_even(double x) {
  return static_cast<int64_t>(bits_of(x + 0x1p52) - bits_of(0x1p52));
}

// rint(2^40 exp(-gap)), gap >= 0: -gap = k ln 2 + r, |r| <= ln 2 / 2, Taylor series of exp(r) up to
// r^11. The series' error is below 1e-14, the rounding's 2^-41.
DEEVO_HD int64_t exp_fixed(double gap) {
  const double x = gap > 32.0 ? -32.0 : -gap;                 // from 28.5 on it rounds to 0
  const double shifted = -(x * 1.4426950408889634) + 0x1p52;  // rounds, as round_half_even
  const double k = -(shifted - 0x1p52);
  const double r = (x - k * 6.93147180369123816490e-01) - k * 1.90821492927058770002e-10;
  constexpr double kInverseFactorials[12] = {
      1.0,       1.0,        1.0 / 2,     1.0 / 6,      1.0 / 24,      1.0 / 120,
      1.0 / 720, 1.0 / 5040, 1.0 / 40320, 1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800};
  double p = kInverseFactorials[11];
  for (int n = 10; n >= 0; --n) p = p * r + kInverseFactorials[n];
  const uint64_t exponent =
      static_cast<uint64_t>(1023 + kExpBits) - (bits_of(shifted) - bits_of(0x1p52));
  return round_half_even(p * double_of(exponent << 52));
}

// Fraction bits of the class sum of label smoothing, so that it fits 63 bits.
DEEVO_HD int gap_bits(int64_t classes) {
  int width = 0;
  for (int64_t n = classes - 1; n > 0; n >>= 1) ++width;
  return 42 - width < 31 ? 42 - width : 31;
}

DEEVO_HD int64_t gap_fixed(double gap, int bits) {
  const double limited = gap > kLargestGap ? kLargestGap : gap;
  return round_half_even(limited * double_of((1023ull + bits) << 52));
}

// The loss from what the passes over the classes gave: exponentials' sum, gaps' sum, label's gap.
DEEVO_HD float loss_from_sums(int64_t exponentials, int64_t gaps, double label_gap,
                              double smoothing, int64_t classes) {
  const double unit = double_of((1023ull - gap_bits(classes)) << 52);
  const double mean_gap = static_cast<double>(gaps) * unit / static_cast<double>(classes);
  const double label_part = (1.0 - smoothing) * label_gap + smoothing * mean_gap;
  return static_cast<float>(exact_log(static_cast<double>(exponentials) * 0x1p-40) + label_part);
}

// What a sample's logits come to. Sums are exact, so that no order of the classes shows.
struct LossSums {
  float largest;
  int32_t finite;  // 1 unless a logit is not
  int64_t exponentials, gaps;
  int32_t better;  // classes before the true one
};

// A label that does not exist, like a logit or a loss that is not finite: +inf, and the last rank.
DEEVO_HD void store_loss(const Losses& l, int64_t member, int64_t sample, const LossSums& s,
                         float label_logit) {
  const int64_t label = l.labels[sample];
  float loss = float_of(0x7F800000u);
  int32_t rank = static_cast<int32_t>(l.classes);
  if (s.finite != 0 && label >= 0 && label < l.classes) {
    const double gap = static_cast<double>(s.largest) - static_cast<double>(label_logit);
    const float value = loss_from_sums(s.exponentials, s.gaps, gap, l.smoothing, l.classes);
    if (Float32::finite(value)) {
      loss = value;
      rank = s.better;
    }
  }
  static_cast<float*>(l.losses.data)[member * l.losses.stride + sample] = loss;
  static_cast<int32_t*>(l.ranks.data)[member * l.ranks.stride + sample] = rank;
}

}  // namespace deevo
