// The loops for the instruction set that every machine of this architecture has.
#include "loops.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace deevo::cpu {
namespace {

#if defined(__SSE2__)
constexpr int kLanes = 2;
typedef uint64_t Lanes __attribute__((vector_size(8 * kLanes)));
inline Lanes multiply(Lanes a, Lanes b) {
  return reinterpret_cast<Lanes>(
      _mm_mul_epu32(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
}
inline void store_pairs(uint16_t* out, Lanes a, Lanes b) {
  const __m128i x = reinterpret_cast<__m128i>(a), y = reinterpret_cast<__m128i>(b);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm_unpacklo_epi64(x, y));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 8), _mm_unpackhi_epi64(x, y));
}
#elif defined(__aarch64__)
constexpr int kLanes = 2;
typedef uint64_t Lanes __attribute__((vector_size(8 * kLanes)));
inline Lanes multiply(Lanes a, Lanes b) {
  return reinterpret_cast<Lanes>(vmull_u32(vmovn_u64(reinterpret_cast<uint64x2_t>(a)),
                                           vmovn_u64(reinterpret_cast<uint64x2_t>(b))));
}
inline void store_pairs(uint16_t* out, Lanes a, Lanes b) {
  const uint64x2_t x = reinterpret_cast<uint64x2_t>(a), y = reinterpret_cast<uint64x2_t>(b);
  vst1q_u16(out, vreinterpretq_u16_u64(vzip1q_u64(x, y)));
  vst1q_u16(out + 8, vreinterpretq_u16_u64(vzip2q_u64(x, y)));
}
#else
constexpr int kLanes = 1;
typedef uint64_t Lanes __attribute__((vector_size(8)));
inline Lanes multiply(Lanes a, Lanes b) { return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu); }
inline void store_pairs(uint16_t* out, Lanes a, Lanes b) {
  std::memcpy(out, &a, 8);
  std::memcpy(out + 4, &b, 8);
}
#endif

#include "loops_body.h"

bool supported() { return true; }

}  // namespace

const Loops kBaselineLoops = {"baseline",     supported,       mask_draws,
                              trial<Float32>, trial<BFloat16>, trial<Float16>};

}  // namespace deevo::cpu
