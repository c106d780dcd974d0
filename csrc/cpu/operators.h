// The CPU backend's entry points: raw pointers, sizes and a thread count in, an error text (null
// when all went well) out. Nothing is written when an error is returned.
#pragma once

#include <cstdint>

#include "deevo/plan.h"
#include "deevo/tell.h"
#include "deevo/trials.h"

namespace deevo::cpu {

enum class Storage { kFloat32, kBFloat16, kFloat16 };

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
  int64_t threads;
};

// Calls run with the storage type that the population has.
template <class Run>
void dispatch(Storage storage, const Run& run) {
  switch (storage) {
    case Storage::kFloat32:
      return run(Float32());
    case Storage::kBFloat16:
      return run(BFloat16());
    case Storage::kFloat16:
      return run(Float16());
  }
}

// All plans of a generation.
struct PlanTables {
  int32_t* choices;
  double* parameters;
  float* coefficients;
  int32_t* gene_mask;
};

const char* plan(const double* settings, const double* strategies, int64_t num_strategies,
                 const double* state, const double* fitness, const uint8_t* alive,
                 int64_t num_members, int64_t generation, Key key, const PlanTables& out);

const char* tell(const TellInputs& in, double* state, double* fitness, uint8_t* alive,
                 int64_t* generation, uint8_t* accepted, int32_t* archive_slot);

const char* trials(const Generation& g, const int64_t* members, int64_t num_trials, Rows out);

const char* commit(const Generation& g, const uint8_t* accepted, const int32_t* archive_slot);

}  // namespace deevo::cpu
