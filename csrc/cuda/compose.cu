// compose on CUDA: rows from recipes, which weigh the members block by block.
//   v = x_0; for m in 1..M-1 in order, where a[m] is not 0: v = v + a[m] (x_m - x_0)
// A weighted average of weights, one weighting a block (deevo/compose.h has the sources); float32,
// each operation rounded. Bytes per weight column: M rows read and K written, because a tile of all
// members lies in shared memory while a block makes every recipe's part of it (stages.h).
//   Each term takes a multiplication and an addition a weight and recipe, never fused; with many
// recipes these decide, not memory. So a warp makes several recipes at a time, which share what was
// loaded and the difference.
#include <string>

#include "deevo/compose.h"
#include "device.h"
#include "operators.h"
#include "stages.h"

namespace deevo::cuda {
namespace {

constexpr int kMostTogether = 4;  // recipes that a warp makes at a time
constexpr int kTileWarps = kTileThreads / 32;

struct ComposeTiles {
  ComposeArguments a;
  bool wide_loads, wide_stores;  // addresses allow 16 bytes at a time
  uint32_t shared_bytes;
};

// Where things lie in a block's shared memory; the same on host and device.
struct ComposeLayout {
  int64_t coefficients, segments, tiles_at;  // offsets in bytes

  DEEVO_HD explicit ComposeLayout(int64_t members) {
    int64_t end = 128;  // mbarriers
    coefficients = take_shared(&end, kTileWarps * members * kMostTogether * 4);
    segments = take_shared(&end, 2 * kMostVectors * 4);
    tiles_at = end;
  }
};

// kTogether: recipes of a warp.
template <class S, int kTogether>
class ComposeBlock {
  using Stored = typename S::Stored;
  // Of a lane, half a kilobyte apart: as many as leave registers for kMostTogether sums of each.
  static constexpr int kVectors = kWeights<S> == 4 ? 2 : 1;
  static constexpr int kApart = 32 * 16;  // bytes from one to the next
  static constexpr int kChunk = kVectors * kApart;

 public:
  DEEVO_DEVICE ComposeBlock(const ComposeTiles& t, unsigned char* shared)
      : t_(t),
        a_(t.a),
        layout_(t.a.population.count),
        copies_(reinterpret_cast<uint64_t*>(shared)),
        coefficients_(reinterpret_cast<float*>(shared + layout_.coefficients)),
        segments_(reinterpret_cast<int32_t*>(shared + layout_.segments)),
        tiles_(shared + layout_.tiles_at),
        members_(static_cast<int>(t.a.population.count)) {}

  DEEVO_DEVICE void run() {
    check_segments(segments(), "starts are not ascending starts of segments, the first at 0");
    for (int64_t s = thread_index(); s < a_.segments; s += block_threads()) {
      DEEVO_CHECK(a_.block_of[s] >= 0 && a_.block_of[s] < a_.blocks,
                  "block_of names a block that does not exist");
    }
    sync_block();
    const int64_t row_bytes = a_.columns * static_cast<int64_t>(sizeof(Stored));
    const TileShape shape(t_.shared_bytes - layout_.tiles_at, members_, row_bytes, grid_blocks());
    width_ = static_cast<uint32_t>(shape.width);
    for_each_tile(
        &copies_, shape.stages, (row_bytes + width_ - 1) / width_,
        [&](int64_t tile, int stage) { start(tile, stage); },
        [&](int64_t tile, int stage) { compute(tile, stage); });
  }

 private:
  DEEVO_DEVICE Segments segments() const { return {a_.starts, a_.segments}; }

  DEEVO_DEVICE unsigned char* stage_at(int stage) const {
    return tiles_ + static_cast<int64_t>(stage) * members_ * width_;
  }

  DEEVO_DEVICE uint32_t tile_bytes(int64_t tile) const {
    const int64_t left = a_.columns * static_cast<int64_t>(sizeof(Stored)) - tile * width_;
    return static_cast<uint32_t>(left < width_ ? left : width_);
  }

  DEEVO_DEVICE int64_t first_column(int64_t tile) const {
    return tile * (width_ / static_cast<int64_t>(sizeof(Stored)));
  }

  DEEVO_DEVICE void start(int64_t tile, int stage) {
    const uint32_t bytes = tile_bytes(tile);
    const int64_t column = first_column(tile);
    const Stored* first = static_cast<const Stored*>(a_.population.data) + column;
    bring_tile<Stored>(&copies_, stage, members_, width_, bytes, t_.wide_loads, stage_at(stage),
                       [&](int member) { return first + member * a_.population.stride; });
    find_segments(segments(), column, kWeights<S>, (bytes + 15) / 16,
                  segments_ + stage * kMostVectors);
  }

