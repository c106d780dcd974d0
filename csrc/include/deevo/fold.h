// fold: the inference weights of a network from a flat row, BatchNorm folded in.
//   scale = gamma / sqrt(var + eps), shift = beta + (bias - mean) scale   per output channel,
//   float64, each operation rounded; weight[o, r, c] = W[o, c, r] float32(scale[o]) in float32,
//   rounded to nearest even into the target type; channels last, padded with zeros.
// (Jacob et al., "Quantization and Training of Neural Networks", CVPR 2018, section 3.2.)
// Traffic per weight: the stored type read once, the target type written once.
#pragma once

#include <cmath>

#include "deevo/arguments.h"
#include "deevo/common.h"

namespace deevo {

// Columns of the table, int64 [L, kFoldColumns]; deevo_ext/ops/fold_table.py is the same list.
enum FoldColumn {
  kFoldWeight,  // this and the next five: source addresses, -1 = absent
  kFoldBias,
  kFoldGamma,
  kFoldBeta,
  kFoldMean,
  kFoldVar,
  kFoldOut,
  kFoldIn,
  kFoldTaps,
  kFoldPadded,
  kFoldToWeight,
  kFoldToShift,
  kFoldFirstTile,
  kFoldColumns
};

constexpr int64_t kFoldTile = 4096;  // source weights of a tile

// Where an address lies: 0 the row, 1 the statistics, 2 the constants; and which element it is.
DEEVO_HD int64_t fold_space(int64_t address) { return address >> 48; }
DEEVO_HD int64_t fold_offset(int64_t address) { return address & ((int64_t{1} << 48) - 1); }

// Which part of an entry a tile is: output channels [out, out_end) x input channels [in, in_end).
struct FoldTile {
  int64_t entry, out, out_end, in, in_end;
};

DEEVO_HD int64_t fold_least(int64_t a, int64_t b) { return a < b ? a : b; }

// The last entry that begins at or before this tile.
DEEVO_HD int64_t fold_entry_of(const int64_t* table, int64_t entries, int64_t tile) {
  int64_t low = 0, high = entries;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (table[middle * kFoldColumns + kFoldFirstTile] <= tile) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

DEEVO_HD int64_t fold_chunk(int64_t taps) {
  const int64_t chunk = kFoldTile / taps;
  return chunk >= 8 ? chunk / 8 * 8 : (chunk > 1 ? chunk : 1);
}

DEEVO_HD int64_t fold_tiles_of(const int64_t* entry) {
  const int64_t channel = entry[kFoldWeight] < 0 ? 1 : entry[kFoldIn] * entry[kFoldTaps];
  if (channel <= kFoldTile) {
    const int64_t together = kFoldTile / channel;
    return (entry[kFoldOut] + together - 1) / together;
  }
  const int64_t chunk = fold_chunk(entry[kFoldTaps]);
  return entry[kFoldOut] * ((entry[kFoldIn] + chunk - 1) / chunk);
}

DEEVO_HD int64_t fold_num_tiles(const int64_t* table, int64_t entries) {
  if (entries == 0) return 0;
  const int64_t* last = table + (entries - 1) * kFoldColumns;
  return last[kFoldFirstTile] + fold_tiles_of(last);
}

DEEVO_HD FoldTile fold_tile(const int64_t* table, int64_t entries, int64_t tile) {
  const int64_t at = fold_entry_of(table, entries, tile);
  const int64_t* entry = table + at * kFoldColumns;
  const int64_t index = tile - entry[kFoldFirstTile];
  const bool affine = entry[kFoldWeight] < 0;
  const int64_t ins = affine ? 1 : entry[kFoldIn];
  const int64_t channel = affine ? 1 : ins * entry[kFoldTaps];
  if (channel <= kFoldTile) {
    const int64_t together = kFoldTile / channel;
    return {at, index * together, fold_least(entry[kFoldOut], (index + 1) * together), 0, ins};
  }
  const int64_t chunk = fold_chunk(entry[kFoldTaps]);
  const int64_t chunks = (ins + chunk - 1) / chunk;
  const int64_t out = index / chunks, in = index % chunks * chunk;
  return {at, out, out + 1, in, fold_least(ins, in + chunk)};
}

struct FoldChannel {
  double scale, shift;
};

// A source that is not in the row: a member's statistics, or constants.
DEEVO_HD const float* fold_apart(const FoldArguments& f, int64_t member, int64_t address) {
  const float* statistics = static_cast<const float*>(f.statistics.data);
  return (fold_space(address) == 1 ? statistics + member * f.statistics.stride : f.constants) +
         fold_offset(address);
}

// Scale and shift of an output channel of an entry of the table; row: the member's.
template <class From>
DEEVO_HD FoldChannel fold_channel(const FoldArguments& f, int64_t member,
                                  const typename From::Stored* row, int64_t at, int64_t out) {
  const int64_t* entry = f.table + at * kFoldColumns;
  const auto value = [&](int column, double absent) -> double {
    const int64_t source = entry[column];
    if (source < 0) return absent;
    return fold_space(source) == 0 ? From::widen(row[fold_offset(source) + out])
                                   : fold_apart(f, member, source)[out];
  };
  double scale = value(kFoldGamma, 1.0);
  if (entry[kFoldVar] >= 0) scale = scale / sqrt(value(kFoldVar, 0.0) + f.eps[at]);
  const double centred = value(kFoldBias, 0.0) - value(kFoldMean, 0.0);
  const double product = centred * scale;
  return {scale, value(kFoldBeta, 0.0) + product};
}

}  // namespace deevo
