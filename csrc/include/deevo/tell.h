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

// The weighted means that a strategy's successes leave in its memories.
enum Mean { kMeanF, kMeanFrequency, kMeanCR, kNumMeans };

struct MeanTerm {
  double numerator, denominator;
};

// A member's part in a mean of strategy k, sum w x^(b+1) / sum w x^b over the successes, with b = 1
// for a Lehmer mean and 0 for an arithmetic one. w is the improvement scaled to a maximum of 1, so
// that no sum overflows. Frequencies are taught by successes of the second sinusoid alone.
DEEVO_HD MeanTerm mean_term(const TellInputs& in, Mean which, int64_t k, int64_t member,
                            bool accepted, double improvement, double largest) {
  const int32_t* choice = in.choices + member * kChoiceColumns;
  const bool counts = accepted && choice[kStrategy] == k &&
                      (which != kMeanFrequency || choice[kSource] == kSourceSinusoid2);
  if (!counts) return {0.0, 0.0};
  const int column = which == kMeanF ? kF : (which == kMeanFrequency ? kFrequency : kCR);
  const bool lehmer = which != kMeanCR || in.settings[kCRMean] == 0.0;
  const double x = in.parameters[member * kParameterColumns + column];
  const double w = improvement / largest;
  const double denominator = lehmer ? w * x : w;
  return {denominator * x, denominator};
}

// Whether strategy k has the parameter that a mean is of.
DEEVO_HD bool has_mean(const TellInputs& in, Mean which, int64_t k) {
  const double* strategy = in.strategies + k * kStrategyColumns;
  return which == kMeanCR ? strategy[kCrossover] != 0.0 : strategy[kKind] == 0.0;
}

// Writes a mean of strategy k, given by its sums, into the slot that the pointer names.
DEEVO_HD void remember(const TellInputs& in, const StateLayout& at, Mean which, int64_t k,
                       MeanTerm sums, double* state) {
  const int64_t slot = static_cast<int64_t>(state[at.pointer + k]) * in.num_strategies + k;
  const bool valid = sums.denominator > 0.0;
  const double mean = sums.numerator / sums.denominator;
  if (which == kMeanF && valid) state[at.memory_f + slot] = mean;
  if (which == kMeanFrequency && valid) state[at.memory_frequency + slot] = mean;
  if (which == kMeanCR) {
    const bool lehmer = in.settings[kCRMean] == 0.0;
    const bool terminal = lehmer && (!valid || state[at.memory_cr + slot] < 0.0);
    if (valid || terminal) state[at.memory_cr + slot] = terminal ? -1.0 : mean;
  }
}

DEEVO_HD void advance_pointer(const TellInputs& in, const StateLayout& at, int64_t k,
                              double* state) {
  const int64_t pointer = static_cast<int64_t>(state[at.pointer + k]);
  const int64_t h = static_cast<int64_t>(in.settings[kMemorySize]);
  state[at.pointer + k] = static_cast<double>((pointer + 1) % h);
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
  if (!has_mean(in, kMeanF, k) && !has_mean(in, kMeanCR, k)) return;
  double largest = 0.0;
  for (int64_t i = 0; i < in.num_members; ++i) {
    const bool mine = in.choices[i * kChoiceColumns + kStrategy] == k;
    if (mine && out.accepted[i] && out.improvement[i] > largest) largest = out.improvement[i];
  }
  if (!(largest > 0.0)) return;
  double* numerator = out.scratch;
  double* denominator = out.scratch + power_of_two(in.num_members);
  for (int which = 0; which < kNumMeans; ++which) {
    if (!has_mean(in, static_cast<Mean>(which), k)) continue;
    for (int64_t i = 0; i < in.num_members; ++i) {
      const MeanTerm term = mean_term(in, static_cast<Mean>(which), k, i, out.accepted[i] != 0,
                                      out.improvement[i], largest);
      numerator[i] = term.numerator;
      denominator[i] = term.denominator;
    }
    const MeanTerm sums = {halving_sum(numerator, in.num_members),
                           halving_sum(denominator, in.num_members)};
    remember(in, at, static_cast<Mean>(which), k, sums, out.state);
  }
  advance_pointer(in, at, k, out.state);
}

// Entry `entry` of a window [period, entries], summed over its rows: counts, so in any order.
DEEVO_HD double window_total(const double* window, int64_t period, int64_t entries, int64_t entry) {
  double total = 0.0;
  for (int64_t row = 0; row < period; ++row) total += window[row * entries + entry];
  return total;
}

// total(entry): that window entry's sum over the period.
template <class Total>
DEEVO_HD void update_strategy_odds(const TellInputs& in, const StateLayout& at, double* state,
                                   const Total& total) {
  const int64_t n = in.num_strategies;
  const double floor = in.settings[kOddsFloor];
  double* odds = state + at.odds;
  double fixed = 0.0, sum = 0.0;
  for (int64_t k = 0; k < n; ++k) {
    const double own = in.strategies[k * kStrategyColumns + kOddsFixed];
    if (own >= 0.0) {
      odds[k] = own;
      fixed = fixed + own;
      continue;
    }
    const double successes = total(2 * k), failures = total(2 * k + 1);
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

// total(entry): that window entry's sum over the period.
template <class Total>
DEEVO_HD void update_sinusoid_odds(const TellInputs& in, const StateLayout& at, double* state,
                                   const Total& total) {
  double score[2];
  DEEVO_UNROLL
  for (int which = 0; which < 2; ++which) {
    const double successes = total(2 * which), trials = successes + total(2 * which + 1);
    score[which] = (trials > 0.0 ? successes / trials : 0.0) + in.settings[kOddsFloor];
  }
  state[at.sinusoid1_odds] = score[0] / (score[0] + score[1]);
}

DEEVO_HD bool adapts_strategies(const TellInputs& in, int64_t generation) {
  return in.settings[kAdaptStrategies] != 0.0 &&
         generation >= static_cast<int64_t>(in.settings[kAdaptStart]);
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
  if (adapts_strategies(in, generation)) {
    update_strategy_odds(in, at, out.state, [&](int64_t entry) {
      return window_total(out.state + at.strategy_window, periods[0], 2 * n, entry);
    });
  }
  update_sinusoid_odds(in, at, out.state, [&](int64_t entry) {
    return window_total(out.state + at.sinusoid_window, periods[1], 4, entry);
  });
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
