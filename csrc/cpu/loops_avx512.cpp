// The loops for x86-64 with AVX512. The target is set after all includes, so that no inline
// function that other files share is compiled for it.
#include "loops.h"

#if defined(__x86_64__)

#include <immintrin.h>

namespace deevo::cpu {
namespace {

bool supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("bmi2");
}

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,bmi2"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,bmi2,prefer-vector-width=512")
#endif

constexpr int kFloats = 16;
typedef float Floats __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(64)));
typedef uint16_t Few __attribute__((vector_size(32)));
typedef uint64_t Lanes __attribute__((vector_size(64)));

inline Lanes multiply(Lanes a, Lanes b) {
  return reinterpret_cast<Lanes>(
      _mm512_maskz_mul_epu32(0xFF, reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
}
inline Lanes pair(Lanes a, Lanes b) {
  return reinterpret_cast<Lanes>(
      _mm512_mask_moveldup_ps(reinterpret_cast<__m512>(a), 0xAAAA, reinterpret_cast<__m512>(b)));
}
inline uint64_t below(Lanes a, Lanes b, uint16_t limit) {
  const __m512i limits = _mm512_set1_epi16(static_cast<short>(limit));
  const uint64_t first = _mm512_cmple_epu16_mask(reinterpret_cast<__m512i>(a), limits);
  const uint64_t second = _mm512_cmple_epu16_mask(reinterpret_cast<__m512i>(b), limits);
  return _pdep_u64(first, 0x0F0F0F0F0F0F0F0Full) | _pdep_u64(second, 0xF0F0F0F0F0F0F0F0ull);
}
inline Floats least(Floats a, Floats b) {
  return reinterpret_cast<Floats>(
      _mm512_maskz_min_ps(0xFFFF, reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
}
inline Words choose(uint32_t bits, Words yes, Words no, uint32_t exponent) {
  const __m512i x = reinterpret_cast<__m512i>(yes);
  const __m512i ones = _mm512_set1_epi32(static_cast<int>(exponent));
  const __mmask16 taken =
      _mm512_mask_cmpneq_epi32_mask(static_cast<__mmask16>(bits), _mm512_and_si512(x, ones), ones);
  return reinterpret_cast<Words>(_mm512_mask_mov_epi32(reinterpret_cast<__m512i>(no), taken, x));
}
inline Halves choose(uint32_t bits, Halves yes, Halves no, uint16_t exponent) {
  const __m512i x = reinterpret_cast<__m512i>(yes);
  const __m512i ones = _mm512_set1_epi16(static_cast<short>(exponent));
  const __mmask32 taken = _mm512_mask_cmpneq_epi16_mask(bits, _mm512_and_si512(x, ones), ones);
  return reinterpret_cast<Halves>(_mm512_mask_mov_epi16(reinterpret_cast<__m512i>(no), taken, x));
}
inline void widen_half(Halves stored, Floats* parts) {
  const __m512i x = reinterpret_cast<__m512i>(stored);
  const __m256i low = _mm512_maskz_extracti64x4_epi64(0xF, x, 0);
  const __m256i high = _mm512_maskz_extracti64x4_epi64(0xF, x, 1);
  parts[0] = reinterpret_cast<Floats>(_mm512_maskz_cvtph_ps(0xFFFF, low));
  parts[1] = reinterpret_cast<Floats>(_mm512_maskz_cvtph_ps(0xFFFF, high));
}
inline Halves round_half(const Floats* parts) {
  const __m512 a = reinterpret_cast<__m512>(parts[0]), b = reinterpret_cast<__m512>(parts[1]);
  const __m256i low = _mm512_maskz_cvtps_ph(0xFFFF, a, _MM_FROUND_TO_NEAREST_INT);
  const __m256i high = _mm512_maskz_cvtps_ph(0xFFFF, b, _MM_FROUND_TO_NEAREST_INT);
  return reinterpret_cast<Halves>(
      _mm512_maskz_inserti64x4(0xFF, _mm512_castsi256_si512(low), high, 1));
}
template <class V>
inline void stream(void* to, V vector) {
  _mm512_stream_si512(static_cast<__m512i*>(to), reinterpret_cast<__m512i>(vector));
}

inline Floats widen_few(Few stored) {
  return reinterpret_cast<Floats>(_mm512_maskz_cvtph_ps(0xFFFF, reinterpret_cast<__m256i>(stored)));
}
inline Few narrow_few(Floats v) {
  return reinterpret_cast<Few>(
      _mm512_maskz_cvtps_ph(0xFFFF, reinterpret_cast<__m512>(v), _MM_FROUND_TO_NEAREST_INT));
}

inline Halves pack_high(Words a, Words b) {
  alignas(64) static constexpr uint16_t kOdd[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21,
                                                    23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43,
                                                    45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  return reinterpret_cast<Halves>(_mm512_permutex2var_epi16(
      reinterpret_cast<__m512i>(a), _mm512_load_si512(kOdd), reinterpret_cast<__m512i>(b)));
}
inline Halves pack_half(const Floats* parts) { return round_half(parts); }
inline bool any(Words words) {
  const __m512i x = reinterpret_cast<__m512i>(words);
  return _mm512_test_epi32_mask(x, x) != 0;
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

const Loops kAvx512Loops = {"avx512",    supported,
                            draw_mask,   {trial<Float32>, trial<BFloat16>, trial<Float16>},
                            kEvaluation, kRecipes};

}  // namespace deevo::cpu

#endif  // __x86_64__
