// The kernel that trials and commit share. A block brings a tile of columns of every row that is
// read into shared memory, makes all members' trials from there and writes each once (stages.h).
//
// Rows are copied only if a plan names them, and which these are is data on the device; so every
// block finds them itself, numbers them, and derives the tile's width from their count.
#pragma once

#include "device.h"
#include "operators.h"
#include "stages.h"
#include "walk.h"

namespace deevo::cuda {

constexpr int64_t kMostRecords = 256;
constexpr int kChunkVectorBits = 6;  // of a chunk of walk.h
static_assert(16 << kChunkVectorBits == kChunk);

struct TileArguments {
  Generation g;
  MaskKeys keys;
  int64_t num_trials;      // trials: E; commit: NP, of which the accepted ones are made
  const int64_t* members;  // trials alone, like out
  Rows out;
  const uint8_t* accepted;  // commit alone, like archive_slot
  const int32_t* archive_slot;
  bool wide_loads, wide_stores, wide_archive;  // addresses allow 16 bytes at a time
  bool plain;  // and neither bounds nor genes ask for more than walk.h does
  uint32_t shared_bytes;
};

// Where things lie in a block's shared memory; the same on host and device.
struct TileLayout {
  int64_t most_rows, records;                                              // counts
  int64_t keys, slots, rows, chosen, kept, record_start, genes, tiles_at;  // offsets in bytes

  DEEVO_HD TileLayout(const TileArguments& a, bool commit) {
    const int64_t all_rows = a.g.population.count + a.g.archive.count;
    const int64_t named = a.num_trials * (2 + kMaxTerms);
    most_rows = named < all_rows ? named : all_rows;
    records = a.num_trials < kMostRecords ? a.num_trials : kMostRecords;
    int64_t end = 128;  // mbarriers and counters
    keys = take_shared(&end, sizeof(MaskKeys));
    slots = take_shared(&end, all_rows * 2);
    rows = take_shared(&end, most_rows * 2);
    chosen = take_shared(&end, commit ? a.num_trials * 2 : 0);
    kept = take_shared(&end, commit ? (a.g.archive.count + 31) / 32 * 4 : 0);
    record_start = take_shared(&end, records * static_cast<int64_t>(sizeof(Record)));
    genes = take_shared(&end, a.g.num_genes > 0 ? 2 * kMostVectors * 4 : 0);
    tiles_at = end;
  }
};

template <class S, bool kCommit>
class TileBlock {
  using Stored = typename S::Stored;

 public:
  DEEVO_DEVICE TileBlock(const TileArguments& a, unsigned char* shared)
      : a_(a),
        layout_(a, kCommit),
        copies_(reinterpret_cast<uint64_t*>(shared)),
        counters_(reinterpret_cast<int*>(shared + 64)),
        keys_(reinterpret_cast<MaskKeys*>(shared + layout_.keys)),
        slots_(reinterpret_cast<uint16_t*>(shared + layout_.slots)),
        rows_(reinterpret_cast<uint16_t*>(shared + layout_.rows)),
        chosen_(reinterpret_cast<uint16_t*>(shared + layout_.chosen)),
        kept_(reinterpret_cast<uint32_t*>(shared + layout_.kept)),
        records_(reinterpret_cast<Record*>(shared + layout_.record_start)),
        genes_(reinterpret_cast<int32_t*>(shared + layout_.genes)),
        tiles_(shared + layout_.tiles_at) {}

  DEEVO_DEVICE void run() {
    find_rows();
    if (num_rows_ == 0) return;
    const int64_t row_bytes = a_.g.columns * static_cast<int64_t>(sizeof(Stored));
    const TileShape shape(a_.shared_bytes - layout_.tiles_at, num_rows_, row_bytes, grid_blocks());
    width_ = static_cast<uint32_t>(shape.width);
    while ((16u << vector_bits_) < width_) ++vector_bits_;
    const bool staged_once = num_trials_ <= layout_.records;
    if (staged_once) stage_records(0);
    for_each_tile(
        &copies_, shape.stages, (row_bytes + width_ - 1) / width_,
        [&](int64_t tile, int stage) { start_tile(tile, stage); },
        [&](int64_t tile, int stage) {
          for (int64_t first = 0; first < num_trials_; first += layout_.records) {
            if (!staged_once) {
              sync_block();
              stage_records(first);
              sync_block();
            }
            const int64_t left = num_trials_ - first;
            compute(tile, stage, first, left < layout_.records ? left : layout_.records);
          }
        });
  }

