// The loops for x86-64 with AVX512. The target is set after all includes, so that no inline
// function that other files share is compiled for it.
#include "loops.h"

#if defined(__x86_64__)

#include <immintrin.h>

namespace deevo::cpu {
namespace {

bool supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#endif

constexpr int kLanes = 8;
typedef uint64_t Lanes __attribute__((vector_size(8 * kLanes)));
inline Lanes multiply(Lanes a, Lanes b) {
  return reinterpret_cast<Lanes>(
      _mm512_maskz_mul_epu32(0xFF, reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
}
inline void store_pairs(uint16_t* out, Lanes a, Lanes b) {
  const __m512i x = reinterpret_cast<__m512i>(a), y = reinterpret_cast<__m512i>(b);
  _mm512_storeu_si512(out, _mm512_maskz_unpacklo_epi64(0xFF, x, y));
  _mm512_storeu_si512(out + 32, _mm512_maskz_unpackhi_epi64(0xFF, x, y));
}

#include "loops_body.h"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

}  // namespace

const Loops kAvx512Loops = {"avx512",       supported,       mask_draws,
                            trial<Float32>, trial<BFloat16>, trial<Float16>};

}  // namespace deevo::cpu

#endif  // __x86_64__
