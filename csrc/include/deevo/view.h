// Memory that an operator was given.
#pragma once

#include <cstdint>

namespace deevo {

// `count` rows, `stride` elements apart: flat weights, or what each of several members has.
struct Rows {
  void* data;
  int64_t count;
  int64_t stride;
};

}  // namespace deevo
