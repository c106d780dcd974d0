// One member's trial over one column tile, which trials and commit share. The caller keeps the
// tile's rows in the core's L2 cache.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "deevo/trials.h"
#include "loops.h"
#include "operators.h"

namespace deevo::cpu {

// Columns per tile: a multiple of 8 (a mask block), small enough that the tile's rows stay in L2.
inline int64_t tile_columns(int64_t rows, int64_t bytes_per_weight) {
  constexpr int64_t kBudget = 512 * 1024;
  constexpr int64_t kLargest = 4096, kSmallest = 64;
  const int64_t fitting = kBudget / (rows * bytes_per_weight) / 64 * 64;
  return std::clamp(fitting, kSmallest, kLargest);
}

// The trial of `member` in columns [begin, begin + size). row_at(i) points to column `begin` of
// row i; draws is scratch for `size` rounded up to whole blocks.
template <class S, class RowAt>
void trial_tile(const Generation& g, int64_t member, int64_t begin, int64_t size,
                const RowAt& row_at, uint16_t* draws, typename S::Stored* out) {
  using Stored = typename S::Stored;
  const int32_t* choice = g.choices + member * kChoiceColumns;
  const Stored* parent = row_at(static_cast<int32_t>(member));
  const int32_t threshold = choice[kThreshold];
  if (threshold == 0) {
    std::memcpy(out, parent, size * sizeof(Stored));
    return;
  }
  const Loops& kernel = loops();
  Span<S> span = {parent,        row_at(choice[kBaseRow]), {},
                  g.coefficients + member * kMaxTerms, choice[kTerms], nullptr, threshold};
  for (int m = 0; m < choice[kTerms]; ++m) span.rows[m] = row_at(choice[kRows + m]);
  if (threshold < 65536) {
    kernel.mask_draws(draws, (g.first_weight + begin) / 8, (size + 7) / 8, choice[kGeneration],
                      member, g.key);
    span.draws = draws;
  }
  kernel.trial(span, out, size, std::clamp<int64_t>(g.nonneg_start - begin, 0, size));
}

// Checks that memory safety rests on; null when the member's choices are usable.
inline const char* check_choice(const Generation& g, int64_t member) {
  if (member < 0 || member >= g.population.count) return "members name a row that does not exist";
  const int32_t* choice = g.choices + member * kChoiceColumns;
  if (choice[kThreshold] < 0 || choice[kThreshold] > 65536) return "choices hold a bad threshold";
  if (choice[kTerms] < 0 || choice[kTerms] > kMaxTerms) return "choices hold a bad term count";
  for (int m = -1; m < choice[kTerms]; ++m) {
    const int32_t row = choice[m < 0 ? kBaseRow : kRows + m];
    if (row < 0 || row >= g.population.count + g.archive.count) {
      return "choices name a row that does not exist";
    }
  }
  return nullptr;
}

}  // namespace deevo::cpu
