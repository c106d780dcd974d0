// fold on the CPU: tiles of output channels over threads. A tile's weights are scaled and rounded
// into a buffer in L1 in the order in which they are read, then written channels-last.
// Bytes per weight: the stored type read once, the target type written once.
#include "deevo/fold.h"

#include <algorithm>
#include <cstring>

#include "loops.h"
#include "operators.h"
#include "threads.h"

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

// One output channel's weights; source: the entry's weights; target: the first of the entry's.
template <class From, class To>
void fold_weights(const int64_t* entry, const FoldTile& tile, int64_t out, Scale scale_all,
                  float scale, const typename From::Stored* source, typename To::Stored* target) {
  const int64_t ins = entry[kFoldIn], taps = entry[kFoldTaps], padded = entry[kFoldPadded];
  const int64_t channels = tile.in_end - tile.in;
  alignas(64) typename To::Stored buffer[kFoldTile];
  const typename From::Stored* from = source + (out * ins + tile.in) * taps;
  typename To::Stored* to = target + out * taps * padded + tile.in;
  typename To::Stored* made = taps == 1 ? to : buffer;
  scale_all(from, made, channels * taps, scale);
  if (taps > 1) transpose_taps(buffer, to, channels, taps, padded);
  if (tile.in_end < ins || padded == ins) return;
  for (int64_t r = 0; r < taps; ++r) {
    std::memset(to + r * padded + channels, 0, (padded - ins) * sizeof(*to));
  }
}

template <class From, class To>
void fold_tile_of(const FoldArguments& f, int64_t member, const FoldTile& tile) {
  using Target = typename To::Stored;
  const int64_t* entry = f.table + tile.entry * kFoldColumns;
  const auto* row = static_cast<const typename From::Stored*>(f.rows.data) + member * f.rows.stride;
  float* vectors = static_cast<float*>(f.vectors.data) + member * f.vectors.stride;
  Target* weights = static_cast<Target*>(f.weights.data) + member * f.weights.stride;
  const int64_t weight = entry[kFoldWeight];
  const auto* source_loops = loops().evaluation.scale;
  const int target_type = static_cast<int>(f.target);
  const Scale scale_row = source_loops[static_cast<int>(f.source)][target_type];
  const Scale scale_apart = source_loops[static_cast<int>(Number::kFloat32)][target_type];
  for (int64_t out = tile.out; out < tile.out_end; ++out) {
    const FoldChannel channel = fold_channel<From>(f, member, row, tile.entry, out);
    const float scale = static_cast<float>(channel.scale);
    if (tile.in == 0 && entry[kFoldToShift] >= 0) {
      const float shift = static_cast<float>(channel.shift);
      vectors[entry[kFoldToShift] + out] = Float32::round(shift);
    }
    if (weight < 0) continue;
    Target* target = weights + entry[kFoldToWeight];
    if (fold_space(weight) == 0) {
      fold_weights<From, To>(entry, tile, out, scale_row, scale, row + fold_offset(weight), target);
    } else {
      fold_weights<Float32, To>(entry, tile, out, scale_apart, scale, fold_apart(f, member, weight),
                                target);
    }
  }
}

constexpr int64_t kTilesWorthAThread = 16;

template <class From, class To>
void run(const FoldArguments& f, int64_t threads) {
  const int64_t tiles = fold_num_tiles(f.table, f.entries);
  const int64_t items = tiles * f.rows.count;
  parallel_for((items + kTilesWorthAThread - 1) / kTilesWorthAThread, threads,
               [&](int64_t, int64_t item) {
                 const int64_t end = std::min(items, (item + 1) * kTilesWorthAThread);
                 for (int64_t i = item * kTilesWorthAThread; i < end; ++i) {
                   fold_tile_of<From, To>(f, i / tiles, fold_tile(f.table, f.entries, i % tiles));
                 }
               });
}

}  // namespace

const char* fold(const FoldArguments& a, int64_t threads) {
  dispatch(a.source, [&](auto from) {
    dispatch(a.target, [&](auto to) { run<decltype(from), decltype(to)>(a, threads); });
  });
  return nullptr;
}

}  // namespace deevo::cpu
