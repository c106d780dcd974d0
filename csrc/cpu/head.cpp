// head and loss_and_rank on the CPU: blocks of samples over threads.
// Bytes: features (or logits) read once; a member's weights once per block, from the caches.
#include "deevo/head.h"

#include <algorithm>
#include <vector>

#include "deevo/fold.h"
#include "inference.h"
#include "threads.h"

namespace deevo::cpu {
namespace {

constexpr int64_t kBlock = 16;  // samples that share a pass over the weights

// Loss and rank of one sample from its logits.
void finish(const Losses& l, const float* z, int64_t member, int64_t sample) {
  const int64_t label = l.labels[sample];
  float& loss = static_cast<float*>(l.losses.data)[member * l.losses.stride + sample];
  int32_t& rank = static_cast<int32_t*>(l.ranks.data)[member * l.ranks.stride + sample];
  loss = float_of(0x7F800000u);
  rank = static_cast<int32_t>(l.classes);
  bool finite = true;
  float largest = z[0];
  for (int64_t j = 0; j < l.classes; ++j) {
    finite &= finite_logit(z[j]);
    largest = z[j] > largest ? z[j] : largest;
  }
  if (!finite) return;
  const int bits = gap_bits(l.classes);
  int64_t exponentials = 0, gaps = 0;
  int32_t better = 0;
  for (int64_t j = 0; j < l.classes; ++j) {
    const double gap = static_cast<double>(largest) - static_cast<double>(z[j]);
    exponentials += exp_fixed(gap);
    gaps += gap_fixed(gap, bits);
    better += (z[j] > z[label]) | ((z[j] == z[label]) & (j < label));
  }
  const double label_gap = static_cast<double>(largest) - static_cast<double>(z[label]);
  const float value = loss_from_sums(exponentials, gaps, label_gap, l.smoothing, l.classes);
  if (!finite_logit(value)) return;
  loss = value;
  rank = better;
}

float dot(const float* __restrict x, const float* __restrict w, int64_t channels) {
  float sums[kHeadLanes] = {};
  int64_t c = 0;
  for (; c + kHeadLanes <= channels; c += kHeadLanes) {
    for (int lane = 0; lane < kHeadLanes; ++lane) sums[lane] += x[c + lane] * w[c + lane];
  }
  for (int lane = 0; c + lane < channels; ++lane) sums[lane] += x[c + lane] * w[c + lane];
  for (int half = kHeadLanes / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
  }
  return sums[0];
}

template <class From>
void pool(const typename From::Stored* features, int64_t positions, int64_t channels,
          float* __restrict pooled) {
  std::fill_n(pooled, channels, 0.0f);
  for (int64_t p = 0; p < positions; ++p) {
    const typename From::Stored* __restrict at = features + p * channels;
    for (int64_t c = 0; c < channels; ++c) pooled[c] += From::widen(at[c]);
  }
  const float inverse = static_cast<float>(1.0 / static_cast<double>(positions));
  for (int64_t c = 0; c < channels; ++c) pooled[c] *= inverse;
}

// Calls body(member, first sample, samples) for all blocks of samples.
template <class Body>
void parallel_samples(const Losses& l, const Body& body) {
  const int64_t blocks = (l.samples + kBlock - 1) / kBlock;
  parallel_for(l.losses.count * blocks, l.threads, [&](int64_t, int64_t item) {
    const int64_t first = item % blocks * kBlock;
    body(item / blocks, first, std::min(kBlock, l.samples - first));
  });
}

template <class From>
void run_head(Blocks features, Blocks weight, Blocks bias, int64_t positions, int64_t channels,
              const Losses& l) {
  using Source = typename From::Stored;
  parallel_samples(l, [&](int64_t member, int64_t first, int64_t samples) {
    const Source* x = static_cast<const Source*>(features.data) + member * features.stride;
    const Source* w = static_cast<const Source*>(weight.data) + member * weight.stride;
    const float* b = static_cast<const float*>(bias.data) + member * bias.stride;
    std::vector<float> pooled(samples * channels), row(channels), logits(samples * l.classes);
    for (int64_t n = 0; n < samples; ++n) {
      pool<From>(x + (first + n) * positions * channels, positions, channels,
                 pooled.data() + n * channels);
    }
    for (int64_t j = 0; j < l.classes; ++j) {
      for (int64_t c = 0; c < channels; ++c) row[c] = From::widen(w[j * channels + c]);
      for (int64_t n = 0; n < samples; ++n) {
        logits[n * l.classes + j] = dot(pooled.data() + n * channels, row.data(), channels) + b[j];
      }
    }
    for (int64_t n = 0; n < samples; ++n) {
      finish(l, logits.data() + n * l.classes, member, first + n);
    }
  });
}

template <class From>
void run_losses(Blocks logits, const Losses& l) {
  using Source = typename From::Stored;
  parallel_samples(l, [&](int64_t member, int64_t first, int64_t samples) {
    const Source* z = static_cast<const Source*>(logits.data) + member * logits.stride;
    std::vector<float> row(l.classes);
    for (int64_t n = first; n < first + samples; ++n) {
      for (int64_t j = 0; j < l.classes; ++j) row[j] = From::widen(z[n * l.classes + j]);
      finish(l, row.data(), member, n);
    }
  });
}

}  // namespace

void head(Number number, Blocks features, Blocks weight, Blocks bias, int64_t positions,
          int64_t channels, const Losses& l) {
  switch (number) {
    case Number::kFloat32:
      return run_head<FromFloat32>(features, weight, bias, positions, channels, l);
    case Number::kBFloat16:
      return run_head<FromBFloat16>(features, weight, bias, positions, channels, l);
    case Number::kFloat16:
      return run_head<FromFloat16>(features, weight, bias, positions, channels, l);
  }
}

void loss_and_rank(Number number, Blocks logits, const Losses& l) {
  switch (number) {
    case Number::kFloat32:
      return run_losses<FromFloat32>(logits, l);
    case Number::kBFloat16:
      return run_losses<FromBFloat16>(logits, l);
    case Number::kFloat16:
      return run_losses<FromFloat16>(logits, l);
  }
}

}  // namespace deevo::cpu