 private:
  static constexpr uint16_t kUnused = 0xFFFF;

  DEEVO_DEVICE int64_t all_rows() const { return a_.g.population.count + a_.g.archive.count; }

  DEEVO_DEVICE int32_t member_at(int64_t e) const {
    return kCommit ? chosen_[e] : static_cast<int32_t>(a_.members[e]);
  }

  // Marks the rows that the trials are made of, checks the plan, and numbers the rows.
  DEEVO_DEVICE void find_rows() {
    const int start = thread_index(), step = block_threads();
    if (start < 2) counters_[start] = 0;
    if (start == 0) *keys_ = a_.keys;
    for (int64_t row = start; row < all_rows(); row += step) slots_[row] = kUnused;
    if (kCommit) {
      for (int64_t i = start; i < (a_.g.archive.count + 31) / 32; i += step) kept_[i] = 0;
    }
    sync_block();
    for (int64_t e = start; e < a_.num_trials; e += step) {
      if (kCommit && a_.accepted[e] == 0) continue;
      const int64_t member = kCommit ? e : a_.members[e];
      DEEVO_CHECK(member >= 0 && member < a_.g.population.count,
                  "members name a row that does not exist");
      const int32_t* choice = a_.g.choices + member * kChoiceColumns;
      check_choice(choice, all_rows());
      slots_[member] = 0;
      if (!is_idle(a_.g, choice)) {
        for (int m = -1; m < choice[kTerms]; ++m) slots_[choice[m < 0 ? kBaseRow : kRows + m]] = 0;
      }
      if (kCommit) {
        chosen_[add_shared(&counters_[1], 1)] = static_cast<uint16_t>(member);
        check_slot(a_.archive_slot[member]);
      }
    }
    check_genes(a_.g);
    sync_block();
    for (int64_t row = start; row < all_rows(); row += step) {
      if (slots_[row] == kUnused) continue;
      const int slot = add_shared(&counters_[0], 1);
      slots_[row] = static_cast<uint16_t>(slot);
      rows_[slot] = static_cast<uint16_t>(row);
    }
    sync_block();
    num_rows_ = counters_[0];
    num_trials_ = kCommit ? counters_[1] : a_.num_trials;
  }

  DEEVO_DEVICE void check_slot(int32_t slot) {
    if (slot < 0) return;
    DEEVO_CHECK(slot < a_.g.archive.count, "archive_slot names a row that does not exist");
    const uint32_t bit = 1u << (slot % 32);
    const bool taken = (or_shared(&kept_[slot / 32], bit) & bit) != 0;
    DEEVO_CHECK(!taken, "archive_slot names a row twice");
  }

  // The plans of the trials from `first` on, as many as there is room for.
  DEEVO_DEVICE void stage_records(int64_t first) {
    const int64_t left = num_trials_ - first;
    for (int64_t i = thread_index(); i < layout_.records && i < left; i += block_threads()) {
      records_[i] = make_record(a_.g, a_.keys, member_at(first + i),
                                [&](int32_t row) { return slots_[row] * width_; });
    }
  }

  DEEVO_DEVICE unsigned char* stage_at(int stage) const {
    return tiles_ + static_cast<int64_t>(stage) * num_rows_ * width_;
  }

  // Bytes of a row in this tile, the last of which may be short.
  DEEVO_DEVICE uint32_t tile_bytes(int64_t tile) const {
    const int64_t left = a_.g.columns * static_cast<int64_t>(sizeof(Stored)) - tile * width_;
    return static_cast<uint32_t>(left < width_ ? left : width_);
  }

  DEEVO_DEVICE int64_t first_column(int64_t tile) const {
    return tile * (width_ / static_cast<int64_t>(sizeof(Stored)));
  }

  DEEVO_DEVICE const Stored* row_start(int64_t row) const {
    const Rows& of = row < a_.g.population.count ? a_.g.population : a_.g.archive;
    const int64_t index = row < a_.g.population.count ? row : row - a_.g.population.count;
    return static_cast<const Stored*>(of.data) + index * of.stride;
  }

