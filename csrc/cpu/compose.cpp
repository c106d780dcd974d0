// compose on the CPU: tiles of columns over threads. In a tile, rows of several recipes are made
// at the same time, in float32, block by block; then they are rounded and written.
// Bytes per weight column: M rows read once and K written, because what a tile reads again, for
// further recipes, is still in the core's caches.
#include "deevo/compose.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "operators.h"
#include "tile.h"

namespace deevo::cpu {
namespace {

constexpr int64_t kWidth = 1024;  // columns of a tile
// Registers may be read and written whole beyond the last column. Some cache lines between two rows
// of a buffer also keep their columns out of one another's cache sets.
constexpr int64_t kRoom = 32;
constexpr int64_t kStride = kWidth + kRoom;

// What a thread works with, beside the members' rows.
struct Workspace {
  alignas(64) float composed[kMostTogether * kStride];
  alignas(64) float least[kStride];
  std::vector<const void*> members;  // their rows' first columns in the tile
  std::vector<char> copies;          // of rows, where they end
  // Coefficients of some recipes for one block, as the loops take them.
  std::vector<const void*> rows;
  std::vector<float> coefficients;  // [rows, kMostTogether]
  bool dense;
};

// The coefficients of recipes [first, first + count) for a block; a missing one is the last again.
void gather(const ComposeArguments& a, int64_t first, int64_t count, int64_t block, Workspace& w) {
  w.rows.clear(), w.coefficients.clear();
  w.dense = true;
  const int64_t members = a.population.count;
  for (int64_t m = 1; m < members; ++m) {
    float some[kMostTogether];
    int zeros = 0;
    for (int64_t k = 0; k < kMostTogether; ++k) {
      const int64_t recipe = first + std::min(k, count - 1);
      some[k] = a.recipes[(recipe * a.blocks + block) * members + m];
      zeros += some[k] == 0.0f;
    }
    if (zeros == kMostTogether) continue;
    w.dense = w.dense && zeros == 0;
    w.rows.push_back(w.members[m]);
    w.coefficients.insert(w.coefficients.end(), some, some + kMostTogether);
  }
}

// Rows [first, first + count) of a tile, in float32, segment by segment.
void mix(const ComposeArguments& a, Tile tile, int64_t first, int64_t count, Workspace& w) {
  const auto kernel = loops().recipes.mix[static_cast<int>(a.number)];
  int64_t segment = std::upper_bound(a.starts, a.starts + a.segments, tile.begin) - a.starts - 1;
  for (int64_t at = 0; at < tile.size; ++segment) {
    const bool last = segment + 1 == a.segments;
    const int64_t end = last ? tile.size : std::min(tile.size, a.starts[segment + 1] - tile.begin);
    gather(a, first, count, a.block_of[segment], w);
    kernel({w.members[0], w.rows.data(), static_cast<int64_t>(w.rows.size()), w.coefficients.data(),
            static_cast<int>(count), w.dense, w.composed, kStride},
           at, end);
    at = end;
  }
}

// Where the members' rows are; copies with room behind them where the rows have none.
template <class Stored>
void find_members(const ComposeArguments& a, Tile tile, Workspace& w) {
  const bool at_the_end = tile.begin + tile.size + kRoom > a.columns;
  if (at_the_end) w.copies.resize(a.population.count * kStride * sizeof(Stored));
  w.members.clear();
  for (int64_t m = 0; m < a.population.count; ++m) {
    const Stored* row =
        static_cast<const Stored*>(a.population.data) + m * a.population.stride + tile.begin;
    void* copy = w.copies.data() + m * kStride * sizeof(Stored);
    w.members.push_back(at_the_end ? std::memcpy(copy, row, tile.size * sizeof(Stored)) : row);
  }
}

template <class S>
void run(const ComposeArguments& a, int64_t threads) {
  using Stored = typename S::Stored;
  constexpr int64_t kLargeOutput = 64 * 1024 * 1024;  // more than caches keep until it is read
  const int number = static_cast<int>(a.number);
  const RecipeLoops& kernel = loops().recipes;
  const bool large = a.out.count * a.columns * int64_t{sizeof(Stored)} > kLargeOutput;
  if (a.columns * (a.population.count + a.out.count) < (1 << 16)) threads = 1;
  std::vector<Workspace> of_workers(threads);
  parallel_tiles(a.columns, kWidth, threads, [&](int64_t worker, Tile tile, Tile) {
    Workspace& w = of_workers[worker];
    find_members<Stored>(a, tile, w);
    const int64_t body = std::clamp<int64_t>(a.nonneg_start - tile.begin, 0, tile.size);
    if (body < tile.size) {
      loops().evaluation.widen[number](w.members[0], w.least, tile.size);
      for (const void* member : w.members) kernel.lessen[number](member, w.least, tile.size);
    }
    for (int64_t first = 0; first < a.out.count; first += kMostTogether) {
      const int64_t count = std::min<int64_t>(kMostTogether, a.out.count - first);
      mix(a, tile, first, count, w);
      for (int64_t k = 0; k < count; ++k) {
        float* v = w.composed + k * kStride;
        Stored* out = static_cast<Stored*>(a.out.data) + (first + k) * a.out.stride + tile.begin;
        kernel.lift(w.least + body, v + body, tile.size - body);
        const bool streaming = large && reinterpret_cast<uintptr_t>(out) % 64 == 0;
        kernel.settle[number](v, w.members[0], out, tile.size, streaming);
      }
    }
    if (large) end_streaming();
  });
}

}  // namespace

const char* compose(const ComposeArguments& a, int64_t threads) {
  bool ascending = a.starts[0] == 0;
  for (int64_t s = 1; s < a.segments; ++s) ascending &= a.starts[s - 1] < a.starts[s];
  if (!ascending) return "starts are not ascending starts of segments, the first at 0";
  for (int64_t s = 0; s < a.segments; ++s) {
    if (a.block_of[s] < 0 || a.block_of[s] >= a.blocks) {
      return "block_of names a block that does not exist";
    }
  }
  if (a.out.count == 0) return nullptr;
  dispatch(a.number, [&](auto number) { run<decltype(number)>(a, threads); });
  return nullptr;
}

}  // namespace deevo::cpu
