// tell: what a generation teaches. Greedy selection (a success is trial < parent), SHADE's memories
// by the weighted Lehmer mean, SaDE's strategy odds and the odds of the two sinusoids from success
// windows, archive slots. Only NP numbers move, no weights.
#pragma once

#include "deevo/arguments.h"
#include "deevo/plan.h"
#include "deevo/tables.h"

namespace deevo {

DEEVO_HD int64_t power_of_two(int64_t n) {
  int64_t padded = 1;
  while (padded < n) padded *= 2;
  return padded;
}

// The weighted means that a strategy's successes leave in its memories.
enum Mean { kMeanF, kMeanFrequency, kMeanCR, kNumMeans };

struct MeanTerm {
  double numerator, denominator;
};

// A member's part in a mean of strategy k, sum w x^(b+1) / sum w x^b over the successes, with b = 1
// for a Lehmer mean and 0 for an arithmetic one. w is the improvement scaled to a maximum of 1, so
// that no sum overflows. Frequencies are taught by successes of the second sinusoid alone.
DEEVO_HD MeanTerm mean_term(const TellArguments& a, Mean which, int64_t k, int64_t member,
                            bool accepted, double improvement, double largest) {
  const int32_t* choice = a.choices + member * kChoiceColumns;
  const bool counts = accepted && choice[kStrategy] == k &&
                      (which != kMeanFrequency || choice[kSource] == kSourceSinusoid2);
  if (!counts) return {0.0, 0.0};
  const int column = which == kMeanF ? kF : (which == kMeanFrequency ? kFrequency : kCR);
  const bool lehmer = which != kMeanCR || a.settings[kCRMean] == 0.0;
  const double x = a.parameters[member * kParameterColumns + column];
  const double w = improvement / largest;
  const double denominator = lehmer ? w * x : w;
  return {denominator * x, denominator};
}

// Whether strategy k has the parameter that a mean is of.
DEEVO_HD bool has_mean(const TellArguments& a, Mean which, int64_t k) {
  const double* strategy = a.strategies + k * kStrategyColumns;
  return which == kMeanCR ? strategy[kCrossover] != 0.0 : strategy[kKind] == 0.0;
}

// Writes a mean of strategy k, given by its sums, into the slot that the pointer names.
DEEVO_HD void remember(const TellArguments& a, const StateOffsets& at, Mean which, int64_t k,
                       MeanTerm sums, double* state) {
  const int64_t slot = static_cast<int64_t>(state[at.pointer + k]) * a.num_strategies + k;
  const bool valid = sums.denominator > 0.0;
  const double mean = sums.numerator / sums.denominator;
  if (which == kMeanF && valid) state[at.memory_f + slot] = mean;
  if (which == kMeanFrequency && valid) state[at.memory_frequency + slot] = mean;
  if (which == kMeanCR) {
    const bool lehmer = a.settings[kCRMean] == 0.0;
    const bool terminal = lehmer && (!valid || state[at.memory_cr + slot] < 0.0);
    if (valid || terminal) state[at.memory_cr + slot] = terminal ? -1.0 : mean;
  }
}

DEEVO_HD void advance_pointer(const TellArguments& a, const StateOffsets& at, int64_t k,
                              double* state) {
  const int64_t pointer = static_cast<int64_t>(state[at.pointer + k]);
  const int64_t h = static_cast<int64_t>(a.settings[kMemorySize]);
  state[at.pointer + k] = static_cast<double>((pointer + 1) % h);
}

// Entry `entry` of a window [period, entries], summed over its rows: counts, so in any order.
DEEVO_HD double window_total(const double* window, int64_t period, int64_t entries, int64_t entry) {
  double total = 0.0;
  for (int64_t row = 0; row < period; ++row) total += window[row * entries + entry];
  return total;
}

// SaDE's odds. total(entry): that entry of the strategies' success window, summed over the period.
template <class Total>
DEEVO_HD void update_strategy_odds(const TellArguments& a, const StateOffsets& at, double* state,
                                   const Total& total) {
  const int64_t n = a.num_strategies;
  const double floor = a.settings[kOddsFloor];
  double* odds = state + at.odds;
  double fixed = 0.0, sum = 0.0;
  for (int64_t k = 0; k < n; ++k) {
    const double fixed_odds = a.strategies[k * kStrategyColumns + kOddsFixed];
    if (fixed_odds >= 0.0) {
      odds[k] = fixed_odds;
      fixed = fixed + fixed_odds;
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
    if (a.strategies[k * kStrategyColumns + kOddsFixed] < 0.0) odds[k] = share * (odds[k] / sum);
  }
  for (int64_t pass = 0; pass < n; ++pass) {
    // Strategies above their caps give the excess to the others, pro rata, until none is above.
    double rest = share, below = 0.0;
    bool exceeded = false;
    for (int64_t k = 0; k < n; ++k) {
      const double* strategy = a.strategies + k * kStrategyColumns;
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
      const double* strategy = a.strategies + k * kStrategyColumns;
      if (strategy[kOddsFixed] >= 0.0) continue;
      odds[k] = odds[k] >= strategy[kOddsCap] ? strategy[kOddsCap] : odds[k] * scale;
    }
  }
}

// cnEpSin's odds. total(entry): that entry of the sinusoids' success window, summed over the
// period.
template <class Total>
DEEVO_HD void update_sinusoid_odds(const TellArguments& a, const StateOffsets& at, double* state,
                                   const Total& total) {
  double score[2];
  DEEVO_UNROLL
  for (int which = 0; which < 2; ++which) {
    const double successes = total(2 * which), trials = successes + total(2 * which + 1);
    score[which] = (trials > 0.0 ? successes / trials : 0.0) + a.settings[kOddsFloor];
  }
  state[at.sinusoid1_odds] = score[0] / (score[0] + score[1]);
}

DEEVO_HD bool adapts_strategies(const TellArguments& a, int64_t generation) {
  return a.settings[kAdaptStrategies] != 0.0 &&
         generation >= static_cast<int64_t>(a.settings[kAdaptStart]);
}

// How many members L-SHADE's linear reduction (Tanabe & Fukunaga 2014) leaves alive after a
// generation; all of them without reduction. The clock is what has been evaluated, the parents and
// a trial for each of those that lived in each generation, or the generation itself.
DEEVO_HD int64_t population_target(const double* settings, int64_t num_members,
                                   int64_t generation) {
  const double minimum = settings[kPopulationMin], size = static_cast<double>(num_members);
  const double evaluations = settings[kEvaluations];
  if (minimum == 0.0) return num_members;
  if (evaluations == 0.0) {
    const double share = static_cast<double>(generation) / settings[kGenerations];
    const double target = nearbyint(size + (minimum - size) * share);
    return static_cast<int64_t>(target < minimum ? minimum : target);
  }
  const double slope = (minimum - size) / evaluations;
  double living = size, spent = size;
  for (int64_t g = 1; g <= generation && living > minimum; ++g) {
    spent = spent + living;
    const double target = nearbyint(slope * spent + size);
    living = target < minimum ? minimum : target;
  }
  return static_cast<int64_t>(living);
}

// The rows of the archive that so many living members use.
DEEVO_HD int64_t archive_capacity(const double* settings, int64_t num_members, int64_t living) {
  const double rows = settings[kArchiveCapacity];
  if (settings[kArchiveShrinks] == 0.0) return static_cast<int64_t>(rows);
  const double share = rows * static_cast<double>(living) / static_cast<double>(num_members);
  return static_cast<int64_t>(nearbyint(share));
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

}  // namespace deevo
