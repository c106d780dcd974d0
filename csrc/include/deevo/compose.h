// compose: rows from recipes, a weight of each from the members' weights and its block's
// coefficients.
//   v = x_0; for m in 1..M-1 in order, where a[m] is not 0: v = v + a[m] (x_m - x_0)
// The coefficients of a block add up to 1, so this is the weighted sum of the members, in the form
// whose fixed points are rows of equal members: a weighted average of weights, one weighting a
// block, as in model soups (Wortsman et al. 2022) and learned merging coefficients (Yang et al.,
// "AdaMerging", ICLR 2024). float32, each operation rounded, never contracted.
//   In the non-negative tail v becomes half the least of the members' weights where it is not > 0.
//   What is not finite, once rounded to storage, becomes x_0.
// Traffic per weight column: M reads and K writes of the storage type, because a tile of all
// members stays in fast memory.
#pragma once

#include "deevo/common.h"
#include "deevo/number.h"

namespace deevo {

// The least magnitude, as the bits of a float, that storage rounds to infinity.
template <class S>
struct Overflow;
template <>
struct Overflow<Float32> {
  static constexpr int32_t kFrom = 0x7F800000;
};
template <>
struct Overflow<BFloat16> {
  static constexpr int32_t kFrom = 0x7F7F8000;  // a tie, whose even neighbour is infinity
};
template <>
struct Overflow<Float16> {
  static constexpr int32_t kFrom = 0x477FF000;  // likewise
};

}  // namespace deevo
