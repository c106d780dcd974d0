// fold_trials: fold (fold.h) of trials (trials.h) that exist in fast memory alone.
// Traffic per weight column: NP reads of the storage type, E writes of the target type.
#pragma once

#include "deevo/fold.h"
#include "deevo/trials.h"

namespace deevo {

// The storage type of rows that fold reads as From.
template <class From>
struct StorageOf;
template <>
struct StorageOf<FromFloat32> {
  using Type = Float32;
};
template <>
struct StorageOf<FromBFloat16> {
  using Type = BFloat16;
};
template <>
struct StorageOf<FromFloat16> {
  using Type = Float16;
};

}  // namespace deevo
