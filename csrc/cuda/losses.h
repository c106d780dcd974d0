// Loss and rank of a sample, by a group of lanes of one warp; what head and loss_and_rank share.
#pragma once

#include "deevo/head.h"
#include "launch.h"
#include "operators.h"

namespace deevo::cuda {

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
    finite = Float32::finite(z) ? finite : 0;
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

}  // namespace deevo::cuda
