// The inner loops of the operators over weights and features, compiled once per instruction set and
// chosen at run time.
#pragma once

#include <cstdint>
#include <tuple>
#include <type_traits>

#include "deevo/compose.h"
#include "deevo/head.h"
#include "deevo/number.h"
#include "deevo/trials.h"

namespace deevo::cpu {

// Columns of one call of the loops.
constexpr int64_t kPiece = 2048;

// Which weights of a piece take the mutant: bit j % 64 of word j / 64 for weight j. Its bytes are
// those of a little-endian machine's words.
static_assert(kPiece % 128 == 0);
using Mask = uint64_t[kPiece / 64];

// Pointers to one span of columns in the rows that a trial is made of.
template <class S>
struct Span {
  const typename S::Stored* parent;
  const typename S::Stored* base;
  const typename S::Stored* rows[kMaxTerms];
  const float* coefficients;
  int terms;
  const uint64_t* mask;
  Bounds bounds;      // of the columns before the non-negative tail
  const char* fetch;  // the first of `fetch_lines` cache lines to be fetched into L2 on the way
  int64_t fetch_lines;
  bool stream;  // write past the caches where the machine can: `out` is at a multiple of 64 bytes
};

template <class S>
using Trial = void (*)(const Span<S>& span, typename S::Stored* out, int64_t size, int64_t nonneg);

// Rows of one call of `products`.
constexpr int64_t kMostSamples = 32, kMostClasses = 8;

// to[i] = from[i] factor, widened and rounded as in number.h.
using Scale = void (*)(const void* from, void* to, int64_t count, float factor);

// Types of numbers are counted as Number does: float32, bfloat16, float16.
struct EvaluationLoops {
  Scale scale[3][3];  // by source, then target
  void (*widen[3])(const void* from, float* to, int64_t count);
  // Means of features [positions, channels] over positions, which are added in order.
  void (*pool[3])(const void* features, int64_t positions, int64_t channels, float* pooled);
  // out[n * stride + j] = x[n] . w[j], rows of `channels`, a multiple of kHeadLanes, at most
  // kMostSamples of x and kMostClasses of w: lane l adds channels l, l + 16, ... in order, then
  // lanes are added by halves.
  void (*products)(const float* x, int64_t samples, const float* w, int64_t classes,
                   int64_t channels, float* out, int64_t stride);
  // bits: gap_bits(classes). Only `finite` counts if a logit is not finite.
  LossSums (*sum_losses)(const float* logits, int64_t classes, int64_t label, int bits);
};

// Recipes that compose makes rows of, or candidates that linear_scores scores, at the same time;
// columns of such scores.
constexpr int kMostTogether = 8, kColumnsTogether = 32;

// Recipes of one block, over a tile of columns.
struct Mixture {
  const void* base;         // member 0
  const void* const* rows;  // [terms], the other members that have a coefficient
  int64_t terms;
  const float* coefficients;  // [terms, kMostTogether]
  int recipes;
  bool dense;  // no coefficient of them is 0
  float* out;  // [kMostTogether, stride]: all may be written, whatever `recipes` is
  int64_t stride;
};

// For compose and linear_scores; in their rows and buffers there is room for a register beyond the
// last column.
struct RecipeLoops {
  // out[k, j] = base[j] + sum over m in order of coefficients[m, k] (rows[m, j] - base[j])
  void (*mix[3])(const Mixture& x, int64_t begin, int64_t end);
  // least[j] = row[j] where that is less
  void (*lessen[3])(const void* row, float* least, int64_t count);
  // v[j] = half of least[j] where v[j] is not > 0
  void (*lift)(const float* least, float* v, int64_t count);
  // to[j] = v[j] rounded, or base[j] where that is not finite; streaming: past the caches, where
  // the machine can, and `to` lies at a multiple of 64 bytes.
  void (*settle[3])(const float* v, const void* base, void* to, int64_t count, bool streaming);
  // out[k, j] = x[0, j] + sum over i in order of c[i, k] x[i + 1, j]: kColumnsTogether columns of
  // kMostTogether candidates; the rows of x and of out are so many floats apart.
  void (*accumulate)(const float* x, int64_t x_stride, const float* c, int64_t terms, float* out,
                     int64_t out_stride);
};

// A set of loops; all sets give the same bits.
struct Loops {
  const char* name;
  bool (*supported)();
  // The masks of `words` times 64 weights, from block `first_block` on: draw < threshold, which is
  // 1..65536. Writes pairs of words.
  void (*draw_mask)(uint64_t* mask, int64_t words, int64_t first_block, int64_t generation,
                    int64_t member, Key key, int32_t threshold);
  // Columns [0, nonneg) of the span, then [nonneg, size) under the rule for the non-negative tail.
  std::tuple<Trial<Float32>, Trial<BFloat16>, Trial<Float16>> trials;
  EvaluationLoops evaluation;
  RecipeLoops recipes;
};

extern const Loops kBaselineLoops;
#if defined(__x86_64__)
extern const Loops kAvx2Loops;
extern const Loops kAvx512Loops;
#endif

// The fastest set that this machine supports, or the one chosen by use_loops.
const Loops& loops();
// Chooses a set by name for the whole process, "" for the fastest; false if it cannot run here.
bool use_loops(const char* name);

}  // namespace deevo::cpu
