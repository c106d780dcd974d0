// The CPU backend's entry points for evaluating networks: fold, head and
// loss_and_rank. Arguments have been checked.
#pragma once

#include <cstdint>

#include "operators.h"

namespace deevo::cpu {

enum class Number { kFloat32, kBFloat16, kFloat16 };

// `count` blocks of memory, one per member, `stride` elements apart.
struct Blocks {
  void* data;
  int64_t count;
  int64_t stride;
};

struct Fold {
  Number source, target;
  Blocks rows;
  Blocks statistics;  // float
  const float* constants;
  const int64_t* table;  // [entries, kFoldColumns]
  const double* eps;
  int64_t entries;
  Blocks weights;
  Blocks vectors;  // float
  int64_t threads;
};

void fold(const Fold& f);

struct Losses {
  const int64_t* labels;  // [samples]
  int64_t samples, classes;
  double smoothing;
  Blocks losses;  // float
  Blocks ranks;   // int32_t
  int64_t threads;
};

void head(Number number, Blocks features, Blocks weight, Blocks bias, int64_t positions,
          int64_t channels, const Losses& l);

void loss_and_rank(Number number, Blocks logits, const Losses& l);

}  // namespace deevo::cpu
