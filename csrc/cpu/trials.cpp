// trials on the CPU: tiles of columns over threads, every wanted member's trial per tile.
// Bytes per weight column: the rows that are read once and E written, whatever the number of
// parents, because the rows of a tile stay in the core's L2 cache.
#include "deevo/trials.h"

#include <vector>

#include "operators.h"
#include "tile.h"

namespace deevo::cpu {
namespace {

template <class S, bool kStreaming>
void run(const Generation& g, const int64_t* members, int64_t num_trials, Rows out) {
  using Stored = typename S::Stored;
  std::vector<const char*> starts;
  for (const int32_t row : rows_read(g, members, num_trials)) {
    starts.push_back(reinterpret_cast<const char*>(row_start<const Stored>(g, row)));
  }
  const int64_t rows = static_cast<int64_t>(starts.size()) + (kStreaming ? 0 : num_trials);
  const int64_t width = tile_columns(g.columns, rows, sizeof(Stored));
  const int64_t threads = g.columns * num_trials < (1 << 16) ? 1 : g.threads;
  parallel_tiles(g.columns, width, threads, [&](int64_t, Tile tile, Tile next) {
    const int64_t pieces = (tile.size + kPiece - 1) / kPiece;
    Prefetcher prefetcher(starts, next.begin * sizeof(Stored), next.size * sizeof(Stored),
                          num_trials * pieces);
    const auto row_at = [&](int32_t row) { return row_start<const Stored>(g, row) + tile.begin; };
    for (int64_t e = 0; e < num_trials; ++e) {
      trial_tile<S, kStreaming>(g, members[e], tile, row_at,
                                static_cast<Stored*>(out.data) + e * out.stride + tile.begin,
                                prefetcher);
    }
    if (kStreaming) end_streaming();
  });
}

template <class S>
void run(const Generation& g, const int64_t* members, int64_t num_trials, Rows out) {
  // More than the caches would keep until the rows are read again.
  constexpr int64_t kLargeOutput = 64 * 1024 * 1024;
  const int64_t bytes = num_trials * g.columns * static_cast<int64_t>(sizeof(typename S::Stored));
  if (bytes > kLargeOutput) {
    run<S, true>(g, members, num_trials, out);
  } else {
    run<S, false>(g, members, num_trials, out);
  }
}

}  // namespace

const char* trials(const Generation& g, const int64_t* members, int64_t num_trials, Rows out) {
  for (int64_t e = 0; e < num_trials; ++e) {
    if (const char* error = check_choice(g, members[e])) return error;
  }
  if (const char* error = check_genes(g)) return error;
  if (num_trials == 0) return nullptr;
  dispatch(g.storage, [&](auto storage) { run<decltype(storage)>(g, members, num_trials, out); });
  return nullptr;
}

}  // namespace deevo::cpu
