// The loops for the instruction set that every machine of this architecture has.
#include "loops.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace deevo::cpu {
namespace {

constexpr int kFloats = 4;
typedef float Floats __attribute__((vector_size(16)));
typedef uint32_t Words __attribute__((vector_size(16)));
typedef uint16_t Halves __attribute__((vector_size(16)));
typedef uint16_t Few __attribute__((vector_size(8)));
typedef uint64_t Lanes __attribute__((vector_size(16)));
inline Lanes pair(Lanes a, Lanes b) { return (a & 0xFFFFFFFFu) | (b << 32); }

#include "loops_choose.h"

#if defined(__SSE2__)
inline Lanes multiply(Lanes a, Lanes b) {
  return reinterpret_cast<Lanes>(
      _mm_mul_epu32(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
}
inline uint64_t below(Lanes a, Lanes b, uint16_t limit) {
  const __m128i x = reinterpret_cast<__m128i>(a), y = reinterpret_cast<__m128i>(b);
  const __m128i limits = _mm_set1_epi16(static_cast<short>(limit)), zero = _mm_setzero_si128();
  const __m128i first = _mm_subs_epu16(_mm_unpacklo_epi64(x, y), limits);
  const __m128i second = _mm_subs_epu16(_mm_unpackhi_epi64(x, y), limits);
  return static_cast<uint32_t>(_mm_movemask_epi8(
      _mm_packs_epi16(_mm_cmpeq_epi16(first, zero), _mm_cmpeq_epi16(second, zero))));
}
inline Floats least(Floats a, Floats b) {
  return reinterpret_cast<Floats>(
      _mm_min_ps(reinterpret_cast<__m128>(a), reinterpret_cast<__m128>(b)));
}
template <class V>
inline void stream(void* to, V vector) {
  _mm_stream_si128(static_cast<__m128i*>(to), reinterpret_cast<__m128i>(vector));
}
#else
#if defined(__aarch64__)
inline Lanes multiply(Lanes a, Lanes b) {
  return reinterpret_cast<Lanes>(vmull_u32(vmovn_u64(reinterpret_cast<uint64x2_t>(a)),
                                           vmovn_u64(reinterpret_cast<uint64x2_t>(b))));
}
inline uint64_t below(Lanes a, Lanes b, uint16_t limit) {
  const uint64x2_t x = reinterpret_cast<uint64x2_t>(a), y = reinterpret_cast<uint64x2_t>(b);
  constexpr uint16x8_t kPowers = {1, 2, 4, 8, 16, 32, 64, 128};
  const uint16x8_t limits = vdupq_n_u16(limit);
  const uint16x8_t first = vcleq_u16(vreinterpretq_u16_u64(vzip1q_u64(x, y)), limits);
  const uint16x8_t second = vcleq_u16(vreinterpretq_u16_u64(vzip2q_u64(x, y)), limits);
  return vaddvq_u16(vandq_u16(first, kPowers)) | vaddvq_u16(vandq_u16(second, kPowers)) << 8;
}
#else
inline Lanes multiply(Lanes a, Lanes b) { return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu); }
inline uint64_t below(Lanes a, Lanes b, uint16_t limit) {
  uint64_t bits = 0;
  for (int draw = 0; draw < 16; ++draw) {
    const uint64_t words = draw % 8 < 4 ? a[draw / 8] : b[draw / 8];
    const uint16_t drawn = static_cast<uint16_t>(words >> (16 * (draw % 4)));
    bits |= static_cast<uint64_t>(drawn <= limit) << draw;
  }
  return bits;
}
#endif
inline Floats least(Floats a, Floats b) { return a < b ? a : b; }
template <class V>
inline void stream(void* to, V vector) {
  memcpy(to, &vector, sizeof vector);
}
#endif

// float16 by integers, as Float16 of deevo/number.h: the even weights, then the odd ones.
typedef int32_t Integers __attribute__((vector_size(16)));

inline Floats widen_half(Words half) {
  const Floats scaled = reinterpret_cast<Floats>((half & 0x7FFFu) << 13) * 0x1p112f;
  return reinterpret_cast<Floats>(reinterpret_cast<Words>(scaled) | (half & 0x8000u) << 16);
}
inline Words round_half(Floats v) {
  const Words bits = reinterpret_cast<Words>(v), magnitude = bits & 0x7FFFFFFFu;
  const Integers size = reinterpret_cast<Integers>(magnitude);
  const Words small =
      reinterpret_cast<Words>(reinterpret_cast<Floats>(magnitude) + 0.5f) - 0x3F000000u;
  const Words normal = (magnitude - 0x38000000u + 0xFFFu + ((magnitude >> 13) & 1u)) >> 13;
  const Words finite = size < 0x38800000 ? small : normal;
  const Words rounded = size < 0x477FF000 ? finite : Words{} + 0x7C00u;
  return rounded | ((bits >> 16) & 0x8000u);
}
inline void widen_half(Halves stored, Floats* parts) {
  const Words words = reinterpret_cast<Words>(stored);
  parts[0] = widen_half(words & 0xFFFFu);
  parts[1] = widen_half(words >> 16);
}
inline Halves round_half(const Floats* parts) {
  return reinterpret_cast<Halves>(round_half(parts[0]) | round_half(parts[1]) << 16);
}

inline Floats widen_few(Few stored) {
  const Words half = __builtin_convertvector(stored, Words), magnitude = half & 0x7FFFu;
  const Words special = 0x7F800000u | (half & 0x3FFu) << 13 | (half & 0x8000u) << 16;
  return reinterpret_cast<Integers>(magnitude) < 0x7C00 ? widen_half(half)
                                                        : reinterpret_cast<Floats>(special);
}
inline Few narrow_few(Floats v) {
  const Words quiet = Words{} + 0x7E00u;
  return __builtin_convertvector(v != v ? quiet : round_half(v), Few);
}

#if defined(__SSE2__)
inline Halves pack_high(Words a, Words b) {
  return reinterpret_cast<Halves>(
      _mm_packs_epi32(_mm_srai_epi32(reinterpret_cast<__m128i>(a), 16),
                      _mm_srai_epi32(reinterpret_cast<__m128i>(b), 16)));
}
inline bool any(Words words) { return _mm_movemask_epi8(reinterpret_cast<__m128i>(words)) != 0; }
#else
inline Halves pack_high(Words a, Words b) {
  const Few few[2] = {__builtin_convertvector(a >> 16, Few), __builtin_convertvector(b >> 16, Few)};
  Halves halves;
  memcpy(&halves, few, sizeof halves);
  return halves;
}
inline bool any(Words words) { return (words[0] | words[1] | words[2] | words[3]) != 0; }
#endif
inline Halves pack_half(const Floats* parts) {
  return pack_high(round_half(parts[0]) << 16, round_half(parts[1]) << 16);
}

#include "loops_body.h"
#include "loops_evaluation.h"
#include "loops_recipes.h"

bool supported() { return true; }

}  // namespace

const Loops kBaselineLoops = {"baseline",  supported,
                              draw_mask,   {trial<Float32>, trial<BFloat16>, trial<Float16>},
                              kEvaluation, kRecipes};

}  // namespace deevo::cpu
