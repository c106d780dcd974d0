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
void run(const TrialsArguments& a, int64_t threads) {
  const Generation& g = a.g;
  using Stored = typename S::Stored;
  std::vector<const char*> starts;
  for (const int32_t row : rows_read(g, a.members, a.num_trials)) {
    starts.push_back(reinterpret_cast<const char*>(row_start<const Stored>(g, row)));
  }
  const int64_t rows = static_cast<int64_t>(starts.size()) + (kStreaming ? 0 : a.num_trials);
  const int64_t width = tile_columns(g.columns, rows, sizeof(Stored));
  if (g.columns * a.num_trials < (1 << 16)) threads = 1;
  parallel_tiles(g.columns, width, threads, [&](int64_t, Tile tile, Tile next) {
    const int64_t pieces = (tile.size + kPiece - 1) / kPiece;
    Prefetcher prefetcher(starts, next.begin * sizeof(Stored), next.size * sizeof(Stored),
                          a.num_trials * pieces);
    const auto row_at = [&](int32_t row) { return row_start<const Stored>(g, row) + tile.begin; };
    for (int64_t e = 0; e < a.num_trials; ++e) {
      trial_tile<S, kStreaming>(g, a.members[e], tile, row_at,
                                static_cast<Stored*>(a.out.data) + e * a.out.stride + tile.begin,
                                prefetcher);
    }
    if (kStreaming) end_streaming();
  });
}

template <class S>
void run(const TrialsArguments& a, int64_t threads) {
  // More than the caches would keep until the rows are read again.
  constexpr int64_t kLargeOutput = 64 * 1024 * 1024;
  const int64_t bytes =
      a.num_trials * a.g.columns * static_cast<int64_t>(sizeof(typename S::Stored));
  if (bytes > kLargeOutput) {
    run<S, true>(a, threads);
  } else {
    run<S, false>(a, threads);
  }
}

}  // namespace

const char* trials(const TrialsArguments& a, int64_t threads) {
  for (int64_t e = 0; e < a.num_trials; ++e) {
    if (const char* error = check_choice(a.g, a.members[e])) return error;
  }
  if (const char* error = check_genes(a.g)) return error;
  if (a.num_trials == 0) return nullptr;
  dispatch(a.g.number, [&](auto number) { run<decltype(number)>(a, threads); });
  return nullptr;
}

}  // namespace deevo::cpu
