// trials: fused mutation and binomial crossover of one weight.
//   v = row[base]; for m in table order: v = v + c[m] (row[idx[m]] - row[base])
//   u = v where the weight's 16 random bits < threshold (or its gene's bit is set, or it is the
//   forced one), else the parent's value.
// Differential evolution of Storn & Price (1997) in the base-plus-differences form, which covers
// trigonometric mutation (Fan & Lampinen 2003). float32, each operation rounded, never contracted.
// Traffic per generation and weight column: NP reads and E writes of the storage type, whatever the
// number of parents, because a tile of all rows stays in fast memory.
#pragma once

#include "deevo/common.h"
#include "deevo/number.h"
#include "deevo/philox.h"
#include "deevo/tables.h"

namespace deevo {

// What limits a mutant. A value beyond a limit becomes the middle between it and the parent's:
// bounds as in SHADE (Tanabe & Fukunaga 2013); in the non-negative tail the limit is 0, exclusive.
enum Limit { kUnlimited, kBounded, kNonNegative };

struct Bounds {
  float lower, upper;
};

template <class S, int kLimits>
DEEVO_HD float limited(typename S::Stored parent, float mutant, Bounds bounds) {
  if (kLimits == kNonNegative) return mutant > 0.0f ? mutant : 0.5f * S::widen(parent);
  if (kLimits == kBounded) {
    const float below = 0.5f * (bounds.lower + S::widen(parent));
    const float above = 0.5f * (bounds.upper + S::widen(parent));
    mutant = mutant < bounds.lower ? below : (mutant > bounds.upper ? above : mutant);
  }
  return mutant;
}

// The trial's weight from its parent's, the mutant in float32 and whether crossover takes it.
template <class S, int kLimits>
DEEVO_HD typename S::Stored trial_weight(typename S::Stored parent, float mutant, bool take,
                                         Bounds bounds) {
  mutant = limited<S, kLimits>(parent, mutant, bounds);
  const typename S::Stored stored = S::round(mutant);
  return (take & S::finite(stored)) ? stored : parent;
}

}  // namespace deevo
