// Sorted contiguous segments of a row: crossover's genes, and what the blocks of recipes are of.
#pragma once

#include "launch.h"

namespace deevo::cuda {

struct Segments {
  const int64_t* starts;  // ascending, the first 0
  int64_t count;
};

// Every thread looks at some.
DEEVO_DEVICE void check_segments(const Segments& of, const char* text) {
  for (int64_t k = thread_index(); k < of.count; k += block_threads()) {
    const bool ascending = k == 0 ? of.starts[0] == 0 : of.starts[k - 1] < of.starts[k];
    DEEVO_CHECK(ascending, text);
  }
}

// Where the segment after this one starts.
DEEVO_DEVICE int64_t segment_end(const Segments& of, int64_t segment) {
  return segment + 1 < of.count ? of.starts[segment + 1] : INT64_MAX;
}

// The segment that weight `at` belongs to, the last one that starts at or before it, where segment
// `first` does. Steps that double, then halve: few where `first` is near.
DEEVO_DEVICE int64_t segment_of(const Segments& of, int64_t at, int64_t first) {
  const auto starts = [&](int64_t k) { return k < of.count && of.starts[k] <= at; };
  int64_t step = 1;
  for (; starts(first + step); step *= 2) first += step;
  while ((step /= 2) > 0) {
    if (starts(first + step)) first += step;
  }
  return first;
}

// The same, found by a whole warp from nothing: 32 segments are asked at a time.
DEEVO_DEVICE int64_t segment_of(const Segments& of, int64_t at) {
  int64_t first = 0, end = of.count;
  while (end - first > 1) {
    const int64_t step = (end - first + 31) / 32;
    const int64_t k = first + (thread_index() & 31) * step;
    const bool starts = k < end && of.starts[k] <= at;
    first += (population_count(vote(starts)) - 1) * step;
    end = first + step < end ? first + step : end;
  }
  return first;
}

}  // namespace deevo::cuda
