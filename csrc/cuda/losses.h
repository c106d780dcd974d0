// Loss and rank of a sample, by a group of lanes of one warp; what head and loss_and_rank share.
#pragma once

#include "deevo/head.h"
#include "launch.h"
#include "operators.h"

namespace deevo::cuda {

// What a sample's logits come to. Sums are exact, so that no order of the classes shows.
struct LossSums {
  float largest;
  int32_t finite;
  int64_t exponentials, gaps;
  int32_t better;
};

DEEVO_DEVICE LossSums no_classes() { return {float_of(0xFF800000u), 1, 0, 0, 0}; }

// First pass, over some of the classes: the largest logit, and whether all are finite. Each of
// `lanes` lanes, a power of two, has every so many-th class; logit(j) gives a class's.
template <class Logit>
DEEVO_DEVICE void scan_logits(LossSums* s, int64_t first, int64_t end, int lane, int lanes,
                              const Logit& logit) {
  float largest = s->largest;
  int32_t finite = s->finite;
  for (int64_t j = first + lane; j < end; j += lanes) {
    const float z = logit(j);
    finite = finite_logit(z) ? finite : 0;
    largest = z > largest ? z : largest;
  }
  for (int half = lanes / 2; half > 0; half /= 2) {
    const float other = shuffle_xor(largest, half);
    largest = other > largest ? other : largest;
    finite &= shuffle_xor(finite, half);
  }
  s->largest = largest;
  s->finite = finite;
}

// Second pass, over some of the classes, with the largest of all of them known.
template <class Logit>
DEEVO_DEVICE void add_logits(LossSums* s, int64_t first, int64_t end, int lane, int lanes,
                             int64_t label, float label_logit, int bits, const Logit& logit) {
  int64_t exponentials = 0, gaps = 0;
  int32_t better = 0;
  const float largest = s->largest;
  for (int64_t j = first + lane; s->finite != 0 && j < end; j += lanes) {
    const float z = logit(j);
    const double gap = static_cast<double>(largest) - static_cast<double>(z);
    exponentials += exp_fixed(gap);
    gaps += gap_fixed(gap, bits);
    better += (z > label_logit) | ((z == label_logit) & (j < label)) ? 1 : 0;
  }
  for (int half = lanes / 2; half > 0; half /= 2) {
    exponentials += shuffle_xor(exponentials, half);
    gaps += shuffle_xor(gaps, half);
    better += shuffle_xor(better, half);
  }
  s->exponentials += exponentials;
  s->gaps += gaps;
  s->better += better;
}

// A label that does not exist, like a logit or a loss that is not finite: +inf, and the last rank.
DEEVO_DEVICE void store_loss(const Losses& l, int64_t member, int64_t sample, const LossSums& s,
                             float label_logit) {
  const int64_t label = l.labels[sample];
  float loss = float_of(0x7F800000u);
  int32_t rank = static_cast<int32_t>(l.classes);
  if (s.finite != 0 && label >= 0 && label < l.classes) {
    const double gap = static_cast<double>(s.largest) - static_cast<double>(label_logit);
    const float value = loss_from_sums(s.exponentials, s.gaps, gap, l.smoothing, l.classes);
    if (finite_logit(value)) {
      loss = value;
      rank = s.better;
    }
  }
  static_cast<float*>(l.losses.data)[member * l.losses.stride + sample] = loss;
  static_cast<int32_t*>(l.ranks.data)[member * l.ranks.stride + sample] = rank;
}

}  // namespace deevo::cuda
