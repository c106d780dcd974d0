// The loops for x86-64 with AVX2. The target is set after all includes, so that no inline function
// that other files share is compiled for it.
#include "loops.h"

#if defined(__x86_64__)

#include <immintrin.h>

namespace deevo::cpu {
namespace {

bool supported() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c"); }

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,f16c")
#endif

constexpr int kFloats = 8;
typedef float Floats __attribute__((vector_size(32)));
typedef uint32_t Words __attribute__((vector_size(32)));
typedef uint16_t Halves __attribute__((vector_size(32)));
typedef uint16_t Few __attribute__((vector_size(16)));
typedef uint64_t Lanes __attribute__((vector_size(32)));

#include "loops_choose.h"

inline Lanes multiply(Lanes a, Lanes b) {
  return reinterpret_cast<Lanes>(
      _mm256_mul_epu32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
}
inline Lanes pair(Lanes a, Lanes b) {
  return reinterpret_cast<Lanes>(
      _mm256_blend_epi32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b << 32), 0xAA));
}
inline uint64_t below(Lanes a, Lanes b, uint16_t limit) {
  const __m256i x = reinterpret_cast<__m256i>(a), y = reinterpret_cast<__m256i>(b);
  const __m256i limits = _mm256_set1_epi16(static_cast<short>(limit));
  const __m256i even = _mm256_unpacklo_epi64(x, y), odd = _mm256_unpackhi_epi64(x, y);
  // Packing goes by halves of a register, which puts the unpacked blocks back in order.
  return static_cast<uint32_t>(_mm256_movemask_epi8(
      _mm256_packs_epi16(_mm256_cmpeq_epi16(_mm256_min_epu16(even, limits), even),
                         _mm256_cmpeq_epi16(_mm256_min_epu16(odd, limits), odd))));
}
inline Floats least(Floats a, Floats b) {
  return reinterpret_cast<Floats>(
      _mm256_min_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b)));
}
inline void widen_half(Halves stored, Floats* parts) {
  const __m256i x = reinterpret_cast<__m256i>(stored);
  parts[0] = reinterpret_cast<Floats>(_mm256_cvtph_ps(_mm256_castsi256_si128(x)));
  parts[1] = reinterpret_cast<Floats>(_mm256_cvtph_ps(_mm256_extracti128_si256(x, 1)));
}
inline Halves round_half(const Floats* parts) {
  const __m256 a = reinterpret_cast<__m256>(parts[0]), b = reinterpret_cast<__m256>(parts[1]);
  return reinterpret_cast<Halves>(_mm256_set_m128i(_mm256_cvtps_ph(b, _MM_FROUND_TO_NEAREST_INT),
                                                   _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT)));
}
template <class V>
inline void stream(void* to, V vector) {
  _mm256_stream_si256(static_cast<__m256i*>(to), reinterpret_cast<__m256i>(vector));
}

inline Floats widen_few(Few stored) {
  return reinterpret_cast<Floats>(_mm256_cvtph_ps(reinterpret_cast<__m128i>(stored)));
}
inline Few narrow_few(Floats v) {
  return reinterpret_cast<Few>(
      _mm256_cvtps_ph(reinterpret_cast<__m256>(v), _MM_FROUND_TO_NEAREST_INT));
}

inline Halves pack_high(Words a, Words b) {
  const __m256i x = _mm256_srai_epi32(reinterpret_cast<__m256i>(a), 16);
  const __m256i y = _mm256_srai_epi32(reinterpret_cast<__m256i>(b), 16);
  // Packing goes by halves of a register.
  return reinterpret_cast<Halves>(_mm256_permute4x64_epi64(_mm256_packs_epi32(x, y), 0xD8));
}
inline Halves pack_half(const Floats* parts) { return round_half(parts); }
inline bool any(Words words) {
  const __m256i x = reinterpret_cast<__m256i>(words);
  return _mm256_testz_si256(x, x) == 0;
}

#include "loops_body.h"
#include "loops_evaluation.h"
#include "loops_recipes.h"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

}  // namespace

const Loops kAvx2Loops = {"avx2",      supported,
                          draw_mask,   {trial<Float32>, trial<BFloat16>, trial<Float16>},
                          kEvaluation, kRecipes};

}  // namespace deevo::cpu

#endif  // __x86_64__