  // Chunks of a tile, for some recipes at a time, are dealt out to the warps.
  DEEVO_DEVICE void compute(int64_t tile, int stage) {
    const int bytes = static_cast<int>(tile_bytes(tile));
    const int64_t tile_column = first_column(tile);
    const int32_t* found = segments_ + stage * kMostVectors;
    const int chunks = (bytes + kChunk - 1) / kChunk;
    const int groups = static_cast<int>((a_.out.count + kTogether - 1) / kTogether);
    const int lane = thread_index() & 31, warps = block_threads() / 32;
    for (int item = thread_index() / 32; item < groups * chunks; item += warps) {
      const int group = item / chunks, begin = (item - group * chunks) * kChunk;
      const int64_t end = tile_column + (begin + kChunk) / static_cast<int>(sizeof(Stored));
      const int32_t segment = found[begin / 16];
      const bool plain = t_.wide_stores && begin + kChunk <= bytes && end <= a_.nonneg_start &&
                         end <= segment_end(segments(), segment);
      const int64_t first = static_cast<int64_t>(group) * kTogether;
      if (plain) {
        mix(stage, begin + lane * 16, tile_column, first, a_.block_of[segment]);
        continue;
      }
      for (int at = begin + lane * 16; at < begin + kChunk && at < bytes; at += kApart) {
        const int left = (bytes - at) / static_cast<int>(sizeof(Stored));
        for (int64_t k = first; k < first + kTogether && k < a_.out.count; ++k) {
          mix_each(stage, at, tile_column, left, found[at / 16], k);
        }
      }
    }
  }

  DEEVO_DEVICE const float* recipe(int64_t k, int64_t block) const {
    return a_.recipes + (k * a_.blocks + block) * members_;
  }

  // Whole vectors of one block, before the tail.
  DEEVO_DEVICE void mix(int stage, uint32_t at, int64_t tile_column, int64_t first, int64_t block) {
    float* own = coefficients_ + thread_index() / 32 * members_ * kTogether;
    sync_warp();  // they may still be read
    for (int n = thread_index() & 31; n < members_ * kTogether; n += 32) {
      const int64_t k = first + n % kTogether;
      own[n] = k < a_.out.count ? recipe(k, block)[n / kTogether] : 0.0f;
    }
    sync_warp();
    const unsigned char* rows = stage_at(stage) + at;
    float base[kVectors][kWeights<S>], v[kTogether][kVectors][kWeights<S>];
    DEEVO_UNROLL
    for (int n = 0; n < kVectors; ++n) {
      widen<S>(load_vector(rows + n * kApart), base[n]);
      DEEVO_UNROLL
      for (int k = 0; k < kTogether; ++k) {
        DEEVO_UNROLL
        for (int i = 0; i < kWeights<S>; ++i) v[k][n][i] = base[n][i];
      }
    }
    for (int m = 1; m < members_; ++m) {
      rows += width_;
      float c[kTogether], difference[kVectors][kWeights<S>];
      DEEVO_UNROLL
      for (int k = 0; k < kTogether; ++k) c[k] = own[m * kTogether + k];
      DEEVO_UNROLL
      for (int n = 0; n < kVectors; ++n) {
        widen<S>(load_vector(rows + n * kApart), difference[n]);
        DEEVO_UNROLL
        for (int i = 0; i < kWeights<S>; ++i) difference[n][i] = difference[n][i] - base[n][i];
      }
      DEEVO_UNROLL
      for (int k = 0; k < kTogether; ++k) {
        if (c[k] == 0.0f) continue;
        DEEVO_UNROLL
        for (int n = 0; n < kVectors; ++n) {
          DEEVO_UNROLL
          for (int i = 0; i < kWeights<S>; ++i) v[k][n][i] = v[k][n][i] + c[k] * difference[n][i];
        }
      }
    }
    DEEVO_UNROLL
    for (int k = 0; k < kTogether; ++k) {
      if (first + k >= a_.out.count) return;
      DEEVO_UNROLL
      for (int n = 0; n < kVectors; ++n) {
        const int64_t column = tile_column + (at + n * kApart) / sizeof(Stored);
        store_vector(out_at(first + k, column), settled(v[k][n], base[n]));
      }
    }
  }

  DEEVO_DEVICE Stored* out_at(int64_t k, int64_t column) const {
    return static_cast<Stored*>(a_.out.data) + k * a_.out.stride + column;
  }

  DEEVO_DEVICE static Vector settled(const float (&v)[kWeights<S>],
                                     const float (&base)[kWeights<S>]) {
    float chosen[kWeights<S>];
    DEEVO_UNROLL
    for (int i = 0; i < kWeights<S>; ++i) {
      chosen[i] = fabsf(v[i]) < beyond_storage<S>() ? v[i] : base[i];
    }
    return round<S>(chosen);
  }

