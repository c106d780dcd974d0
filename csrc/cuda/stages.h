// What kernels over tiles of columns share: a block brings a tile of rows into shared memory while
// it computes the one before. Blocks are persistent, as many as the device has multiprocessors, and
// each takes every so many-th tile.
#pragma once

#include "copies.h"
#include "segments.h"
#include "vectors.h"

namespace deevo::cuda {

constexpr int kTileThreads = 512;
constexpr int64_t kWidestTile = 4096, kNarrowestTile = 32;  // bytes of a row
constexpr int64_t kMostVectors = kWidestTile / 16;

// Offset in shared memory of something that many bytes long, after what was taken already.
DEEVO_HD int64_t take_shared(int64_t* end, int64_t bytes) {
  const int64_t start = *end;
  *end = (start + bytes + 127) / 128 * 128;
  return start;
}

// Bytes of a row in a tile, a power of two, and how many tiles shared memory holds at a time.
struct TileShape {
  int64_t width;
  int stages;

  DEEVO_HD TileShape(int64_t space, int64_t rows, int64_t row_bytes, int64_t blocks) {
    stages = 2 * rows * kNarrowestTile <= space ? 2 : 1;
    width = kNarrowestTile;
    // Wide enough for the memory's pages, but narrow enough to deal tiles out evenly.
    while (width < kWidestTile && stages * rows * width * 2 <= space &&
           (width < 512 || width * 8 * blocks <= row_bytes)) {
      width *= 2;
    }
  }
};

// All tiles of this block: start(tile, stage) begins to bring one, compute(tile, stage) finds it in
// shared memory.
template <class Start, class Compute>
DEEVO_DEVICE void for_each_tile(Copies* copies, int stages, int64_t tiles, const Start& start,
                                const Compute& compute) {
  int stage = 0;
  if (block_index() < tiles) start(block_index(), stage);
  for (int64_t tile = block_index(); tile < tiles; tile += grid_blocks()) {
    const int64_t next = tile + grid_blocks();
    const bool ahead = stages == 2 && next < tiles;
    if (ahead) start(next, stage ^ 1);
    copies->wait(stage, ahead ? 1 : 0);
    sync_block();
    compute(tile, stage);
    fence_bulk();
    sync_block();
    if (stages == 2) {
      stage ^= 1;
    } else if (next < tiles) {
      start(next, stage);
    }
  }
}

// Starts bringing `bytes` of each of `rows` rows, from(row) on, to rows of `width` bytes: whole
// vectors by asynchronous copies, what is left of a short or unaligned tile weight by weight.
template <class Stored, class From>
DEEVO_DEVICE void bring_tile(Copies* copies, int stage, int rows, uint32_t width, uint32_t bytes,
                             bool wide, unsigned char* to, const From& from) {
  const uint32_t copied = wide ? bytes / 16 * 16 : 0;
  copies->start(
      stage, rows, copied, [&](int row) { return to + row * width; },
      [&](int row) { return reinterpret_cast<const unsigned char*>(from(row)); });
  const int done = static_cast<int>(copied / sizeof(Stored));
  const int rest = static_cast<int>(bytes / sizeof(Stored)) - done;
  if (rest <= 0) return;
  for (int64_t n = thread_index(); n < static_cast<int64_t>(rows) * rest; n += block_threads()) {
    const int row = static_cast<int>(n / rest), at = done + static_cast<int>(n % rest);
    reinterpret_cast<Stored*>(to + row * width)[at] = from(row)[at];
  }
}

// The segment of each of a tile's vectors, whose first weights are first, first + weights, ...
DEEVO_DEVICE void find_segments(const Segments& of, int64_t first, int weights, int vectors,
                                int32_t* found) {
  const int64_t segment = segment_of(of, first);
  for (int vector = thread_index(); vector < vectors; vector += block_threads()) {
    found[vector] = static_cast<int32_t>(segment_of(of, first + vector * weights, segment));
  }
}

// Whether every row of a matrix starts at a multiple of 16 bytes.
template <class Stored>
bool aligned(const Rows& rows) {
  const auto address = reinterpret_cast<uintptr_t>(rows.data);
  const bool steps = rows.count < 2 || rows.stride * static_cast<int64_t>(sizeof(Stored)) % 16 == 0;
  return rows.count == 0 || (address % 16 == 0 && steps);
}

}  // namespace deevo::cuda
