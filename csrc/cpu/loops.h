// The inner loops of trials and commit, compiled once per instruction set and chosen at run time.
#pragma once

#include <cstdint>

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
  bool
      stream;  // write past the caches, where the machine can; `out` lies at a multiple of 64 bytes
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
