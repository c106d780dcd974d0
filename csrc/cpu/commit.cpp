// commit on the CPU: the accepted trials of a tile are made from a copy of the tile's rows, because
// a trial's parents may be replaced in the same generation, then written over the population in
// place; replaced parents move to the archive.
#include <vector>

#include "deevo/trials.h"
#include "operators.h"
#include "threads.h"
#include "tile.h"

namespace deevo::cpu {
namespace {

// The rows that the accepted members read, each with its place in a thread's scratch copy.
struct Inputs {
  std::vector<int32_t> rows;
  std::vector<int32_t> place;  // by row; -1: not read

  void add(int32_t row) {
    if (place[row] >= 0) return;
    place[row] = static_cast<int32_t>(rows.size());
    rows.push_back(row);
  }
};

Inputs inputs_of(const Generation& g, const std::vector<int64_t>& members) {
  Inputs inputs;
  inputs.place.assign(g.population.count + g.archive.count, -1);
  for (const int64_t member : members) {
    const int32_t* choice = g.choices + member * kChoiceColumns;
    inputs.add(static_cast<int32_t>(member));
    inputs.add(choice[kBaseRow]);
    for (int m = 0; m < choice[kTerms]; ++m) inputs.add(choice[kRows + m]);
  }
  return inputs;
}

template <class S>
void run(const Generation& g, const std::vector<int64_t>& members, const int32_t* archive_slot) {
  using Stored = typename S::Stored;
  const Inputs inputs = inputs_of(g, members);
  const int64_t num_rows = static_cast<int64_t>(inputs.rows.size());
  const int64_t columns = tile_columns(2 * num_rows, sizeof(Stored));
  const int64_t tiles = (g.columns + columns - 1) / columns;
  const int64_t threads = g.columns * num_rows < (1 << 16) ? 1 : g.threads;
  std::vector<uint16_t> draws(threads * columns);
  std::vector<Stored> scratch(threads * num_rows * columns);
  Stored* population = static_cast<Stored*>(g.population.data);
  Stored* archive = static_cast<Stored*>(g.archive.data);
  parallel_for(tiles, threads, [&](int64_t worker, int64_t tile) {
    const int64_t begin = tile * columns;
    const int64_t size = std::min(columns, g.columns - begin);
    Stored* copy = scratch.data() + worker * num_rows * columns;
    const auto in_memory = [&](int32_t row) {
      return row < g.population.count
                 ? population + row * g.population.stride + begin
                 : archive + (row - g.population.count) * g.archive.stride + begin;
    };
    for (int64_t r = 0; r < num_rows; ++r) {
      std::memcpy(copy + r * columns, in_memory(inputs.rows[r]), size * sizeof(Stored));
    }
    const auto row_at = [&](int32_t row) -> const Stored* {
      return copy + inputs.place[row] * columns;
    };
    for (const int64_t member : members) {
      trial_tile<S>(g, member, begin, size, row_at, draws.data() + worker * columns,
                    in_memory(static_cast<int32_t>(member)));
      if (archive_slot[member] >= 0) {
        std::memcpy(archive + archive_slot[member] * g.archive.stride + begin,
                    row_at(static_cast<int32_t>(member)), size * sizeof(Stored));
      }
    }
  });
}

}  // namespace

const char* commit(const Generation& g, const uint8_t* accepted, const int32_t* archive_slot) {
  std::vector<int64_t> members;
  std::vector<bool> taken(g.archive.count, false);
  for (int64_t member = 0; member < g.population.count; ++member) {
    if (!accepted[member]) continue;
    if (const char* error = check_choice(g, member)) return error;
    const int32_t slot = archive_slot[member];
    if (slot >= g.archive.count) return "archive_slot names a row that does not exist";
    if (slot >= 0 && taken[slot]) return "archive_slot names a row twice";
    if (slot >= 0) taken[slot] = true;
    members.push_back(member);
  }
  if (members.empty()) return nullptr;
  if (g.storage == Storage::kFloat32) {
    run<Float32>(g, members, archive_slot);
  } else {
    run<BFloat16>(g, members, archive_slot);
  }
  return nullptr;
}

}  // namespace deevo::cpu
