// What the launchers of both compiled backends are given, a struct for each operator. Shapes,
// dtypes and overlaps have been checked (deevo_ext/ops), values in the tensors have not.
#pragma once

#include "deevo/number.h"
#include "deevo/philox.h"
#include "deevo/trials.h"
#include "deevo/view.h"

namespace deevo {

// The small tensors that plan and tell both read.
struct Configuration {
  const double* settings;
  const double* strategies;
  int64_t num_strategies;
  int64_t state_size;
  int64_t num_members;
  Key key;
};

struct PlanArguments : Configuration {
  const double* state;
  const double* fitness;
  const uint8_t* alive;
  const int64_t* generation;
  int32_t* choices;
  double* parameters;
  float* coefficients;
  int32_t* gene_mask;
  int64_t gene_mask_words;  // per member
};

struct TellArguments : Configuration {
  const double* trial_fitness;  // [NP]
  const int32_t* choices;       // [NP, kChoiceColumns]
  const double* parameters;     // [NP, kParameterColumns]
  double* state;
  double* fitness;        // [NP], parents' in, survivors' out; +inf for the dead
  uint8_t* alive;         // [NP]
  int64_t* generation;    // [1], advanced by one
  uint8_t* accepted;      // [NP]
  int32_t* archive_slot;  // [NP], -1: the replaced parent is not kept
};

// What trials and commit share.
struct Generation {
  Number number;
  Rows population;
  Rows archive;
  int64_t columns;
  int64_t nonneg_start;
  int64_t first_weight;  // flat index of column 0, a multiple of 8
  const int32_t* choices;
  const float* coefficients;
  const int64_t* genes;  // [num_genes], where each segment of a row starts; none: weights draw
  int64_t num_genes;
  const int32_t* gene_mask;  // [NP, gene_words(num_genes)]
  Bounds bounds;
  Key key;
};

struct TrialsArguments {
  Generation g;
  const int64_t* members;  // [num_trials]
  int64_t num_trials;
  Rows out;
};

struct CommitArguments {
  Generation g;
  const uint8_t* accepted;      // [NP]
  const int32_t* archive_slot;  // [NP]
};

struct FoldArguments {
  Number source, target;
  Rows rows;
  Rows statistics;  // float
  const float* constants;
  const int64_t* table;  // [entries, kFoldColumns]
  const double* eps;
  int64_t entries;
  Rows weights;
  Rows vectors;  // float
};

// What loss_and_rank and head have in common.
struct Losses {
  const int64_t* labels;  // [samples]
  int64_t samples, classes;
  double smoothing;
  Rows losses;  // float
  Rows ranks;   // int32_t
};

struct HeadArguments {
  Losses l;
  Number number;
  Rows features, weight;
  Rows bias;  // float
  int64_t positions, channels;
};

struct LossAndRankArguments {
  Losses l;
  Number number;
  Rows logits;
};

struct LinearScoresArguments {
  Losses l;         // of P candidates
  const float* z0;  // [samples, classes]
  Number number;
  Rows slopes;  // [directions, samples, classes]
  int64_t directions;
  const float* coefficients;  // [P, directions]
  Rows predicted;             // int32_t
  Rows probability;           // float
};

struct ComposeArguments {
  Number number;
  Rows population;
  int64_t columns;
  const float* recipes;  // [K, blocks, M]
  int64_t blocks;
  const int64_t* starts;    // [segments], where each segment of a row starts
  const int32_t* block_of;  // [segments]
  int64_t segments;
  int64_t nonneg_start;
  Rows out;  // K
};

}  // namespace deevo
