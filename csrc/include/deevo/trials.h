// trials: fused mutation and binomial crossover of one weight.
//   v = row[base]; for m in table order: v = v + c[m] (row[idx[m]] - row[base])
//   u = v where the weight's 16 random bits < threshold, else the parent's value.
// Differential evolution of Storn & Price (1997) in the base-plus-differences form, which covers
// trigonometric mutation (Fan & Lampinen 2003). float32, each operation rounded, never contracted.
// Traffic per generation and weight column: NP reads and E writes of the storage type, whatever the
// number of parents, because a tile of all rows stays in fast memory.
#pragma once

#include "deevo/common.h"
#include "deevo/philox.h"
#include "deevo/tables.h"

namespace deevo {

// Storage types: how a weight is widened to float32, rounded back, and recognised as not finite.
struct Float32 {
  using Stored = float;
  static DEEVO_HD float widen(float x) { return x; }
  static DEEVO_HD float round(float x) { return x; }
  static DEEVO_HD bool finite(float x) { return (bits_of(x) & 0x7F800000u) != 0x7F800000u; }
};

struct BFloat16 {
  using Stored = uint16_t;
  static DEEVO_HD float widen(uint16_t x) { return float_of(static_cast<uint32_t>(x) << 16); }
  // To nearest even by integer arithmetic: vcvtneps2bf16 would flush subnormals. A NaN may come out
  // as any pattern with an exponent of all ones or as a carry past it, so it is caught first.
  static DEEVO_HD uint16_t round(float x) {
    const uint32_t bits = bits_of(x);
    const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    const bool special = (bits & 0x7F800000u) == 0x7F800000u;
    return static_cast<uint16_t>(special ? 0x7F80u : rounded);
  }
  static DEEVO_HD bool finite(uint16_t x) { return (x & 0x7F80u) != 0x7F80u; }
};

// The trial's weight from its parent's, the mutant in float32 and whether crossover takes it.
// Beyond nonneg_start a mutant that is not above zero becomes half the parent's value.
template <class S, bool kNonNegative>
DEEVO_HD typename S::Stored trial_weight(typename S::Stored parent, float mutant, bool take) {
  if (kNonNegative) mutant = mutant > 0.0f ? mutant : 0.5f * S::widen(parent);
  const typename S::Stored stored = S::round(mutant);
  return (take & S::finite(stored)) ? stored : parent;
}

}  // namespace deevo
