// tell: what a generation teaches. Greedy selection (a success is trial < parent), SHADE's memories
// by the weighted Lehmer mean, SaDE's strategy odds and the odds of the two sinusoids from success
// windows, archive slots. Only NP numbers move, no weights.
#pragma once

#include "deevo/philox.h"
#include "deevo/plan.h"
#include "deevo/tables.h"

namespace deevo {

struct TellInputs {
  const double* settings;
  const double* strategies;
  int64_t num_strategies;
  const double* trial_fitness;  // [NP]
  const int32_t* choices;       // [NP, kChoiceColumns]
  const double* parameters;     // [NP, kParameterColumns]
  int64_t num_members;
  Key key;
};

struct TellOutputs {
  double* state;
  double* fitness;        // [NP], parents' in, survivors' out; +inf for the dead
  uint8_t* alive;         // [NP]
  int64_t* generation;    // [1], advanced by one
  uint8_t* accepted;      // [NP]
  int32_t* archive_slot;  // [NP], -1: the replaced parent is not kept
  double* improvement;    // [NP], 0 where the trial was rejected
  double* scratch;        // [2 * power_of_two(NP)]
};

DEEVO_HD int64_t power_of_two(int64_t n) {
  int64_t padded = 1;
  while (padded < n) padded *= 2;
  return padded;
}

// Sum in the contract's order: pad with +0 to a power of two, then repeatedly add halves.
DEEVO_HD double halving_sum(double* values, int64_t n) {
  const int64_t padded = power_of_two(n);
  for (int64_t i = n; i < padded; ++i) values[i] = 0.0;
  for (int64_t half = padded / 2; half >= 1; half /= 2) {
    for (int64_t i = 0; i < half; ++i) values[i] = values[i] + values[i + half];
  }
  return values[0];
}

// sum w x^power_a / sum w x^power_b over the successes of strategy k, w scaled to a maximum of 1 so
// that no sum overflows. Lehmer mean: (2, 1); arithmetic mean: (1, 0). Returns false for 0/0.
DEEVO_HD bool weighted_mean(const TellInputs& in, const TellOutputs& out, int64_t k, double largest,
                            int column, bool lehmer, int32_t only_source, double* mean) {
  double* numerator = out.scratch;
  double* denominator = out.scratch + power_of_two(in.num_members);
  for (int64_t i = 0; i < in.num_members; ++i) {
    const int32_t* choice = in.choices + i * kChoiceColumns;
    numerator[i] = 0.0;
    denominator[i] = 0.0;
    if (!out.accepted[i] || choice[kStrategy] != k) continue;
    if (only_source != kSourceNone && choice[kSource] != only_source) continue;
    const double x = in.parameters[i * kParameterColumns + column];
    const double w = out.improvement[i] / largest;
    denominator[i] = lehmer ? w * x : w;
    numerator[i] = denominator[i] * x;
  }
  const double top = halving_sum(numerator, in.num_members);
  const double bottom = halving_sum(denominator, in.num_members);
  if (!(bottom > 0.0)) return false;
  *mean = top / bottom;
  return true;
}

// Selection; improvements that are not finite count as the largest finite one, 1 if there is none.
DEEVO_HD void select(const TellInputs& in, const TellOutputs& out) {
  double largest = 0.0;
  for (int64_t i = 0; i < in.num_members; ++i) {
    const double parent = clean_fitness(out.fitness[i]);
    const double trial = clean_fitness(in.trial_fitness[i]);
    out.accepted[i] = (out.alive[i] != 0) & (trial < parent) ? 1 : 0;
    out.improvement[i] = out.accepted[i] ? parent - trial : 0.0;
    out.fitness[i] = out.accepted[i] ? trial : parent;
    if (is_finite(out.improvement[i]) && out.improvement[i] > largest) {
      largest = out.improvement[i];
    }
  }
  if (!(largest > 0.0)) largest = 1.0;
  for (int64_t i = 0; i < in.num_members; ++i) {
    if (!is_finite(out.improvement[i])) out.improvement[i] = largest;
  }
}

DEEVO_HD void update_memories(const TellInputs& in, const TellOutputs& out, const StateLayout& at,
                              int64_t k) {
  const double* strategy = in.strategies + k * kStrategyColumns;
  const bool linear = strategy[kKind] == 0.0;
  const bool binomial = strategy[kCrossover] != 0.0;
  if (!linear && !binomial) return;
  double largest = 0.0;
  for (int64_t i = 0; i < in.num_members; ++i) {
    const bool mine = in.choices[i * kChoiceColumns + kStrategy] == k;
    if (mine && out.accepted[i] && out.improvement[i] > largest) largest = out.improvement[i];
  }
  if (!(largest > 0.0)) return;

  const int64_t h = static_cast<int64_t>(in.settings[kMemorySize]);
  const int64_t pointer = static_cast<int64_t>(out.state[at.pointer + k]);
  const int64_t slot = pointer * in.num_strategies + k;
  double mean;
  if (linear && weighted_mean(in, out, k, largest, kF, true, kSourceNone, &mean)) {
    out.state[at.memory_f + slot] = mean;
  }
  if (linear && weighted_mean(in, out, k, largest, kFrequency, true, kSourceSinusoid2, &mean)) {
    out.state[at.memory_frequency + slot] = mean;
  }
  if (binomial) {
    const bool lehmer = in.settings[kCRMean] == 0.0;
    const bool valid = weighted_mean(in, out, k, largest, kCR, lehmer, kSourceNone, &mean);
    const bool terminal = lehmer && (!valid || out.state[at.memory_cr + slot] < 0.0);
    if (valid || terminal) out.state[at.memory_cr + slot] = terminal ? -1.0 : mean;
  }
  out.state[at.pointer + k] = static_cast<double>((pointer + 1) % h);
}

DEEVO_HD void update_strategy_odds(const TellInputs& in, const TellOutputs& out,
                                   const StateLayout& at) {
  const int64_t n = in.num_strategies;
  const int64_t period = static_cast<int64_t>(in.settings[kStrategyPeriod]);
  const double floor = in.settings[kOddsFloor];
  double* odds = out.state + at.odds;
  double fixed = 0.0, sum = 0.0;
  for (int64_t k = 0; k < n; ++k) {
    const double own = in.strategies[k * kStrategyColumns + kOddsFixed];
    if (own >= 0.0) {
      odds[k] = own;
      fixed = fixed + own;
      continue;
    }
    double successes = 0.0, failures = 0.0;
    for (int64_t row = 0; row < period; ++row) {
      successes += out.state[at.strategy_window + (row * n + k) * 2];
      failures += out.state[at.strategy_window + (row * n + k) * 2 + 1];
    }
    double score = floor;
    if (successes + failures > 0.0) {
      score = (successes + floor) / (successes + failures + floor);
      if (score < floor) score = floor;
    }
    odds[k] = score;
    sum = sum + score;
  }
  const double share = fixed < 1.0 ? 1.0 - fixed : 0.0;
  for (int64_t k = 0; k < n; ++k) {
    if (in.strategies[k * kStrategyColumns + kOddsFixed] < 0.0) odds[k] = share * (odds[k] / sum);
  }
  for (int64_t pass = 0; pass < n; ++pass) {
    // Strategies above their caps give the excess to the others, pro rata, until none is above.
    double rest = share, below = 0.0;
    bool exceeded = false;
    for (int64_t k = 0; k < n; ++k) {
      const double* strategy = in.strategies + k * kStrategyColumns;
      if (strategy[kOddsFixed] >= 0.0) continue;
      if (odds[k] >= strategy[kOddsCap]) {
        rest = rest - strategy[kOddsCap];
        exceeded = exceeded || odds[k] > strategy[kOddsCap];
      } else {
        below = below + odds[k];
      }
    }
    if (!exceeded || !(below > 0.0)) break;
    const double scale = rest / below;
    for (int64_t k = 0; k < n; ++k) {
      const double* strategy = in.strategies + k * kStrategyColumns;
      if (strategy[kOddsFixed] >= 0.0) continue;
      odds[k] = odds[k] >= strategy[kOddsCap] ? strategy[kOddsCap] : odds[k] * scale;
    }
  }
}

// SaDE's and cnEpSin's success windows, and the odds that follow from them.
DEEVO_HD void update_odds(const TellInputs& in, const TellOutputs& out, const StateLayout& at,
                          int64_t generation) {
  const int64_t n = in.num_strategies;
  const int64_t periods[2] = {static_cast<int64_t>(in.settings[kStrategyPeriod]),
                              static_cast<int64_t>(in.settings[kSinusoidPeriod])};
  double* by_strategy = out.state + at.strategy_window + ((generation - 1) % periods[0]) * n * 2;
  double* by_sinusoid = out.state + at.sinusoid_window + ((generation - 1) % periods[1]) * 4;
  for (int64_t j = 0; j < 2 * n; ++j) by_strategy[j] = 0.0;
  for (int64_t j = 0; j < 4; ++j) by_sinusoid[j] = 0.0;
  for (int64_t i = 0; i < in.num_members; ++i) {
    if (!out.alive[i]) continue;
    const int32_t* choice = in.choices + i * kChoiceColumns;
    const int64_t failed = out.accepted[i] ? 0 : 1;
    by_strategy[choice[kStrategy] * 2 + failed] += 1.0;
    if (choice[kSource] == kSourceSinusoid1) by_sinusoid[failed] += 1.0;
    if (choice[kSource] == kSourceSinusoid2) by_sinusoid[2 + failed] += 1.0;
  }
  if (in.settings[kAdaptStrategies] != 0.0 &&
      generation >= static_cast<int64_t>(in.settings[kAdaptStart])) {
    update_strategy_odds(in, out, at);
  }
  double score[2];
  for (int64_t which = 0; which < 2; ++which) {
    double successes = 0.0, failures = 0.0;
    for (int64_t row = 0; row < periods[1]; ++row) {
      successes += out.state[at.sinusoid_window + row * 4 + which * 2];
      failures += out.state[at.sinusoid_window + row * 4 + which * 2 + 1];
    }
    const double trials = successes + failures;
    score[which] = (trials > 0.0 ? successes / trials : 0.0) + in.settings[kOddsFloor];
  }
  out.state[at.sinusoid1_odds] = score[0] / (score[0] + score[1]);
}

// Free slots first, in member order; then a drawn slot each, the highest member winning it.
DEEVO_HD void assign_archive(const TellInputs& in, const TellOutputs& out, const StateLayout& at,
                             int64_t generation) {
  const int64_t capacity = static_cast<int64_t>(in.settings[kArchiveCapacity]);
  int64_t live = static_cast<int64_t>(out.state[at.archive_count]);
  for (int64_t i = 0; i < in.num_members; ++i) {
    out.archive_slot[i] = -1;
    if (!out.accepted[i] || capacity == 0) continue;
    if (live < capacity) {
      out.archive_slot[i] = static_cast<int32_t>(live++);
      continue;
    }
    const Words words = draw(kPurposeArchive, generation, i, 0, in.key);
    const int32_t slot = static_cast<int32_t>(mulhi(words.w[0], static_cast<uint32_t>(capacity)));
    for (int64_t j = 0; j < i; ++j) {
      if (out.archive_slot[j] == slot) out.archive_slot[j] = -1;
    }
    out.archive_slot[i] = slot;
  }
  out.state[at.archive_count] = static_cast<double>(live);
}

// How many members L-SHADE's linear reduction (Tanabe & Fukunaga 2014), with generations as the
// clock, leaves alive after a generation; all of them without reduction.
DEEVO_HD int64_t population_target(const double* settings, int64_t num_members,
                                   int64_t generation) {
  const double minimum = settings[kPopulationMin], size = static_cast<double>(num_members);
  if (minimum == 0.0) return num_members;
  const double share = static_cast<double>(generation) / settings[kGenerations];
  const double target = nearbyint(size + (minimum - size) * share);
  return static_cast<int64_t>(target < minimum ? minimum : target);
}

// Living members that come before member i: by less fitness, or equal fitness and lower index.
DEEVO_HD int64_t rank_among_living(const double* fitness, const uint8_t* alive, int64_t num_members,
                                   int64_t i) {
  int64_t rank = 0;
  for (int64_t j = 0; j < num_members; ++j) {
    const bool before = fitness[j] < fitness[i] || (fitness[j] == fitness[i] && j < i);
    rank += alive[j] != 0 && before ? 1 : 0;
  }
  return rank;
}

// The worst of the living die. improvement is scratch by now: it keeps the ranks.
DEEVO_HD void reduce_population(const TellInputs& in, const TellOutputs& out, int64_t generation) {
  const int64_t n = in.num_members, target = population_target(in.settings, n, generation);
  if (target < n) {
    for (int64_t i = 0; i < n; ++i) {
      out.improvement[i] = static_cast<double>(rank_among_living(out.fitness, out.alive, n, i));
    }
    for (int64_t i = 0; i < n; ++i) {
      if (out.improvement[i] >= static_cast<double>(target)) out.alive[i] = 0;
    }
  }
  for (int64_t i = 0; i < n; ++i) {
    out.alive[i] = out.alive[i] != 0 ? 1 : 0;
    if (!out.alive[i]) out.fitness[i] = clean_fitness(double_of(0x7FF8000000000000ull));
  }
}

DEEVO_HD void tell_generation(const TellInputs& in, const TellOutputs& out) {
  const StateLayout at(in.settings, in.num_strategies);
  const int64_t generation = *out.generation;
  select(in, out);
  if (in.settings[kAdaptMemories] != 0.0) {
    for (int64_t k = 0; k < in.num_strategies; ++k) update_memories(in, out, at, k);
  }
  update_odds(in, out, at, generation);
  assign_archive(in, out, at, generation);
  reduce_population(in, out, generation);
  *out.generation = generation + 1;
}

}  // namespace deevo
