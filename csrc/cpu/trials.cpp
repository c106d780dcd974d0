// trials on the CPU: tiles of columns over threads, every wanted member's trial per tile.
#include <vector>

#include "deevo/trials.h"
#include "operators.h"
#include "threads.h"
#include "tile.h"

namespace deevo::cpu {
namespace {

template <class S>
void run(const Generation& g, const int64_t* members, int64_t num_trials, Rows out) {
  using Stored = typename S::Stored;
  const int64_t columns = tile_columns(g.population.count + num_trials, sizeof(Stored));
  const int64_t tiles = (g.columns + columns - 1) / columns;
  const int64_t threads = g.columns * num_trials < (1 << 16) ? 1 : g.threads;
  std::vector<uint16_t> draws(threads * columns);
  const Stored* population = static_cast<const Stored*>(g.population.data);
  const Stored* archive = static_cast<const Stored*>(g.archive.data);
  parallel_for(tiles, threads, [&](int64_t worker, int64_t tile) {
    const int64_t begin = tile * columns;
    const int64_t size = std::min(columns, g.columns - begin);
    const auto row_at = [&](int32_t row) {
      return row < g.population.count
                 ? population + row * g.population.stride + begin
                 : archive + (row - g.population.count) * g.archive.stride + begin;
    };
    for (int64_t e = 0; e < num_trials; ++e) {
      trial_tile<S>(g, members[e], begin, size, row_at, draws.data() + worker * columns,
                    static_cast<Stored*>(out.data) + e * out.stride + begin);
    }
  });
}

}  // namespace

const char* trials(const Generation& g, const int64_t* members, int64_t num_trials, Rows out) {
  for (int64_t e = 0; e < num_trials; ++e) {
    if (const char* error = check_choice(g, members[e])) return error;
  }
  if (num_trials == 0) return nullptr;
  if (g.storage == Storage::kFloat32) {
    run<Float32>(g, members, num_trials, out);
  } else {
    run<BFloat16>(g, members, num_trials, out);
  }
  return nullptr;
}

}  // namespace deevo::cpu
