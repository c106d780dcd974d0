// The CUDA backend's entry points: device pointers, sizes and a stream in, an error text (null when
// all went well) out. Nothing here allocates or waits, so every call can be captured in a graph.
// Values on the device are checked by the kernels (DEEVO_CHECK in launch.h).
#pragma once

#include <cstdint>

#include "deevo/plan.h"
#include "deevo/tell.h"
#include "deevo/trials.h"

namespace deevo::cuda {

enum class Storage { kFloat32, kBFloat16, kFloat16 };

// Where the work goes: a device by number, and a cudaStream_t of it.
struct Queue {
  int device;
  void* stream;
};

// A matrix of weights: rows of `columns` elements, `stride` elements apart.
struct Rows {
  void* data;
  int64_t count;
  int64_t stride;
};

// What trials and commit share.
struct Generation {
  Storage storage;
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

// The small tensors of plan and tell that both read.
struct Configuration {
  const double* settings;
  const double* strategies;
  int64_t num_strategies;
  int64_t state_size;
  int64_t num_members;
  Key key;
};

struct PlanArguments {
  Configuration configuration;
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

struct TellArguments {
  Configuration configuration;
  const double* trial_fitness;
  const int32_t* choices;
  const double* parameters;
  double* state;
  double* fitness;
  uint8_t* alive;
  int64_t* generation;
  uint8_t* accepted;
  int32_t* archive_slot;
};

struct Fold {
  Storage source, target;
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

const char* plan(const Queue& queue, const PlanArguments& arguments);

const char* tell(const Queue& queue, const TellArguments& arguments);

const char* trials(const Queue& queue, const Generation& g, const int64_t* members,
                   int64_t num_trials, Rows out);

const char* commit(const Queue& queue, const Generation& g, const uint8_t* accepted,
                   const int32_t* archive_slot);

const char* fold(const Queue& queue, const Fold& f);

const char* loss_and_rank(const Queue& queue, Storage storage, Rows logits, const Losses& l);

const char* head(const Queue& queue, Storage storage, Rows features, Rows weight, Rows bias,
                 int64_t positions, int64_t channels, const Losses& l);

}  // namespace deevo::cuda
