// The inner loops of trials and commit, compiled once per instruction set and chosen at run time.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "deevo/trials.h"

namespace deevo::cpu {

// Pointers to one span of columns in the rows that a trial is made of.
template <class S>
struct Span {
  const typename S::Stored* parent;
  const typename S::Stored* base;
  const typename S::Stored* rows[kMaxTerms];
  const float* coefficients;
  int terms;
  const uint16_t* draws;  // null: every weight takes the mutant
  int32_t threshold;
  Bounds bounds;  // of the columns before the non-negative tail
};

// mask_draws writes whole batches of this many blocks: its output needs room for them.
constexpr int kDrawBlocks = 8;

// A set of loops; all sets give the same bits.
struct Loops {
  const char* name;
  bool (*supported)();
  // The 16-bit draws of `blocks` consecutive mask blocks: 8 weights each, low half of a word first.
  void (*mask_draws)(uint16_t* draws, int64_t first_block, int64_t blocks, int64_t generation,
                     int64_t member, Key key);
  // Columns [0, nonneg) of the span, then [nonneg, size) under the rule for the non-negative tail.
  void (*trial_float32)(const Span<Float32>& span, float* out, int64_t size, int64_t nonneg);
  void (*trial_bfloat16)(const Span<BFloat16>& span, uint16_t* out, int64_t size, int64_t nonneg);
  void (*trial_float16)(const Span<Float16>& span, uint16_t* out, int64_t size, int64_t nonneg);

  void trial(const Span<Float32>& span, float* out, int64_t size, int64_t nonneg) const {
    trial_float32(span, out, size, nonneg);
  }
  void trial(const Span<BFloat16>& span, uint16_t* out, int64_t size, int64_t nonneg) const {
    trial_bfloat16(span, out, size, nonneg);
  }
  void trial(const Span<Float16>& span, uint16_t* out, int64_t size, int64_t nonneg) const {
    trial_float16(span, out, size, nonneg);
  }
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
