// head and loss_and_rank on the CPU: blocks of samples over threads.
// Bytes: features (or logits) read once; a member's weights once per block, from the caches.
#include "deevo/head.h"

#include <algorithm>
#include <vector>

#include "loops.h"
#include "operators.h"
#include "threads.h"

namespace deevo::cpu {
namespace {

// Loss and rank of one sample from its logits.
void finish(const Losses& l, const float* z, int64_t member, int64_t sample) {
  const int64_t label = l.labels[sample];
  const LossSums sums = loops().evaluation.sum_losses(z, l.classes, label, gap_bits(l.classes));
  store_loss(l, member, sample, sums, z[label]);
}

// Calls body(member, first sample, samples) for all blocks of samples.
template <class Body>
void parallel_samples(const Losses& l, int64_t threads, const Body& body) {
  const int64_t share = (l.losses.count * l.samples + threads - 1) / threads;
  const int64_t block = std::clamp<int64_t>((share + 3) / 4 * 4, 4, kMostSamples);
  const int64_t blocks = (l.samples + block - 1) / block;
  parallel_for(l.losses.count * blocks, threads, [&](int64_t, int64_t item) {
    const int64_t first = item % blocks * block;
    body(item / blocks, first, std::min(block, l.samples - first));
  });
}

template <class Stored>
void run_head(const HeadArguments& a, int64_t threads) {
  const int number = static_cast<int>(a.number);
  const int64_t positions = a.positions, channels = a.channels;
  const Losses& l = a.l;
  const EvaluationLoops& kernel = loops().evaluation;
  const int64_t padded = (channels + kHeadLanes - 1) / kHeadLanes * kHeadLanes;
  parallel_samples(l, threads, [&](int64_t member, int64_t first, int64_t samples) {
    const Stored* x = static_cast<const Stored*>(a.features.data) + member * a.features.stride;
    const Stored* w = static_cast<const Stored*>(a.weight.data) + member * a.weight.stride;
    const float* b = static_cast<const float*>(a.bias.data) + member * a.bias.stride;
    // Zeros in the pads: a sum that began at +0 does not change by a product that is +0.
    std::vector<float> pooled(samples * padded), rows(kMostClasses * padded);
    std::vector<float> logits(samples * l.classes);
    for (int64_t n = 0; n < samples; ++n) {
      kernel.pool[number](x + (first + n) * positions * channels, positions, channels,
                          pooled.data() + n * padded);
    }
    for (int64_t j = 0; j < l.classes; j += kMostClasses) {
      const int64_t classes = std::min(kMostClasses, l.classes - j);
      for (int64_t i = 0; i < classes; ++i) {
        kernel.widen[number](w + (j + i) * channels, rows.data() + i * padded, channels);
      }
      kernel.products(pooled.data(), samples, rows.data(), classes, padded, logits.data() + j,
                      l.classes);
    }
    for (int64_t n = 0; n < samples; ++n) {
      float* z = logits.data() + n * l.classes;
      for (int64_t j = 0; j < l.classes; ++j) z[j] += b[j];
      finish(l, z, member, first + n);
    }
  });
}

template <class Stored>
void run_losses(const LossAndRankArguments& a, int64_t threads) {
  const Losses& l = a.l;
  parallel_samples(l, threads, [&](int64_t member, int64_t first, int64_t samples) {
    const Stored* z = static_cast<const Stored*>(a.logits.data) + member * a.logits.stride;
    std::vector<float> row(l.classes);
    for (int64_t n = first; n < first + samples; ++n) {
      loops().evaluation.widen[static_cast<int>(a.number)](z + n * l.classes, row.data(),
                                                           l.classes);
      finish(l, row.data(), member, n);
    }
  });
}

}  // namespace

const char* head(const HeadArguments& a, int64_t threads) {
  const auto run = a.number == Number::kFloat32 ? run_head<float> : run_head<uint16_t>;
  run(a, threads);
  return nullptr;
}

const char* loss_and_rank(const LossAndRankArguments& a, int64_t threads) {
  const auto run = a.number == Number::kFloat32 ? run_losses<float> : run_losses<uint16_t>;
  run(a, threads);
  return nullptr;
}

}  // namespace deevo::cpu
