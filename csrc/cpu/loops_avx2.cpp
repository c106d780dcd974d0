// The loops for x86-64 with AVX2. The target is set after all includes, so that no inline function
// that other files share is compiled for it.
#include "loops.h"

#if defined(__x86_64__)

namespace deevo::cpu {
namespace {

bool supported() {
  return __builtin_cpu_supports("avx2");
}

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2")
#endif
#include "loops_body.h"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

}  // namespace

const Loops kAvx2Loops = {"avx2", supported, mask_draws, trial<Float32>, trial<BFloat16>};

}  // namespace deevo::cpu

#endif  // __x86_64__
