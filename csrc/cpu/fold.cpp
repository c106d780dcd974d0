// fold on the CPU: tiles of output channels over threads. A tile's weights are scaled and rounded
// into a buffer in L1 in the order in which they are read, then written channels-last.
// Bytes per weight: the stored type read once, the target type written once.
#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "deevo/fold_trials.h"
#include "inference.h"
#include "threads.h"
#include "tile.h"

namespace deevo::cpu {
namespace {

// out[r][c] = in[c][r] for `channels` c; a row of out is `padded` apart.
template <int kTaps, class T>
void transpose_taps(const T* __restrict in, T* __restrict out, int64_t channels, int64_t taps,
                    int64_t padded) {
  const int64_t stride = kTaps > 0 ? kTaps : taps;
  for (int64_t r = 0; r < stride; ++r) {
    for (int64_t c = 0; c < channels; ++c) out[r * padded + c] = in[c * stride + r];
  }
}

template <class T>
void transpose_taps(const T* in, T* out, int64_t channels, int64_t taps, int64_t padded) {
  switch (taps) {
    case 9:
      return transpose_taps<9>(in, out, channels, taps, padded);
    case 25:
      return transpose_taps<25>(in, out, channels, taps, padded);
    case 49:
      return transpose_taps<49>(in, out, channels, taps, padded);
    default:
      return transpose_taps<0>(in, out, channels, taps, padded);
  }
}

// Part of a source: elements from `first` on.
template <class T>
struct Piece {
  const T* data;
  int64_t first;

