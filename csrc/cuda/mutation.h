// A vector of a member's trial: mutation, crossover and limits, from rows that the caller loads.
#pragma once

#include "deevo/trials.h"
#include "launch.h"
#include "operators.h"
#include "segments.h"
#include "vectors.h"

namespace deevo::cuda {

// Philox4x32-7 over counters (mask, generation, member, block): what the first three rounds have
// that does not depend on the block, a quarter of all multiplications.
struct MaskStart {
  uint32_t a, b, c, d;
};

// The round keys, which kernels find among their arguments: made anew they would be a seventh of
// the instructions that the bits need.
struct MaskKeys {
  uint32_t low[kMaskRounds], high[kMaskRounds];

  MaskKeys() = default;
  explicit MaskKeys(Key key) {
    for (int round = 0; round < kMaskRounds; ++round) {
      low[round] = key.low + round * 0x9E3779B9u;
      high[round] = key.high + round * 0xBB67AE85u;
    }
  }
};

constexpr uint32_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;

DEEVO_HD uint32_t high(uint64_t x) { return static_cast<uint32_t>(x >> 32); }
DEEVO_HD uint32_t low(uint64_t x) { return static_cast<uint32_t>(x); }
DEEVO_HD uint64_t product(uint32_t a, uint32_t b) { return static_cast<uint64_t>(a) * b; }

DEEVO_HD MaskStart mask_start(uint32_t generation, uint32_t member, const MaskKeys& keys) {
  const uint64_t first = product(kMultiplier1, member);
  const uint32_t c0 = high(first) ^ generation ^ keys.low[0], c3 = kMultiplier0 * kPurposeMask;
  const uint64_t second = product(kMultiplier0, c0);
  const uint64_t third = product(kMultiplier1, high(second) ^ c3 ^ keys.high[1]);
  return {low(first) ^ keys.low[1], high(third) ^ keys.low[2], low(third),
          low(second) ^ keys.high[2]};
}

DEEVO_HD Words mask_words(const MaskStart& start, uint32_t block, const MaskKeys& keys) {
  static_assert(kPurposeMask == 1, "the first round's other product has no high word");
  const uint64_t second = product(kMultiplier1, block ^ keys.high[0]);
  const uint64_t third = product(kMultiplier0, high(second) ^ start.a);
  uint32_t c0 = low(second) ^ start.b, c1 = start.c, c2 = high(third) ^ start.d, c3 = low(third);
  DEEVO_UNROLL
  for (int round = 3; round < kMaskRounds; ++round) {
    const uint64_t product0 = product(kMultiplier0, c0), product1 = product(kMultiplier1, c2);
    c0 = high(product1) ^ c1 ^ keys.low[round];
    c1 = low(product1);
    c2 = high(product0) ^ c3 ^ keys.high[round];
    c3 = low(product0);
  }
  return {{c0, c1, c2, c3}};
}

// One member's plan as kernels read it: five 16-byte loads. A row is what the caller's load()
// takes.
struct alignas(16) Record {
  uint32_t parent, base, rows[kMaxTerms];
  int32_t terms;
  float coefficients[kMaxTerms];
  int32_t threshold, forced, member;
  MaskStart mask;
};
static_assert(sizeof(Record) == 80);

// Checks that memory safety rests on.
DEEVO_DEVICE void check_choice(const int32_t* choice, int64_t rows) {
  const bool bounded = choice[kThreshold] >= 0 && choice[kThreshold] <= 65536;
  DEEVO_CHECK(bounded, "choices hold a bad threshold");
  const bool counted = choice[kTerms] >= 0 && choice[kTerms] <= kMaxTerms;
  DEEVO_CHECK(counted, "choices hold a bad term count");
  for (int m = -1; m < choice[kTerms]; ++m) {
    const int32_t row = choice[m < 0 ? kBaseRow : kRows + m];
    DEEVO_CHECK(row >= 0 && row < rows, "choices name a row that does not exist");
  }
}

DEEVO_DEVICE Segments genes_of(const Generation& g) { return {g.genes, g.num_genes}; }

DEEVO_DEVICE void check_genes(const Generation& g) {
  check_segments(genes_of(g), "genes are not ascending starts of segments, the first at 0");
}

DEEVO_HD bool is_bounded(const Generation& g) {
  return g.bounds.lower > -beyond_storage<Float32>() || g.bounds.upper < beyond_storage<Float32>();
}

// Whether a trial is its parent whatever its mutant is.
DEEVO_DEVICE bool is_idle(const Generation& g, const int32_t* choice) {
  return g.num_genes == 0 && choice[kThreshold] == 0 && choice[kForced] < 0;
}

// row_of(index) turns a row of the population, or of the archive behind it, into what load() takes.
template <class RowOf>
DEEVO_DEVICE Record make_record(const Generation& g, const MaskKeys& keys, int32_t member,
                                const RowOf& row_of) {
  const int32_t* choice = g.choices + static_cast<int64_t>(member) * kChoiceColumns;
  const float* coefficients = g.coefficients + static_cast<int64_t>(member) * kMaxTerms;
  const bool idle = is_idle(g, choice);
  Record r;
  r.member = member;
  r.parent = row_of(member);
  r.base = row_of(idle ? member : choice[kBaseRow]);
  r.terms = idle ? 0 : choice[kTerms];
  DEEVO_UNROLL
  for (int m = 0; m < kMaxTerms; ++m) {
    r.rows[m] = m < r.terms ? row_of(choice[kRows + m]) : r.base;
    r.coefficients[m] = coefficients[m];
  }
  r.threshold = choice[kThreshold];
  r.forced = choice[kForced];
  r.mask =
      mask_start(static_cast<uint32_t>(choice[kGeneration]), static_cast<uint32_t>(member), keys);
  return r;
}

// The vector at `column` of a row in global memory: of the population, or of the archive behind it.
template <class S>
DEEVO_DEVICE Vector row_vector(const Generation& g, uint32_t row, int64_t column, int left,
                               bool wide) {
  const bool in_archive = row >= g.population.count;
  const Rows& of = in_archive ? g.archive : g.population;
  const int64_t index = in_archive ? row - g.population.count : row;
  return load_weights(static_cast<const typename S::Stored*>(of.data) + index * of.stride + column,
                      left, wide);
}

// 16 bits per weight of a vector, two to a word: a weight takes the mutant where they are less than
// the threshold, which is from 1 to 65535.
template <class S>
struct Draws {
  uint32_t words[kWeights<S> / 2];
  uint32_t threshold;

