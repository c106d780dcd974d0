// Where each number lies in the small tensors that the operators share. deevo_ext/ops/tables.py is
// the same list in Python, with the meanings; a test compares the two.
#pragma once

#include <cstdint>

#include "deevo/common.h"

namespace deevo {

// settings: float64 [kNumSettings], constant during a run.
enum Setting {
  kGenerations,
  kSwitchGeneration,
  kFInit,
  kFStd,
  kFMin,
  kFMax,
  kFDistribution,  // 0 normal, 1 Cauchy
  kSinusoidMode,   // 0 ensemble, 1 and 2 that sinusoid alone, 3 memory only
  kSinusoid1Frequency,
  kFrequencyStd,
  kCRStd,
  kCRMin,
  kCRMax,
  kSinusoidPeriod,
  kStrategyPeriod,
  kMemorySize,
  kOddsFloor,
  kAdaptStart,
  kAdaptStrategies,
  kAdaptMemories,
  kCRMean,  // 0 Lehmer, 1 arithmetic
  kPBestMin,
  kPBestMax,
  kBestExcludesTarget,
  kTrigOffset,
  kArchiveCapacity,
  kJRandRange,     // 0: no forced mutant; else weights, or genes when there are any, to draw from
  kGenes,          // G
  kPopulationMin,  // 0: no reduction
  kEvaluations,    // in which the population is reduced; 0: in kGenerations
  kArchiveShrinks,
  kNumSettings
};

// strategies: float64 [K, kStrategyColumns].
enum StrategyColumn {
  kKind,       // 0 linear, 1 trigonometric
  kCrossover,  // 0 none, 1 binomial
  kBaseTerm,
  kNumTerms,
  kTermCodes,                          // 5 columns
  kTermCoefficients = kTermCodes + 5,  // 5 x 4 columns: 1, F, U, F U
  kOddsInit = kTermCoefficients + 20,
  kOddsCap,
  kOddsFixed,  // negative: adapted
  kStrategyColumns
};

enum TermCode { kTarget, kBest, kPBest, kR1, kR2, kR3, kR4, kR5, kFromArchive, kNumTermCodes };

constexpr int kMaxTerms = 5;

// choices: int32 [NP, kChoiceColumns].
enum ChoiceColumn {
  kGeneration,
  kStrategy,
  kSource,
  kThreshold,
  kTerms,
  kBaseRow,
  kRows,  // 5 columns; a row >= NP is row - NP of the archive
  kForced = kRows +
      kMaxTerms,  // flat index of a weight that takes the mutant in any case; -1: none
  kChoiceColumns
};

enum Source { kSourceNone, kSourceSinusoid1, kSourceSinusoid2, kSourceMemory };

// gene_mask: int32 [NP, gene_words(G)], bits of unsigned words.
DEEVO_HD int64_t gene_words(int64_t genes) { return (genes + 31) / 32; }

// parameters: float64 [NP, kParameterColumns].
enum ParameterColumn { kF, kCR, kFrequency, kU, kParameterColumns };

// state: float64 [size]; what the adaptation remembers.
struct StateOffsets {
  int64_t memory_f, memory_cr, memory_frequency;  // [H, K] each
  int64_t pointer, odds;                          // [K] each
  int64_t sinusoid1_odds, archive_count;          // [1] each
  int64_t strategy_window;                        // [strategy period, K, 2]: successes, failures
  int64_t sinusoid_window;                        // [sinusoid period, 2, 2]
  int64_t size;

  DEEVO_HD StateOffsets(int64_t h, int64_t k, int64_t strategy_period, int64_t sinusoid_period) {
    memory_f = 0;
    memory_cr = memory_f + h * k;
    memory_frequency = memory_cr + h * k;
    pointer = memory_frequency + h * k;
    odds = pointer + k;
    sinusoid1_odds = odds + k;
    archive_count = sinusoid1_odds + 1;
    strategy_window = archive_count + 1;
    sinusoid_window = strategy_window + strategy_period * k * 2;
    size = sinusoid_window + sinusoid_period * 4;
  }

  DEEVO_HD StateOffsets(const double* settings, int64_t k)
      : StateOffsets(static_cast<int64_t>(settings[kMemorySize]), k,
                     static_cast<int64_t>(settings[kStrategyPeriod]),
                     static_cast<int64_t>(settings[kSinusoidPeriod])) {}
};

}  // namespace deevo
