// Choice of the loops at run time.
#include "loops.h"

#include <atomic>
#include <cstring>

namespace deevo::cpu {
namespace {

// From fastest to slowest.
const Loops* const kAll[] = {
#if defined(__x86_64__)
    &kAvx512Loops, &kAvx2Loops,
#endif
    &kBaselineLoops};

std::atomic<const Loops*> chosen{nullptr};

}  // namespace

const Loops& loops() {
  if (const Loops* already = chosen.load(std::memory_order_relaxed)) return *already;
  use_loops("");
  return *chosen.load(std::memory_order_relaxed);
}

bool use_loops(const char* name) {
#if defined(__x86_64__)
  __builtin_cpu_init();  // not every compiler's start-up code has done it
#endif
  for (const Loops* candidate : kAll) {
    const bool named = name[0] == '\0' || std::strcmp(name, candidate->name) == 0;
    if (!named || !candidate->supported()) continue;
    chosen.store(candidate, std::memory_order_relaxed);
    return true;
  }
  return false;
}

}  // namespace deevo::cpu