  DEEVO_DEVICE bool taken(int i) const {
    const uint32_t word = words[i / 2];
    return (i % 2 == 0 ? word << 16 : word) < threshold << 16;
  }
};

template <class S>
DEEVO_DEVICE Draws<S> gene_draws(const Generation& g, const Record& r, int64_t flat, int64_t gene) {
  const int32_t* mask = g.gene_mask + r.member * gene_words(g.num_genes);
  const auto next_start = [&] { return segment_end(genes_of(g), gene); };
  const auto bit = [&] { return (static_cast<uint32_t>(mask[gene / 32]) >> (gene % 32)) & 1u; };
  Draws<S> draws;
  draws.threshold = 1;
  int64_t next = next_start();
  uint32_t taken = bit();
  DEEVO_UNROLL
  for (int i = 0; i < kWeights<S>; ++i) {
    while (flat + i >= next) {
      gene += 1;
      next = next_start();
      taken = bit();
    }
    const uint32_t half = taken != 0 ? 0u : 0xFFFFu;
    draws.words[i / 2] = i % 2 == 0 ? half : draws.words[i / 2] | half << 16;
  }
  return draws;
}

// flat: index of the vector's first weight.
template <class S>
DEEVO_DEVICE Draws<S> mask_draws(const MaskKeys& keys, const Record& r, int64_t flat) {
  Draws<S> draws;
  draws.threshold = r.threshold < 1 ? 1u : (r.threshold > 65535 ? 1u : r.threshold);
  if (r.threshold > 0 && r.threshold < 65536) {
    const Words words = mask_words(r.mask, static_cast<uint32_t>(flat >> 3), keys);
    if constexpr (kWeights<S> == 4) {
      const bool second = (flat & 4) != 0;
      draws.words[0] = second ? words.w[2] : words.w[0];
      draws.words[1] = second ? words.w[3] : words.w[1];
    } else {
      for (int i = 0; i < 4; ++i) draws.words[i] = words.w[i];
    }
  } else {
    for (int i = 0; i < kWeights<S> / 2; ++i) draws.words[i] = r.threshold > 0 ? 0u : 0xFFFFFFFFu;
  }
  const uint64_t forced = static_cast<uint64_t>(r.forced - flat);
  if (r.forced >= 0 && forced < static_cast<uint64_t>(kWeights<S>)) {
    DEEVO_UNROLL
    for (int i = 0; i < kWeights<S>; ++i) {
      if (static_cast<uint64_t>(i) == forced)
        draws.words[i / 2] &= i % 2 == 0 ? 0xFFFF0000u : 0xFFFFu;
    }
  }
  return draws;
}

template <class S, int kTerms, class Load>
DEEVO_DEVICE void mutate(const Record& r, const Load& load, float (&v)[kWeights<S>]) {
  float base[kWeights<S>];
  widen<S>(load(r.base), base);
  for (int i = 0; i < kWeights<S>; ++i) v[i] = base[i];
  DEEVO_UNROLL
  for (int m = 0; m < kTerms; ++m) {
    float x[kWeights<S>];
    widen<S>(load(r.rows[m]), x);
    for (int i = 0; i < kWeights<S>; ++i) v[i] = v[i] + r.coefficients[m] * (x[i] - base[i]);
  }
}

// The trial of the weights `flat` to flat + kWeights - 1, whose column is `column`; load(row) gives
// a row's vector there; gene: the first weight's, where there are genes; parent: what
// load(r.parent) gave, for the caller to keep.
template <class S, class Load>
DEEVO_DEVICE Vector trial_vector(const Generation& g, const MaskKeys& keys, const Record& r,
                                 int64_t column, int64_t gene, const Load& load, Vector* parent) {
  float v[kWeights<S>], old[kWeights<S>];
  *parent = load(r.parent);
  switch (r.terms) {
    case 0:
      mutate<S, 0>(r, load, v);
      break;
    case 1:
      mutate<S, 1>(r, load, v);
      break;
    case 2:
      mutate<S, 2>(r, load, v);
      break;
    case 3:
      mutate<S, 3>(r, load, v);
      break;
    case 4:
      mutate<S, 4>(r, load, v);
      break;
    default:
      mutate<S, 5>(r, load, v);
      break;
  }
  const int64_t flat = g.first_weight + column;
  const Draws<S> draws =
      g.num_genes > 0 ? gene_draws<S>(g, r, flat, gene) : mask_draws<S>(keys, r, flat);
  widen<S>(*parent, old);
  if (is_bounded(g) || column + kWeights<S> > g.nonneg_start) {
    for (int i = 0; i < kWeights<S>; ++i) {
      v[i] = column + i >= g.nonneg_start ? limited<Float32, kNonNegative>(old[i], v[i], g.bounds)
                                          : limited<Float32, kBounded>(old[i], v[i], g.bounds);
    }
  }
  for (int i = 0; i < kWeights<S>; ++i) {
    const bool take = fabsf(v[i]) < beyond_storage<S>() && draws.taken(i);
    v[i] = take ? v[i] : old[i];
  }
  return round<S>(v);
}

}  // namespace deevo::cuda