  const T* at(int64_t i) const { return data + (i - first); }
};

// One output channel's weights; source: the entry's weights; target: the first of the entry's.
template <class From, class To>
void fold_weights(const int64_t* entry, const FoldTile& tile, int64_t out, Scale scale_all,
                  float scale, Piece<typename From::Stored> source, typename To::Stored* target) {
  const int64_t ins = entry[kFoldIn], taps = entry[kFoldTaps], padded = entry[kFoldPadded];
  const int64_t channels = tile.in_end - tile.in;
  alignas(64) typename To::Stored buffer[kFoldTile];
  const typename From::Stored* from = source.at((out * ins + tile.in) * taps);
  typename To::Stored* to = target + out * taps * padded + tile.in;
  typename To::Stored* made = taps == 1 ? to : buffer;
  scale_all(from, made, channels * taps, scale);
  if (taps > 1) transpose_taps(buffer, to, channels, taps, padded);
  if (tile.in_end < ins || padded == ins) return;
  for (int64_t r = 0; r < taps; ++r) {
    std::memset(to + r * padded + channels, 0, (padded - ins) * sizeof(*to));
  }
}

// row(column): the part that the tile needs of the source in that column, which lies in the row.
template <class From, class To, class Row>
void fold_tile_of(const Fold& f, int64_t member, const FoldTile& tile, const Row& row) {
  using Target = typename To::Stored;
  const int64_t* entry = f.table + tile.entry * kFoldColumns;
  const float* statistics = static_cast<const float*>(f.statistics.data) +
                            member * f.statistics.stride;  // null and unread without statistics
  Piece<typename From::Stored> pieces[kFoldVar + 1] = {};
  for (int column = kFoldWeight; column <= kFoldVar; ++column) {
    if (entry[column] >= 0 && fold_space(entry[column]) == 0) pieces[column] = row(column);
  }
  const auto apart = [&](int64_t address) {
    return Piece<float>{
        (fold_space(address) == 1 ? statistics : f.constants) + fold_offset(address), 0};
  };
  const auto element = [&](int column, int64_t i) -> float {
    if (fold_space(entry[column]) == 0) return From::widen(*pieces[column].at(i));
    return *apart(entry[column]).at(i);
  };
  float* vectors = static_cast<float*>(f.vectors.data) + member * f.vectors.stride;
  Target* weights = static_cast<Target*>(f.weights.data) + member * f.weights.stride;
  const int64_t weight = entry[kFoldWeight];
  const auto* source_loops = loops().evaluation.scale;
  const int target_type = static_cast<int>(f.target);
  const Scale scale_row = source_loops[static_cast<int>(f.source)][target_type];
  const Scale scale_apart = source_loops[static_cast<int>(Number::kFloat32)][target_type];
  for (int64_t out = tile.out; out < tile.out_end; ++out) {
    const FoldChannel channel =
        fold_channel(entry, f.eps[tile.entry], [&](int column, double absent) -> double {
          return entry[column] < 0 ? absent : element(column, out);
        });
    const float scale = static_cast<float>(channel.scale);
    if (tile.in == 0) {
      const float shift = static_cast<float>(channel.shift);
      if (entry[kFoldToShift] >= 0) vectors[entry[kFoldToShift] + out] = ToFloat32::store(shift);
      if (entry[kFoldToScale] >= 0) vectors[entry[kFoldToScale] + out] = ToFloat32::store(scale);
    }
    if (weight < 0) continue;
    Target* target = weights + entry[kFoldToWeight];
    if (fold_space(weight) == 0) {
      fold_weights<From, To>(entry, tile, out, scale_row, scale, pieces[kFoldWeight], target);
    } else {
      fold_weights<FromFloat32, To>(entry, tile, out, scale_apart, scale, apart(weight), target);
    }
  }
}

constexpr int64_t kTilesWorthAThread = 16;

template <class From, class To>
void run(const Fold& f) {
  using Source = typename From::Stored;
  const int64_t tiles = fold_num_tiles(f.table, f.entries);
  const int64_t items = tiles * f.rows.count;
  parallel_for(
      (items + kTilesWorthAThread - 1) / kTilesWorthAThread, f.threads, [&](int64_t, int64_t item) {
        const int64_t end = std::min(items, (item + 1) * kTilesWorthAThread);
        for (int64_t i = item * kTilesWorthAThread; i < end; ++i) {
          const FoldTile tile = fold_tile(f.table, f.entries, i % tiles);
          const int64_t* entry = f.table + tile.entry * kFoldColumns;
          const Source* row = static_cast<const Source*>(f.rows.data) + i / tiles * f.rows.stride;
          fold_tile_of<From, To>(f, i / tiles, tile, [&](int column) {
            return Piece<Source>{row + fold_offset(entry[column]), 0};
          });
        }
      });
}

// Trials: a tile's sources are made in a core's cache, and only what they fold into is written.
// The members' trials of a tile follow each other, so that the rows they share are read once.
template <class From, class To, class S>
void run_trials(const Fold& f, const Generation& g, const int64_t* members) {
  using Source = typename From::Stored;
  static_assert(std::is_same_v<Source, typename S::Stored>);
  const int64_t tiles = fold_num_tiles(f.table, f.entries);
  const std::vector<const char*> nothing;
  parallel_for(
      (tiles + kTilesWorthAThread - 1) / kTilesWorthAThread, f.threads, [&](int64_t, int64_t item) {
        // Weights and five vectors, each from a multiple of 8 columns on.
        std::vector<Source> made(6 * (kFoldTile + 64));
        const int64_t end = std::min(tiles, (item + 1) * kTilesWorthAThread);
        for (int64_t i = item * kTilesWorthAThread; i < end; ++i) {
          const FoldTile tile = fold_tile(f.table, f.entries, i);
          const int64_t* entry = f.table + tile.entry * kFoldColumns;
          const int64_t ins = entry[kFoldIn], taps = entry[kFoldTaps];
          for (int64_t e = 0; e < f.weights.count; ++e) {
            fold_tile_of<From, To>(f, e, tile, [&](int column) {
              const bool vector = column != kFoldWeight;
              const int64_t first = vector ? tile.out : (tile.out * ins + tile.in) * taps;
              const int64_t last =
                  vector ? tile.out_end : ((tile.out_end - 1) * ins + tile.in_end) * taps;
              const int64_t offset = fold_offset(entry[column]);
              const int64_t begin = (offset + first) / 8 * 8;  // masks come in blocks of 8 weights
              Source* to = made.data() + column * (kFoldTile + 64);
              Prefetcher none(nothing, 0, 0, 1);
              trial_tile<S, false>(
                  g, members[e], Tile{begin, offset + last - begin},
                  [&](int32_t row) { return row_start<const Source>(g, row) + begin; }, to, none);
              return Piece<Source>{to + (offset + first - begin), first};
            });
          }
        }
      });
}

// Calls run(From(), To()) with the types of source and target.
template <class Run>
void dispatch(Number source, Number target, const Run& run) {
  const auto with_source = [&](auto from) {
    switch (target) {
      case Number::kFloat32:
        return run(from, ToFloat32());
      case Number::kBFloat16:
        return run(from, ToBFloat16());
      case Number::kFloat16:
        return run(from, ToFloat16());
    }
  };
  switch (source) {
    case Number::kFloat32:
      return with_source(FromFloat32());
    case Number::kBFloat16:
      return with_source(FromBFloat16());
    case Number::kFloat16:
      return with_source(FromFloat16());
  }
}

}  // namespace

void fold(const Fold& f) {
  dispatch(f.source, f.target, [&](auto from, auto to) { run<decltype(from), decltype(to)>(f); });
}

const char* fold_trials(const Fold& f, const Generation& g, const int64_t* members) {
  for (int64_t e = 0; e < f.weights.count; ++e) {
    if (const char* error = check_choice(g, members[e])) return error;
  }
  if (const char* error = check_genes(g)) return error;
  dispatch(f.source, f.target, [&](auto from, auto to) {
    using From = decltype(from);
    run_trials<From, decltype(to), typename StorageOf<From>::Type>(f, g, members);
  });
  return nullptr;
}

}  // namespace deevo::cpu
