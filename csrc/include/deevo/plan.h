// plan: what each member does in a generation. Strategy by roulette over SaDE's odds (Qin et al.
// 2009), F from the ensemble of sinusoids (Awad et al. 2016, 2017) or from SHADE's success-history
// memories (Tanabe & Fukunaga 2013), CR from its memory, distinct parents, and the coefficients of
// v = row[base] + sum_m c[m] (row[idx[m]] - row[base]); trigonometric mutation (Fan & Lampinen
// 2003) has c_k = 4/3 - 3 |f_k| / (|f_1| + |f_2| + |f_3|). A few hundred bytes a member.
#pragma once

#include "deevo/arguments.h"
#include "deevo/exact_math.h"
#include "deevo/philox.h"
#include "deevo/tables.h"

namespace deevo {

struct PlanInputs : Configuration {
  const double* state;
  const double* fitness;   // [NP], NaN already read as +inf by clean_fitness
  const int32_t* living;   // [num_living], the members that are alive, ascending
  const int32_t* by_rank;  // [num_living], from best to worst, equal fitness by lower index
  int64_t num_living;
  int64_t num_valid;  // living members whose fitness is below +inf
  int64_t generation;
};

struct PlanRow {
  int32_t* choices;     // [kChoiceColumns]
  double* parameters;   // [kParameterColumns]
  float* coefficients;  // [kMaxTerms]
};

DEEVO_HD double clean_fitness(double fitness) {
  return fitness == fitness ? fitness : double_of(0x7FF0000000000000ull);
}

DEEVO_HD bool is_finite(double x) {
  return (bits_of(x) & 0x7FF0000000000000ull) != 0x7FF0000000000000ull;
}

DEEVO_HD double clip(double x, double low, double high) {
  return x < low ? low : (x > high ? high : x);
}

// Whether a strategy's terms exist, on which memory safety rests.
DEEVO_HD bool is_usable(const double* strategy) {
  const bool trig = strategy[kKind] != 0.0;
  const double terms = strategy[kNumTerms];
  bool usable = trig ? terms == 2.0 : terms >= 0.0 && terms <= kMaxTerms;
  for (int m = -1; m < kMaxTerms; ++m) {
    const double code = strategy[m < 0 ? kBaseTerm : kTermCodes + m];
    // Trigonometric mutation looks up the losses of its rows, which the archive does not keep.
    usable = usable && code >= 0.0 && code < (trig ? kFromArchive : kNumTermCodes);
  }
  return usable;
}

// Excluded indices, ascending; a free place holds kNobody. Every loop over them has a fixed length.
constexpr int32_t kNobody = 0x7FFFFFFF;

// Inserts a drawn value, which must find a free place; returns the index it stands for: the drawn
// rank among the indices that are not excluded.
template <int kPlaces>
DEEVO_HD int32_t exclude(int32_t drawn, int32_t (&excluded)[kPlaces]) {
  DEEVO_UNROLL
  for (int j = 0; j < kPlaces; ++j) drawn += excluded[j] <= drawn ? 1 : 0;
  int32_t moved = drawn;
  DEEVO_UNROLL
  for (int j = 0; j < kPlaces; ++j) {
    const int32_t here = excluded[j];
    excluded[j] = here < moved ? here : moved;
    moved = here < moved ? moved : here;
  }
  return drawn;
}

// The normal value of the first of 32 attempts inside (0, inf); clipped if there is none.
DEEVO_HD double positive_draw(const PlanInputs& in, int64_t member, Purpose purpose, double mean,
                              double scale, bool cauchy) {
  for (uint32_t attempt = 0; attempt < 32; ++attempt) {
    const double u = uniform(draw(purpose, in.generation, member, attempt, in.key).w[0]);
    const double x = mean + scale * (cauchy ? cauchy_quantile(u) : normal_quantile(u));
    if (x > 0.0) return x;
  }
  return 0.0;
}

DEEVO_HD int32_t roulette(double u, const double* odds, int64_t n) {
  double cumulative = 0.0;
  int32_t last = 0;
  for (int64_t k = 0; k < n; ++k) {
    if (!(odds[k] > 0.0)) continue;
    cumulative = cumulative + odds[k];
    last = static_cast<int32_t>(k);
    if (u < cumulative) return last;
  }
  return last;
}

DEEVO_HD double sinusoid1_probability(const PlanInputs& in, const StateOffsets& at) {
  const int mode = static_cast<int>(in.settings[kSinusoidMode]);
  if (mode == 1) return 1.0;
  if (mode == 2) return 0.0;
  if (in.generation <= static_cast<int64_t>(in.settings[kSinusoidPeriod])) return 0.5;
  return in.state[at.sinusoid1_odds];
}

// F, frequency and their source for a linear strategy.
DEEVO_HD int32_t plan_f(const PlanInputs& in, const StateOffsets& at, int64_t member,
                        uint32_t sinusoid_word, int64_t slot, double* f, double* frequency) {
  const double* s = in.settings;
  const double g = static_cast<double>(in.generation);
  int32_t source = kSourceMemory;
  if (static_cast<int>(s[kSinusoidMode]) != 3 && g < s[kSwitchGeneration]) {
    const double horizon = s[kGenerations];
    if (uniform(sinusoid_word) < sinusoid1_probability(in, at)) {
      source = kSourceSinusoid1;
      *f = s[kFInit] * (sin2pi(s[kSinusoid1Frequency] * g + 0.5) * ((horizon - g) / horizon) + 1.0);
    } else {
      source = kSourceSinusoid2;
      const double drawn =
          positive_draw(in, member, kPurposeFrequency, in.state[at.memory_frequency + slot],
                        s[kFrequencyStd], false);
      *frequency = drawn > 1.0 ? 1.0 : drawn;
      *f = s[kFInit] * (sin2pi(*frequency * g) * (g / horizon) + 1.0);
    }
  } else if (static_cast<int>(s[kFDistribution]) == 1) {
    *f = positive_draw(in, member, kPurposeF, in.state[at.memory_f + slot], s[kFStd], true);
  } else {
    const Words words = draw(kPurposeF, in.generation, member, 0, in.key);
    *f = in.state[at.memory_f + slot] + s[kFStd] * normal_quantile(uniform(words.w[0]));
  }
  *f = clip(*f, s[kFMin], s[kFMax]);
  return source;
}

// Row of each term code for the member living[position]; random rows are drawn among the living.
DEEVO_HD void draw_parents(const PlanInputs& in, const StateOffsets& at, int64_t member,
                           int32_t position, int32_t (&row_of)[kNumTermCodes]) {
  const int32_t n = static_cast<int32_t>(in.num_living);
  const int32_t target = static_cast<int32_t>(member);
  const Words first = draw(kPurposeParents, in.generation, member, 0, in.key);
  const Words second = draw(kPurposeParents, in.generation, member, 1, in.key);
  const uint32_t word[5] = {first.w[0], first.w[1], first.w[2], first.w[3], second.w[0]};

  row_of[kTarget] = target;
  int32_t excluded[6] = {position, kNobody, kNobody, kNobody, kNobody, kNobody};
  int32_t first_position = position;
  DEEVO_UNROLL
  for (int r = 0; r < 5; ++r) {  // a pool that needs more parents than there are is refused earlier
    row_of[kR1 + r] = target;
    if (n <= r + 1) continue;
    const int32_t drawn = exclude(static_cast<int32_t>(mulhi(word[r], n - (r + 1))), excluded);
    row_of[kR1 + r] = in.living[drawn];
    if (r == 0) first_position = drawn;
  }

  int32_t best = in.by_rank[0];
  if (in.settings[kBestExcludesTarget] != 0.0 && best == target && in.num_valid != 1) {
    best = in.by_rank[1];
  }
  row_of[kBest] = best;

  const double p = in.settings[kPBestMin] +
                   (in.settings[kPBestMax] - in.settings[kPBestMin]) * uniform(second.w[3]);
  int64_t candidates = static_cast<int64_t>(nearbyint(n * p));
  candidates = candidates < 1 ? 1 : (candidates > n ? n : candidates);
  if (in.num_valid > 0 && candidates > in.num_valid) candidates = in.num_valid;
  row_of[kPBest] = in.by_rank[mulhi(second.w[2], static_cast<uint32_t>(candidates))];

  const int32_t with_archive = n + static_cast<int32_t>(in.state[at.archive_count]);
  int32_t taken[3] = {position, kNobody, kNobody};
  int count = 1;
  if (first_position != position) {
    exclude(first_position - (first_position > position ? 1 : 0), taken);
    count = 2;
  }
  row_of[kFromArchive] = target;
  if (with_archive > count) {
    const int32_t drawn =
        exclude(static_cast<int32_t>(mulhi(second.w[1], with_archive - count)), taken);
    const int32_t archive_start = static_cast<int32_t>(in.num_members);
    row_of[kFromArchive] = drawn < n ? in.living[drawn] : archive_start + (drawn - n);
  }
}

// The row of a term by its code.
DEEVO_HD int32_t row_for(const int32_t (&row_of)[kNumTermCodes], double term) {
  const int code = static_cast<int>(term);
  int32_t row = row_of[0];
  DEEVO_UNROLL
  for (int c = 1; c < kNumTermCodes; ++c) row = code == c ? row_of[c] : row;
  return row;
}

// c_k = 4/3 - 3 p_k for the three parents. All losses 0: 1/3 each. A sum that is not finite: equal
// shares for the finite parents, none for the others.
DEEVO_HD void trigonometric(const PlanInputs& in, const int32_t* rows, double* c) {
  const double offset = in.settings[kTrigOffset] != 0.0 ? in.fitness[in.by_rank[0]] : 0.0;
  double cost[3];
  DEEVO_UNROLL
  for (int k = 0; k < 3; ++k) {
    cost[k] = in.fitness[rows[k]] - offset;
    if (cost[k] < 0.0) cost[k] = -cost[k];
  }
  const double total = (cost[0] + cost[1]) + cost[2];
  if (is_finite(total) && total > 0.0) {
    DEEVO_UNROLL
    for (int k = 0; k < 3; ++k) c[k] = 4.0 / 3.0 - 3.0 * (cost[k] / total);
    return;
  }
  int finite = 0;
  DEEVO_UNROLL
  for (int k = 0; k < 3; ++k) finite += is_finite(cost[k]) ? 1 : 0;
  DEEVO_UNROLL
  for (int k = 0; k < 3; ++k) {
    c[k] = finite == 0 ? 1.0 / 3.0 : (is_finite(cost[k]) ? 1.0 / finite : 0.0);
  }
}

// j_rand: the weight or gene that takes the mutant whatever CR says; -1: none.
DEEVO_HD int32_t forced_mutant(const Configuration& c, int64_t generation, int64_t member,
                               bool binomial) {
  const uint32_t candidates = static_cast<uint32_t>(c.settings[kJRandRange]);
  if (candidates == 0 || !binomial) return -1;
  const Words words = draw(kPurposeJRand, generation, member, 0, c.key);
  return static_cast<int32_t>(mulhi(words.w[0], candidates));
}

// Word `word` of a member's gene mask: bit k says whether gene 32 word + k takes the mutant.
DEEVO_HD uint32_t gene_mask_word(int64_t word, int64_t genes, int64_t generation, int64_t member,
                                 int32_t threshold, int32_t forced, Key key) {
  uint32_t bits = 0;
  DEEVO_UNROLL
  for (int b = 0; b < 4; ++b) {
    const Words drawn = philox4x32<kMaskRounds>(kPurposeGeneMask, static_cast<uint32_t>(generation),
                                                static_cast<uint32_t>(member),
                                                static_cast<uint32_t>(word * 4 + b), key);
    DEEVO_UNROLL
    for (int k = 0; k < 8; ++k) {
      const int32_t draw16 = static_cast<int32_t>((drawn.w[k / 2] >> (k % 2 * 16)) & 0xFFFFu);
      bits |= (draw16 < threshold ? 1u : 0u) << (8 * b + k);
    }
  }
  if (forced >= 0 && forced / 32 == word) bits |= 1u << (forced % 32);
  const int64_t left = genes - word * 32;
  return left >= 32 ? bits : bits & ((1u << left) - 1u);
}

// The plan of a member that population reduction has taken out: its trial is itself.
DEEVO_HD void plan_dead(const PlanInputs& in, int64_t member, PlanRow out) {
  for (int c = 0; c < kChoiceColumns; ++c) out.choices[c] = 0;
  out.choices[kGeneration] = static_cast<int32_t>(in.generation);
  out.choices[kForced] = -1;
  for (int m = -1; m < kMaxTerms; ++m) {
    out.choices[m < 0 ? kBaseRow : kRows + m] = static_cast<int32_t>(member);
  }
  for (int c = 0; c < kParameterColumns; ++c) out.parameters[c] = 0.0;
  for (int m = 0; m < kMaxTerms; ++m) out.coefficients[m] = 0.0f;
}

// The plan of the member living[position]. Returns its forced gene, -1 for none; the gene mask is
// the caller's to draw, since its words can be drawn beside each other.
DEEVO_HD int32_t plan_member(const PlanInputs& in, int64_t position, PlanRow out) {
  const int64_t member = in.living[position];
  const StateOffsets at(in.settings, in.num_strategies);
  const double* s = in.settings;
  const Words chance = draw(kPurposeChoice, in.generation, member, 0, in.key);
  const double u = uniform(draw(kPurposeChoice, in.generation, member, 1, in.key).w[0]);

  const int32_t k = roulette(uniform(chance.w[0]), in.state + at.odds, in.num_strategies);
  const double* strategy = in.strategies + static_cast<int64_t>(k) * kStrategyColumns;
  const bool trig = strategy[kKind] != 0.0;
  const bool binomial = strategy[kCrossover] != 0.0;

  const uint32_t h = static_cast<uint32_t>(s[kMemorySize]);
  const int64_t slot = static_cast<int64_t>(mulhi(chance.w[2], h)) * in.num_strategies + k;
  const int64_t cr_slot = static_cast<int64_t>(mulhi(chance.w[3], h)) * in.num_strategies + k;

  double f = 0.0, frequency = 0.0, cr = 1.0;
  int32_t source = kSourceNone;
  if (!trig) source = plan_f(in, at, member, chance.w[1], slot, &f, &frequency);
  if (binomial) {
    const double mean = in.state[at.memory_cr + cr_slot];
    const Words words = draw(kPurposeCR, in.generation, member, 0, in.key);
    // A negative memory is L-SHADE's terminal value: CR = 0 from then on.
    cr = mean < 0.0
             ? 0.0
             : clip(mean + s[kCRStd] * normal_quantile(uniform(words.w[0])), s[kCRMin], s[kCRMax]);
  }

  int32_t row_of[kNumTermCodes];
  draw_parents(in, at, member, static_cast<int32_t>(position), row_of);
  const int terms = static_cast<int>(strategy[kNumTerms]);
  const int32_t base = row_for(row_of, strategy[kBaseTerm]);
  double trig_c[3] = {0.0, 0.0, 0.0};
  if (trig) {
    const int32_t rows[3] = {base, row_for(row_of, strategy[kTermCodes]),
                             row_for(row_of, strategy[kTermCodes + 1])};
    trigonometric(in, rows, trig_c);
  }
  DEEVO_UNROLL
  for (int m = 0; m < kMaxTerms; ++m) {
    const double* a = strategy + kTermCoefficients + 4 * m;
    const double c =
        trig ? (m < 2 ? trig_c[m + 1] : 0.0) : ((a[0] + a[1] * f) + a[2] * u) + a[3] * (f * u);
    out.choices[kRows + m] = m < terms ? row_for(row_of, strategy[kTermCodes + m]) : base;
    out.coefficients[m] = m < terms ? static_cast<float>(c) : 0.0f;
  }

  int32_t threshold = 65536;
  if (binomial) {
    threshold = static_cast<int32_t>(nearbyint(cr * 65536.0));
    if (threshold < 1 && cr > 0.0) threshold = 1;
  }
  out.choices[kGeneration] = static_cast<int32_t>(in.generation);
  out.choices[kStrategy] = k;
  out.choices[kSource] = source;
  out.choices[kThreshold] = threshold;
  out.choices[kTerms] = terms;
  out.choices[kBaseRow] = base;
  out.parameters[kF] = f;
  out.parameters[kCR] = cr;
  out.parameters[kFrequency] = frequency;
  out.parameters[kU] = u;

  const int32_t forced = forced_mutant(in, in.generation, member, binomial);
  const bool genes = s[kGenes] != 0.0;
  out.choices[kForced] = genes ? -1 : forced;
  return genes ? forced : -1;
}

}  // namespace deevo
