// Threads for one call: started and joined inside it, so that nothing survives a fork and two
// callers never share anything. Starting costs tens of microseconds, so small work runs inline.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__SSE__)
#include <xmmintrin.h>
#else
#include <cfenv>
#endif

namespace deevo {

// The contract's float environment (round to nearest, subnormals kept) for the enclosing scope; the
// caller's own is put back at its end.
class FloatEnvironment {
 public:
#if defined(__SSE__)
  FloatEnvironment() : saved_(_mm_getcsr()) { _mm_setcsr(0x1F80); }
  ~FloatEnvironment() { _mm_setcsr(saved_); }
#else
  FloatEnvironment() { std::fegetenv(&saved_), std::fesetenv(FE_DFL_ENV); }
  ~FloatEnvironment() { std::fesetenv(&saved_); }
#endif
  FloatEnvironment(const FloatEnvironment&) = delete;
  FloatEnvironment& operator=(const FloatEnvironment&) = delete;

 private:
#if defined(__SSE__)
  unsigned saved_;
#else
  std::fenv_t saved_;
#endif
};

// Calls body(worker, item) for every item in [0, items), handed out one at a time to at most
// `threads` workers; worker < threads tells bodies which scratch memory is theirs.
template <class Body>
void parallel_for(int64_t items, int64_t threads, const Body& body) {
  std::atomic<int64_t> next{0};
  const auto work = [&](int64_t worker) {
    const FloatEnvironment environment;
    for (int64_t item = next++; item < items; item = next++) body(worker, item);
  };
  std::vector<std::thread> others;
  const int64_t helpers = std::min(items, threads) - 1;
  try {
    others.reserve(helpers > 0 ? helpers : 0);
    for (int64_t worker = 1; worker <= helpers; ++worker) others.emplace_back(work, worker);
  } catch (const std::system_error&) {
    // No further thread to be had: the ones that started do the work.
  }
  work(0);
  for (std::thread& other : others) other.join();
}

}  // namespace deevo