  // A vector of any weights, `left` of which there are, the first of them in this segment.
  DEEVO_DEVICE void mix_each(int stage, uint32_t at, int64_t tile_column, int left, int64_t segment,
                             int64_t k) {
    const unsigned char* rows = stage_at(stage) + at;
    const int64_t column = tile_column + at / sizeof(Stored);
    float base[kWeights<S>], v[kWeights<S>];
    widen<S>(load_vector(rows), base);
    DEEVO_UNROLL
    for (int i = 0; i < kWeights<S>; ++i) v[i] = base[i];
    for (int64_t begin = column; begin < column + kWeights<S>; ++segment) {
      const int64_t end = segment_end(segments(), segment);
      const float* c = recipe(k, a_.block_of[segment]);
      for (int m = 1; m < members_; ++m) {
        if (c[m] == 0.0f) continue;
        float x[kWeights<S>];
        widen<S>(load_vector(rows + m * width_), x);
        DEEVO_UNROLL
        for (int i = 0; i < kWeights<S>; ++i) {
          const float sum = v[i] + c[m] * (x[i] - base[i]);
          v[i] = column + i >= begin && column + i < end ? sum : v[i];
        }
      }
      begin = end;
    }
    if (column + kWeights<S> > a_.nonneg_start) lift(rows, column, v);
    store_weights(out_at(k, column), settled(v, base), left, t_.wide_stores);
  }

  // In the tail: half the least of the members' weights where a sum is not above 0.
  DEEVO_DEVICE void lift(const unsigned char* rows, int64_t column, float (&v)[kWeights<S>]) {
    float least[kWeights<S>];
    widen<S>(load_vector(rows), least);
    for (int m = 1; m < members_; ++m) {
      float x[kWeights<S>];
      widen<S>(load_vector(rows + m * width_), x);
      DEEVO_UNROLL
      for (int i = 0; i < kWeights<S>; ++i) least[i] = x[i] < least[i] ? x[i] : least[i];
    }
    DEEVO_UNROLL
    for (int i = 0; i < kWeights<S>; ++i) {
      if (column + i >= a_.nonneg_start) v[i] = v[i] > 0.0f ? v[i] : 0.5f * least[i];
    }
  }

  const ComposeTiles& t_;
  const ComposeArguments& a_;
  const ComposeLayout layout_;
  Copies copies_;
  float* coefficients_;
  int32_t* segments_;
  unsigned char* tiles_;
  int members_;
  uint32_t width_ = 0;
};

template <class S, int kTogether>
DEEVO_KERNEL(kTileThreads, 1)
compose_kernel(DEEVO_PARAMETERS ComposeTiles t) {
  DEEVO_SHARED(shared);
  ComposeBlock<S, kTogether>(t, shared).run();
}

template <class S, int kTogether>
const char* launch_compose(const Queue& queue, ComposeTiles t, const Limits& limits) {
  const auto kernel = compose_kernel<S, kTogether>;
  if (const char* error = DEEVO_ALLOW_SHARED(kernel, t.shared_bytes)) return error;
  return DEEVO_LAUNCH(kernel, limits.multiprocessors, kTileThreads, t.shared_bytes, queue.stream,
                      t);
}

}  // namespace

const char* compose(const ComposeArguments& a, const Queue& queue) {
  if (a.out.count == 0) return nullptr;
  const CurrentDevice device(queue.device);
  if (device.error() != nullptr) return device.error();
  const int64_t members = a.population.count;
  const int64_t limit = static_cast<int64_t>(device.limits().shared_bytes);
  const int64_t tiles_at = ComposeLayout(members).tiles_at;
  if (tiles_at + members * kNarrowestTile > limit) {
    thread_local std::string text;
    text = "population has " + std::to_string(members) + " rows; expected at most about " +
           std::to_string(limit / (kNarrowestTile + kTileThreads / 2)) +
           ", whose coefficients and tiles this GPU's shared memory holds: compose fewer members, "
           "or keep the population on the CPU";
    return text.c_str();
  }
  return dispatch(a.number, [&](auto number) {
    using S = decltype(number);
    using Stored = typename S::Stored;
    ComposeTiles t = {a, aligned<Stored>(a.population), aligned<Stored>(a.out), 0};
    const int64_t useful = tiles_at + 2 * members * kWidestTile;
    t.shared_bytes = static_cast<uint32_t>(useful < limit ? useful : limit);
    return a.out.count < kMostTogether
               ? launch_compose<S, 1>(queue, t, device.limits())
               : launch_compose<S, kMostTogether>(queue, t, device.limits());
  });
}

}  // namespace deevo::cuda
