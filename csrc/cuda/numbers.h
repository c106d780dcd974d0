// Stored numbers in float32 by single instructions, infinity and NaN among them.
#pragma once

#include "deevo/fold.h"
#include "launch.h"
#include "vectors.h"

namespace deevo::cuda {

template <class From>
DEEVO_DEVICE float widened(typename From::Stored x) {
  return From::widen(x);
}

#if defined(__CUDA_ARCH__)
template <>
DEEVO_DEVICE float widened<FromFloat16>(uint16_t x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
  return y;
}

template <>
DEEVO_DEVICE void widen_pair<FromFloat16>(uint32_t pair, float* low, float* high) {
  widen_pair<Float16>(pair, low, high);
}
#endif

}  // namespace deevo::cuda
