// What the two single-block kernels over the small tensors share.
#pragma once

#include <string>

#include "deevo/tables.h"
#include "device.h"
#include "launch.h"
#include "operators.h"

namespace deevo::cuda {

constexpr int kTableThreads = 256;

DEEVO_DEVICE void check_generation(int64_t generation) {
  DEEVO_CHECK(generation >= 1 && generation <= 0x7FFFFFFF, "generation is not in 1..2147483647");
}

DEEVO_DEVICE void check_living(int64_t living) {
  DEEVO_CHECK(living >= 2, "alive leaves fewer than two members");
}

// The host cannot know what size of state the settings imply.
DEEVO_DEVICE void check_sizes(const Configuration& c) {
  const double* s = c.settings;
  const auto is_size = [](double x) { return x >= 1.0 && x <= 2147483648.0 && x == nearbyint(x); };
  const bool sizes =
      is_size(s[kMemorySize]) && is_size(s[kStrategyPeriod]) && is_size(s[kSinusoidPeriod]);
  DEEVO_CHECK(sizes, "settings hold sizes that are not whole numbers from 1");
  DEEVO_CHECK(StateOffsets(s, c.num_strategies).size == c.state_size,
              "state has not the size that settings imply");
}

// Takes `count` numbers of type T from the end of what is taken already.
template <class T>
DEEVO_HD int64_t take_bytes(int64_t* end, int64_t count) {
  const int64_t start = *end;
  *end = (start + count * static_cast<int64_t>(sizeof(T)) + 15) / 16 * 16;
  return start;
}

// Null if a block's shared memory holds that much, else an error text.
inline const char* check_shared(int64_t bytes, const Limits& limits, int64_t members) {
  if (bytes <= static_cast<int64_t>(limits.shared_bytes)) return nullptr;
  thread_local std::string text;
  text = "fitness has " + std::to_string(members) + " members, which need " +
         std::to_string(bytes) + " bytes of shared memory; expected at most the " +
         std::to_string(limits.shared_bytes) +
         " that a block has on this GPU: use fewer members, or keep the population on the CPU";
  return text.c_str();
}

}  // namespace deevo::cuda
