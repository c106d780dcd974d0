// linear_scores on the CPU: losses of many candidates from a linear model of their logits,
//   z[p, i] = z0[i] + sum over k in order of c[p, k] J[k, i],
// float32, each operation rounded, then loss and rank as in deevo/head.h, the class of the largest
// logit, the lowest of equals, and its probability. No logit's bits depend on how candidates,
// images or threads are dealt out, or on the instruction set.
// Traffic: J read once; a block of images at a time has its logits of all candidates in L2.
// Products: P d n C multiplications and as many additions, from L1.
#include <algorithm>
#include <vector>

#include "deevo/head.h"
#include "loops.h"
#include "operators.h"
#include "threads.h"

namespace deevo::cpu {
namespace {

constexpr int64_t kStrip = 128;  // columns of J that are widened together, for all candidates
constexpr int64_t kRoom = 32;    // registers may be written whole beyond the last column

int64_t groups_of(const LinearScoresArguments& a) {
  return (a.l.losses.count + kMostTogether - 1) / kMostTogether;
}

// [groups, directions, kMostTogether]; missing candidates are 0.
std::vector<float> grouped(const LinearScoresArguments& a) {
  std::vector<float> out(groups_of(a) * a.directions * kMostTogether);
  for (int64_t p = 0; p < a.l.losses.count; ++p) {
    float* group = out.data() + p / kMostTogether * a.directions * kMostTogether;
    for (int64_t k = 0; k < a.directions; ++k) {
      group[k * kMostTogether + p % kMostTogether] = a.coefficients[p * a.directions + k];
    }
  }
  return out;
}

// The logits of columns [first, first + count) of all candidates, `stride` apart.
template <class Stored>
void logits_of(const LinearScoresArguments& a, const float* coefficients, int64_t first,
               int64_t count, std::vector<float>& strip, float* logits, int64_t stride) {
  constexpr int64_t kWide = kStrip + kRoom;
  const auto widen = loops().evaluation.widen[static_cast<int>(a.number)];
  const int64_t groups = groups_of(a);
  strip.resize((a.directions + 1) * kWide);
  for (int64_t at = 0; at < count; at += kStrip) {
    const int64_t size = std::min(kStrip, count - at);
    std::copy_n(a.z0 + first + at, size, strip.data());
    for (int64_t k = 0; k < a.directions; ++k) {
      const Stored* row = static_cast<const Stored*>(a.slopes.data) + k * a.slopes.stride;
      widen(row + first + at, strip.data() + (k + 1) * kWide, size);
      for (int64_t line = 0; line < kStrip; line += 64 / int64_t{sizeof(Stored)}) {
        __builtin_prefetch(row + first + at + kStrip + line, 0, 2);
      }
    }
    for (int64_t i = 0; i < size; i += kColumnsTogether) {
      for (int64_t g = 0; g < groups; ++g) {
        loops().recipes.accumulate(strip.data() + i, kWide,
                                   coefficients + g * a.directions * kMostTogether, a.directions,
                                   logits + g * kMostTogether * stride + at + i, stride);
      }
    }
  }
}

// What is said of one candidate and image.
void finish(const LinearScoresArguments& a, const float* z, int64_t candidate, int64_t image) {
  const Losses& l = a.l;
  const int64_t label = l.labels[image];
  const LossSums sums = loops().evaluation.sum_losses(z, l.classes, label, gap_bits(l.classes));
  store_loss(l, candidate, image, sums, z[label]);
  const auto at = [&](const Rows& rows) { return candidate * rows.stride + image; };
  const int32_t rank = static_cast<const int32_t*>(l.ranks.data)[at(l.ranks)];
  int32_t& predicted = static_cast<int32_t*>(a.predicted.data)[at(a.predicted)];
  float& probability = static_cast<float*>(a.probability.data)[at(a.probability)];
  if (rank == l.classes) {  // no loss that is finite
    predicted = -1;
    probability = 0.0f;
    return;
  }
  predicted = static_cast<int32_t>(std::find(z, z + l.classes, sums.largest) - z);
  probability = static_cast<float>(0x1p40 / static_cast<double>(sums.exponentials));
}

template <class Stored>
void run(const LinearScoresArguments& a, int64_t threads) {
  constexpr int64_t kBudget = 512 * 1024;
  const Losses& l = a.l;
  const std::vector<float> coefficients = grouped(a);
  const int64_t rows = groups_of(a) * kMostTogether;
  const int64_t share = (l.samples + threads - 1) / threads;
  const int64_t fitting = kBudget / (rows * l.classes * int64_t{sizeof(float)});
  const int64_t block = std::clamp<int64_t>(fitting, 1, share);
  const int64_t stride = block * l.classes + kRoom;
  std::vector<std::vector<float>> strips(threads), logits(threads);
  parallel_for((l.samples + block - 1) / block, threads, [&](int64_t worker, int64_t item) {
    std::vector<float>& z = logits[worker];
    z.resize(rows * stride);
    const int64_t first = item * block, images = std::min(block, l.samples - first);
    logits_of<Stored>(a, coefficients.data(), first * l.classes, images * l.classes, strips[worker],
                      z.data(), stride);
    for (int64_t p = 0; p < l.losses.count; ++p) {
      for (int64_t n = 0; n < images; ++n) {
        finish(a, z.data() + p * stride + n * l.classes, p, first + n);
      }
    }
  });
}

}  // namespace

const char* linear_scores(const LinearScoresArguments& a, int64_t threads) {
  if (a.l.losses.count == 0 || a.l.samples == 0) return nullptr;
  const auto run_it = a.number == Number::kFloat32 ? run<float> : run<uint16_t>;
  run_it(a, threads);
  return nullptr;
}

}  // namespace deevo::cpu