  DEEVO_DEVICE void start_tile(int64_t tile, int stage) {
    const uint32_t bytes = tile_bytes(tile);
    const int64_t column = first_column(tile);
    bring_tile<Stored>(&copies_, stage, num_rows_, width_, bytes, a_.wide_loads, stage_at(stage),
                       [&](int slot) { return row_start(rows_[slot]) + column; });
    if (a_.g.num_genes > 0) {
      find_segments(genes_of(a_.g), a_.g.first_weight + column, kWeights<S>, (bytes + 15) / 16,
                    genes_ + stage * kMostVectors);
    }
  }

  // All trials of a tile. Consecutive chunks, row after row, are dealt out to the warps.
  DEEVO_DEVICE void compute(int64_t tile, int stage, int64_t first, int64_t count) {
    const int64_t tile_column = first_column(tile);
    if (!is_plain(tile, tile_column)) return compute_each(tile, stage, first, count);
    const int chunk_bits = vector_bits_ - kChunkVectorBits;
    const int chunks = 1 << chunk_bits, items = static_cast<int>(count) << chunk_bits;
    const int warp = thread_index() / 32, warps = block_threads() / 32;
    const int end = items * (warp + 1) / warps;
    for (int item = items * warp / warps; item < end;) {
      const int e = item >> chunk_bits, chunk = item & (chunks - 1);
      const int some = chunks - chunk < end - item ? chunks - chunk : end - item;
      walk_chunks(tile_column, stage, first + e, records_[e], chunk, some);
      item += some;
    }
  }

  // Whether a tile's weights are what walk.h makes, but for the forced ones.
  DEEVO_DEVICE bool is_plain(int64_t tile, int64_t column) const {
    const int64_t end = column + width_ / static_cast<int64_t>(sizeof(Stored));
    return a_.plain && width_ >= kChunk && tile_bytes(tile) == width_ && end <= a_.g.nonneg_start;
  }

  DEEVO_DEVICE void walk_chunks(int64_t tile_column, int stage, int64_t e, const Record& record,
                                int chunk, int chunks) {
    const int lane = thread_index() & 31;
    const int64_t flat = a_.g.first_weight + tile_column;
    Path path;
    path.begin = chunk * kChunk;
    path.end = path.begin + chunks * kChunk;
    // In 32 bits this may hold elsewhere, too, which costs nothing but time.
    constexpr uint32_t kSize = sizeof(Stored);
    if (static_cast<uint32_t>(record.forced - flat) - path.begin / kSize <
        chunks * kChunk / kSize) {
      for (uint32_t at = path.begin + lane * 16; at < path.end; at += 32 * 16) {
        one_vector(tile_column, stage, e, record, at / 16, kWeights<S>);
      }
      return;
    }
    const Record r = record;
    const int64_t column = tile_column + lane * kWeights<S>;
    const auto start = [&](const Rows& rows, int64_t row) {
      return static_cast<unsigned char*>(rows.data) + (row * rows.stride + column) * int64_t{kSize};
    };
    path.rows = stage_at(stage) + lane * 16;
    path.to = kCommit ? start(a_.g.population, r.member) : start(a_.out, e);
    path.archive = nullptr;
    if (kCommit && a_.archive_slot[r.member] >= 0) {
      path.archive = start(a_.g.archive, a_.archive_slot[r.member]);
    }
    path.block = static_cast<uint32_t>(flat >> 3) + lane_block<S>(lane);
    walk<S>(r, path, *keys_);
  }

  // Trials vector by vector, whatever their weights are: lanes along the columns, members dealt out
  // to groups of lanes. The counts are powers of two, so that shifts divide by them.
  DEEVO_DEVICE void compute_each(int64_t tile, int stage, int64_t first, int64_t count) {
    const int lane_bits = vector_bits_ < 5 ? vector_bits_ : 5,
              chunk_bits = vector_bits_ - lane_bits;
    const int lane = thread_index() & ((1 << lane_bits) - 1);
    const int bytes = static_cast<int>(tile_bytes(tile));
    const int64_t tile_column = first_column(tile);
    const int items = static_cast<int>(count) << chunk_bits;
    for (int item = thread_index() >> lane_bits; item < items;
         item += block_threads() >> lane_bits) {
      const int e = item >> chunk_bits;
      const int vector = ((item & ((1 << chunk_bits) - 1)) << lane_bits) + lane;
      const int left = (bytes - vector * 16) / static_cast<int>(sizeof(Stored));
      if (left > 0) one_vector(tile_column, stage, first + e, records_[e], vector, left);
    }
  }

