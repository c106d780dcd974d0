// Stored numbers: float32, bfloat16 and float16.
#pragma once

#include "deevo/common.h"

namespace deevo {

enum class Number { kFloat32, kBFloat16, kFloat16 };

// How each is widened to float32 and rounded back: to nearest even, subnormals kept, overflow to
// infinity, any NaN to one quiet NaN.
struct Float32 {
  using Stored = float;
  static DEEVO_HD float widen(float x) { return x; }
  static DEEVO_HD float round(float x) { return x != x ? float_of(0x7FC00000u) : x; }
  static DEEVO_HD bool finite(float x) { return (bits_of(x) & 0x7F800000u) != 0x7F800000u; }
};

struct BFloat16 {
  using Stored = uint16_t;
  static DEEVO_HD float widen(uint16_t x) { return float_of(static_cast<uint32_t>(x) << 16); }
  // By integer arithmetic: vcvtneps2bf16 would flush subnormals.
  static DEEVO_HD uint16_t round(float x) {
    const uint32_t bits = bits_of(x), nearest = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    return static_cast<uint16_t>(x != x ? 0x7FC0u : nearest);
  }
  static DEEVO_HD bool finite(uint16_t x) { return (x & 0x7F80u) != 0x7F80u; }
};

// IEEE half precision, by integer and float32 arithmetic.
struct Float16 {
  using Stored = uint16_t;
  static DEEVO_HD float widen(uint16_t x) {
    const uint32_t sign = (x & 0x8000u) << 16, magnitude = x & 0x7FFFu;
    // Moved into float32's fields, an exponent is 112 short; the product with 2^112 mends that,
    // exactly, for subnormals too.
    const float finite = float_of(magnitude << 13) * 0x1p112f;
    const uint32_t special = 0x7F800000u | (magnitude & 0x3FFu) << 13;
    return float_of((magnitude >= 0x7C00u ? special : bits_of(finite)) | sign);
  }
  static DEEVO_HD uint16_t round(float x) {
    const uint32_t bits = bits_of(x);
    const uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
    const uint32_t normal = (magnitude - 0x38000000u + 0xFFFu + ((magnitude >> 13) & 1u)) >> 13;
    // Below the least normal half: adding 0.5 rounds to its last place, 2^-24, in float32's own
    // rounding to nearest even.
    const float shifted = float_of(magnitude < 0x38800000u ? magnitude : 0u) + 0.5f;
    uint32_t half = magnitude < 0x38800000u ? bits_of(shifted) - 0x3F000000u : normal;
    half = magnitude >= 0x477FF000u ? 0x7C00u : half;
    half = sign | half;
    return static_cast<uint16_t>(magnitude > 0x7F800000u ? 0x7E00u : half);
  }
  static DEEVO_HD bool finite(uint16_t x) { return (x & 0x7C00u) != 0x7C00u; }
};

// Calls run with the type of a number, and returns what it returns.
template <class Run>
auto dispatch(Number number, const Run& run) {
  switch (number) {
    case Number::kBFloat16:
      return run(BFloat16());
    case Number::kFloat16:
      return run(Float16());
    default:
      return run(Float32());
  }
}

}  // namespace deevo
