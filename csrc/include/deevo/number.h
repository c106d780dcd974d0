// Stored numbers: float32, bfloat16 and float16.
#pragma once

#include "deevo/common.h"

namespace deevo {

enum class Number { kFloat32, kBFloat16, kFloat16 };

// Storage types: how a weight is widened to float32, rounded back, and recognised as not finite.
struct Float32 {
  using Stored = float;
  static DEEVO_HD float widen(float x) { return x; }
  static DEEVO_HD float round(float x) { return x; }
  static DEEVO_HD bool finite(float x) { return (bits_of(x) & 0x7F800000u) != 0x7F800000u; }
};

struct BFloat16 {
  using Stored = uint16_t;
  static DEEVO_HD float widen(uint16_t x) { return float_of(static_cast<uint32_t>(x) << 16); }
  // To nearest even by integer arithmetic: vcvtneps2bf16 would flush subnormals. A NaN may come out
  // as any pattern with an exponent of all ones or as a carry past it, so it is caught first.
  static DEEVO_HD uint16_t round(float x) {
    const uint32_t bits = bits_of(x);
    const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    const bool special = (bits & 0x7F800000u) == 0x7F800000u;
    return static_cast<uint16_t>(special ? 0x7F80u : rounded);
  }
  static DEEVO_HD bool finite(uint16_t x) { return (x & 0x7F80u) != 0x7F80u; }
};

// IEEE half precision, subnormals kept, by integer and float32 arithmetic.
struct Float16 {
  using Stored = uint16_t;
  static DEEVO_HD float widen(uint16_t x) {
    const uint32_t sign = (x & 0x8000u) << 16, magnitude = x & 0x7FFFu;
    // Moved into float32's fields, an exponent is 112 short; the product with 2^112 mends that,
    // exactly, for subnormals too. Infinity and NaN are never stored.
    const float scaled = float_of(magnitude << 13) * 0x1p112f;
    return float_of(bits_of(scaled) | sign);
  }
  // To nearest even. What is not finite, or rounds to beyond the largest half, becomes infinity.
  static DEEVO_HD uint16_t round(float x) {
    const uint32_t bits = bits_of(x);
    const uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
    if (magnitude >= 0x477FF000u) return static_cast<uint16_t>(sign | 0x7C00u);
    if (magnitude < 0x38800000u) {
      // Below the least normal half: adding 0.5 rounds to its last place, 2^-24, in float32's own
      // rounding to nearest even.
      const uint32_t rounded = bits_of(float_of(magnitude) + 0.5f) - 0x3F000000u;
      return static_cast<uint16_t>(sign | rounded);
    }
    const uint32_t rounded = (magnitude - 0x38000000u + 0xFFFu + ((magnitude >> 13) & 1u)) >> 13;
    return static_cast<uint16_t>(sign | rounded);
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
