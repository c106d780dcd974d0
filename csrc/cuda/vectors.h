// 16 bytes of weights: 4 of float32, 8 of the 16-bit types.
#pragma once

#include "deevo/trials.h"
#include "launch.h"

namespace deevo::cuda {

struct alignas(16) Vector {
  uint32_t w[4];
};

template <class S>
constexpr int kWeights = 16 / static_cast<int>(sizeof(typename S::Stored));

// The least magnitude that rounds to infinity in storage. A comparison with it is false for NaN
// too, so it is the whole test of "finite after rounding".
template <class S>
DEEVO_HD float beyond_storage();
template <>
DEEVO_HD float beyond_storage<Float32>() {
  return float_of(0x7F800000u);
}
template <>
DEEVO_HD float beyond_storage<BFloat16>() {
  return float_of(0x7F7F8000u);
}
template <>
DEEVO_HD float beyond_storage<Float16>() {
  return float_of(0x477FF000u);
}

// A stored number in float32, infinity and NaN among them.
template <class S>
DEEVO_DEVICE float widened(typename S::Stored x) {
  return S::widen(x);
}

// The two weights of a word of a 16-bit type, in float32. Conversions by single instructions where
// there are any; these keep subnormals and round to nearest even, as S does.
template <class S>
DEEVO_DEVICE void widen_pair(uint32_t pair, float* low, float* high) {
  *low = S::widen(static_cast<uint16_t>(pair));
  *high = S::widen(static_cast<uint16_t>(pair >> 16));
}

template <>
DEEVO_DEVICE void widen_pair<BFloat16>(uint32_t pair, float* low, float* high) {
  *low = float_of(pair << 16);
  *high = float_of(pair & 0xFFFF0000u);
}

template <class S>
DEEVO_DEVICE uint32_t round_pair(float low, float high) {
  return static_cast<uint32_t>(S::round(low)) | static_cast<uint32_t>(S::round(high)) << 16;
}

#if defined(__CUDA_ARCH__)
template <>
DEEVO_DEVICE float widened<Float16>(uint16_t x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
  return y;
}

template <>
DEEVO_DEVICE void widen_pair<Float16>(uint32_t pair, float* low, float* high) {
  asm("{\n.reg .b16 l, h;\nmov.b32 {l, h}, %2;\ncvt.f32.f16 %0, l;\ncvt.f32.f16 %1, h;\n}"
      : "=f"(*low), "=f"(*high)
      : "r"(pair));
}

template <>
DEEVO_DEVICE uint32_t round_pair<BFloat16>(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

template <>
DEEVO_DEVICE uint32_t round_pair<Float16>(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
#endif

template <class S>
DEEVO_DEVICE void widen(const Vector& x, float (&v)[kWeights<S>]) {
  if constexpr (kWeights<S> == 4) {
    for (int i = 0; i < 4; ++i) v[i] = float_of(x.w[i]);
  } else {
    for (int i = 0; i < 4; ++i) widen_pair<S>(x.w[i], &v[2 * i], &v[2 * i + 1]);
  }
}

// Of values that are finite in storage.
template <class S>
DEEVO_DEVICE Vector round(const float (&v)[kWeights<S>]) {
  Vector x;
  if constexpr (kWeights<S> == 4) {
    for (int i = 0; i < 4; ++i) x.w[i] = bits_of(v[i]);
  } else {
    for (int i = 0; i < 4; ++i) x.w[i] = round_pair<S>(v[2 * i], v[2 * i + 1]);
  }
  return x;
}

template <class Stored>
DEEVO_HD Stored weight_of(const Vector& x, int i) {
  if constexpr (sizeof(Stored) == 4) {
    return float_of(x.w[i]);
  } else {
    return static_cast<Stored>(x.w[i / 2] >> (i % 2 * 16));
  }
}

// Sets a weight of a vector that was zero there.
template <class Stored>
DEEVO_HD void put_weight(Vector* x, int i, Stored weight) {
  if constexpr (sizeof(Stored) == 4) {
    x->w[i] = bits_of(weight);
  } else {
    x->w[i / 2] |= static_cast<uint32_t>(weight) << (i % 2 * 16);
  }
}

// 16 aligned bytes; `from` and `to` may point to shared or global memory.
DEEVO_DEVICE Vector load_vector(const void* from) {
#if defined(__CUDA_ARCH__)
  const uint4 x = *static_cast<const uint4*>(from);
  return {{x.x, x.y, x.z, x.w}};
#else
  return *static_cast<const Vector*>(from);
#endif
}

// To global memory that is not read again soon.
DEEVO_DEVICE void store_vector(void* to, const Vector& x) {
#if defined(__CUDA_ARCH__)
  __stcs(static_cast<uint4*>(to), make_uint4(x.w[0], x.w[1], x.w[2], x.w[3]));
#else
  *static_cast<Vector*>(to) = x;
#endif
}

// The first `count` weights of a vector, 16 bytes at once where `wide` says that addresses allow.
template <class Stored>
DEEVO_DEVICE void store_weights(Stored* to, const Vector& x, int count, bool wide) {
  constexpr int kAll = 16 / static_cast<int>(sizeof(Stored));
  if (wide && count >= kAll) {
    store_vector(to, x);
    return;
  }
  DEEVO_UNROLL
  for (int i = 0; i < kAll; ++i) {
    if (i < count) to[i] = weight_of<Stored>(x, i);
  }
}

// As many weights as there are, up to a vector's; the rest is zero.
template <class Stored>
DEEVO_DEVICE Vector load_weights(const Stored* from, int count, bool wide) {
  constexpr int kAll = 16 / static_cast<int>(sizeof(Stored));
  if (wide && count >= kAll) return load_vector(from);
  Vector x = {};
  DEEVO_UNROLL
  for (int i = 0; i < kAll; ++i) {
    if (i < count) put_weight(&x, i, from[i]);
  }
  return x;
}

}  // namespace deevo::cuda
