// The loops for x86-64 with AVX2. The target is set after all includes, so that no inline function
// that other files share is compiled for it.
#include "loops.h"

#if defined(__x86_64__)

#include <immintrin.h>

namespace deevo::cpu {
namespace {

bool supported() { return __builtin_cpu_supports("avx2"); }

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2")
#endif

constexpr int kLanes = 4;
typedef uint64_t Lanes __attribute__((vector_size(8 * kLanes)));
inline Lanes multiply(Lanes a, Lanes b) {
  return reinterpret_cast<Lanes>(
      _mm256_mul_epu32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
}
inline void store_pairs(uint16_t* out, Lanes a, Lanes b) {
  const __m256i x = reinterpret_cast<__m256i>(a), y = reinterpret_cast<__m256i>(b);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_unpacklo_epi64(x, y));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 16), _mm256_unpackhi_epi64(x, y));
}

#include "loops_body.h"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

}  // namespace

const Loops kAvx2Loops = {"avx2",         supported,       mask_draws,
                          trial<Float32>, trial<BFloat16>, trial<Float16>};

}  // namespace deevo::cpu

#endif  // __x86_64__