  DEEVO_DEVICE void one_vector(int64_t tile_column, int stage, int64_t e, const Record& record,
                               int vector, int left) {
    const int64_t column = tile_column + vector * kWeights<S>;
    const int64_t gene = a_.g.num_genes > 0 ? genes_[stage * kMostVectors + vector] : 0;
    const unsigned char* at = stage_at(stage) + vector * 16;
    Vector parent;
    const Vector made = trial_vector<S>(
        a_.g, a_.keys, record, column, gene, [&](uint32_t row) { return load_vector(at + row); },
        &parent);
    store(e, record.member, column, made, parent, left);
  }

  DEEVO_DEVICE void store(int64_t e, int32_t member, int64_t column, const Vector& made,
                          const Vector& parent, int left) {
    const Rows& to = kCommit ? a_.g.population : a_.out;
    const int64_t row = kCommit ? member : e;
    store_weights(static_cast<Stored*>(to.data) + row * to.stride + column, made, left,
                  a_.wide_stores);
    if (!kCommit) return;
    const int64_t slot = a_.archive_slot[member];
    if (slot < 0) return;
    store_weights(static_cast<Stored*>(a_.g.archive.data) + slot * a_.g.archive.stride + column,
                  parent, left, a_.wide_archive);
  }

  const TileArguments& a_;
  const TileLayout layout_;
  Copies copies_;
  int* counters_;
  MaskKeys* keys_;
  uint16_t *slots_, *rows_, *chosen_;
  uint32_t* kept_;
  Record* records_;
  int32_t* genes_;
  unsigned char* tiles_;
  int num_rows_ = 0;
  int64_t num_trials_ = 0;
  uint32_t width_ = 0;
  int vector_bits_ = 0;  // a tile has 2^vector_bits_ vectors of a row
};

template <class S, bool kCommit>
DEEVO_KERNEL(kTileThreads, 1)
tile_kernel(DEEVO_PARAMETERS TileArguments a) {
  DEEVO_SHARED(shared);
  TileBlock<S, kCommit>(a, shared).run();
}

// Whether tiles of these arguments fit a block's shared memory.
inline bool tiles_fit(const TileArguments& a, bool commit, const Limits& limits) {
  const int64_t all_rows = a.g.population.count + a.g.archive.count;
  if (all_rows >= 0xFFFF) return false;
  const TileLayout layout(a, commit);
  return layout.tiles_at + layout.most_rows * kNarrowestTile <=
         static_cast<int64_t>(limits.shared_bytes);
}

template <class S, bool kCommit>
const char* launch_tiles(const Queue& queue, TileArguments a, const Limits& limits) {
  using Stored = typename S::Stored;
  a.wide_loads = aligned<Stored>(a.g.population) && aligned<Stored>(a.g.archive);
  a.wide_stores = aligned<Stored>(kCommit ? a.g.population : a.out);
  a.wide_archive = aligned<Stored>(a.g.archive);
  a.plain = a.wide_loads && a.wide_stores && a.g.num_genes == 0 && !is_bounded(a.g);
  const TileLayout layout(a, kCommit);
  const int64_t useful = layout.tiles_at + 2 * layout.most_rows * kWidestTile;
  const int64_t limit = static_cast<int64_t>(limits.shared_bytes);
  a.shared_bytes = static_cast<uint32_t>(useful < limit ? useful : limit);
  const auto kernel = tile_kernel<S, kCommit>;
  if (const char* error = DEEVO_ALLOW_SHARED(kernel, a.shared_bytes)) return error;
  return DEEVO_LAUNCH(kernel, limits.multiprocessors, kTileThreads, a.shared_bytes, queue.stream,
                      a);
}

}  // namespace deevo::cuda
