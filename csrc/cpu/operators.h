// The CPU backend's entry points: raw pointers, sizes and a thread count in, an error text (null
// when all went well) out. Nothing is written when an error is returned.
#pragma once

#include <cstdint>

#include "deevo/plan.h"
#include "deevo/tell.h"

namespace deevo::cpu {

enum class Storage { kFloat32, kBFloat16 };

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
  Key key;
  int64_t threads;
};

const char* plan(const double* settings, const double* strategies, int64_t num_strategies,
                 const double* state, const double* fitness, int64_t num_members,
                 int64_t generation, Key key, int32_t* choices, double* parameters,
                 float* coefficients);

const char* tell(const TellInputs& in, double* state, double* fitness, int64_t* generation,
                 uint8_t* accepted, int32_t* archive_slot);

const char* trials(const Generation& g, const int64_t* members, int64_t num_trials, Rows out);

const char* commit(const Generation& g, const uint8_t* accepted, const int32_t* archive_slot);

}  // namespace deevo::cpu
