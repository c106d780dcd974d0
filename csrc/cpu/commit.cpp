// commit on the CPU: the accepted trials of a tile are made again and written over the population
// in place; replaced parents move to the archive. A trial's parents may be replaced in the same
// tile, so the rows that are overwritten are copied before the first write, and read from there.
// Bytes per weight column: the rows that are read once, and two written per accepted member.
#include <vector>

#include "deevo/trials.h"
#include "operators.h"
#include "tile.h"

namespace deevo::cpu {
namespace {

template <class S>
void run(const Generation& g, const std::vector<int64_t>& members, const int32_t* archive_slot,
         int64_t threads) {
  using Stored = typename S::Stored;
  const int64_t num_members = static_cast<int64_t>(members.size());
  const std::vector<int32_t> read = rows_read(g, members.data(), num_members);
  std::vector<const char*> starts;
  for (const int32_t row : read) {
    starts.push_back(reinterpret_cast<const char*>(row_start<const Stored>(g, row)));
  }
  // The rows that are overwritten: place[row] is where they are in a tile's copy; -1 for the rest.
  std::vector<int32_t> copied, place(g.population.count + g.archive.count, -1);
  const auto add = [&](int64_t row) {
    place[row] = static_cast<int32_t>(copied.size());
    copied.push_back(static_cast<int32_t>(row));
  };
  for (const int64_t member : members) {
    add(member);
    const int32_t slot = archive_slot[member];
    if (slot >= 0 && std::binary_search(read.begin(), read.end(), g.population.count + slot)) {
      add(g.population.count + slot);
    }
  }
  const int64_t num_copied = static_cast<int64_t>(copied.size());
  const int64_t width =
      tile_columns(g.columns, static_cast<int64_t>(read.size()) + num_copied, sizeof(Stored));
  if (g.columns * static_cast<int64_t>(read.size()) < (1 << 16)) threads = 1;
  std::vector<Stored> scratch_rows(threads * num_copied * width);
  parallel_tiles(g.columns, width, threads, [&](int64_t worker, Tile tile, Tile next) {
    Stored* copies = scratch_rows.data() + worker * num_copied * width;
    for (int64_t i = 0; i < num_copied; ++i) {
      std::memcpy(copies + i * width, row_start<Stored>(g, copied[i]) + tile.begin,
                  tile.size * sizeof(Stored));
    }
    const auto row_at = [&](int32_t row) -> const Stored* {
      return place[row] >= 0 ? copies + place[row] * width : row_start<Stored>(g, row) + tile.begin;
    };
    const int64_t pieces = (tile.size + kPiece - 1) / kPiece;
    Prefetcher prefetcher(starts, next.begin * sizeof(Stored), next.size * sizeof(Stored),
                          num_members * pieces);
    for (const int64_t member : members) {
      trial_tile<S, false>(g, member, tile, row_at,
                           row_start<Stored>(g, static_cast<int32_t>(member)) + tile.begin,
                           prefetcher);
      if (archive_slot[member] >= 0) {
        std::memcpy(
            row_start<Stored>(g, static_cast<int32_t>(g.population.count) + archive_slot[member]) +
                tile.begin,
            row_at(static_cast<int32_t>(member)), tile.size * sizeof(Stored));
      }
    }
  });
}

}  // namespace

const char* commit(const CommitArguments& a, int64_t threads) {
  const Generation& g = a.g;
  std::vector<int64_t> members;
  std::vector<bool> taken(g.archive.count, false);
  for (int64_t member = 0; member < g.population.count; ++member) {
    if (!a.accepted[member]) continue;
    if (const char* error = check_choice(g, member)) return error;
    const int32_t slot = a.archive_slot[member];
    if (slot >= g.archive.count) return "archive_slot names a row that does not exist";
    if (slot >= 0 && taken[slot]) return "archive_slot names a row twice";
    if (slot >= 0) taken[slot] = true;
    members.push_back(member);
  }
  if (const char* error = check_genes(g)) return error;
  if (members.empty()) return nullptr;
  dispatch(g.number,
           [&](auto number) { run<decltype(number)>(g, members, a.archive_slot, threads); });
  return nullptr;
}

}  // namespace deevo::cpu
