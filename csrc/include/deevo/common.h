// What every header of deevo shares: the host/device marker and bit casts.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define DEEVO_HD __host__ __device__ __forceinline__
#else
#define DEEVO_HD inline
#endif

// Before a loop over a small array: with every index known, a GPU keeps the array in registers.
#if defined(__CUDA_ARCH__)
#define DEEVO_UNROLL _Pragma("unroll")
#else
#define DEEVO_UNROLL
#endif

namespace deevo {

DEEVO_HD uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

DEEVO_HD float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

DEEVO_HD uint64_t bits_of(double value) {
  uint64_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

DEEVO_HD double double_of(uint64_t bits) {
  double value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace deevo
