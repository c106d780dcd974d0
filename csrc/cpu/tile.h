// Column tiles, which trials and commit share: how they are dealt out to threads, how the next one
// is fetched while one computes, and one member's trial over one of them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "crossover.h"
#include "deevo/trials.h"
#include "loops.h"
#include "operators.h"
#include "threads.h"

namespace deevo::cpu {

// Columns per tile: a multiple of a cache line in every storage type, of whole pieces where there
// is room, small enough that the rows of this tile and of the next stay in L2.
inline int64_t tile_columns(int64_t columns, int64_t rows, int64_t bytes_per_weight) {
  constexpr int64_t kBudget = 512 * 1024;
  constexpr int64_t kLargest = 4096, kSmallest = 64;
  const int64_t fitting = kBudget / (2 * rows * bytes_per_weight);
  const int64_t unit = fitting < kPiece ? kSmallest : kPiece;
  const int64_t most = std::clamp(columns, kSmallest, kLargest);
  const int64_t width = std::clamp(fitting / unit * unit, kSmallest, kLargest);
  return std::min(width, (most + kSmallest - 1) / kSmallest * kSmallest);
}

// Columns [begin, begin + size).
struct Tile {
  int64_t begin, size;
};

// Calls body(worker, tile, next) for all tiles of `width` columns, over threads. A thread takes
// runs of neighbouring tiles, so that it knows which is its next; an empty one follows the last of
// a run.
template <class Body>
void parallel_tiles(int64_t columns, int64_t width, int64_t threads, const Body& body) {
  constexpr int64_t kLongestRun = 16;
  const int64_t tiles = (columns + width - 1) / width;
  const int64_t run = std::clamp<int64_t>(tiles / (8 * threads), 1, kLongestRun);
  parallel_for((tiles + run - 1) / run, threads, [&](int64_t worker, int64_t item) {
    const int64_t end = std::min(columns, (item + 1) * run * width);
    for (int64_t begin = item * run * width; begin < end; begin += width) {
      const int64_t next = begin + width;
      body(worker, Tile{begin, std::min(width, end - begin)},
           Tile{next, std::clamp<int64_t>(end - next, 0, width)});
    }
  });
}

// Fetches a tile of some rows into L2, a few cache lines at each call, so that memory is at work
// while the core computes.
class Prefetcher {
 public:
  // rows: where each row's part of the tile starts; bytes of a row; calls: how many will be made.
  Prefetcher(const std::vector<const char*>& rows, int64_t offset, int64_t bytes, int64_t calls)
      : rows_(rows),
        offset_(offset),
        lines_((bytes + kLine - 1) / kLine),
        step_((lines_ * static_cast<int64_t>(rows.size()) + calls - 1) / calls),
        row_(lines_ > 0 ? 0 : rows.size()) {}

  // The next lines, neighbours in memory and at most `most`, for a loop to fetch on its way.
  void lend(const char** first, int64_t* lines, int64_t most) {
    *lines = 0;
    if (row_ == rows_.size()) return;
    *first = rows_[row_] + offset_ + line_ * kLine;
    *lines = std::min({lines_ - line_, most, step_});
    lent_ = *lines;
    move(lent_);
  }

  // Ends a call: fetches what was due and not lent.
  void advance() {
    for (; lent_ < step_ && row_ < rows_.size(); ++lent_) {
      __builtin_prefetch(rows_[row_] + offset_ + line_ * kLine, 0, 2);
      move(1);
    }
    lent_ = 0;
  }

 private:
  void move(int64_t lines) {
    line_ += lines;
    if (line_ == lines_) line_ = 0, ++row_;
  }

  static constexpr int64_t kLine = 64;
  const std::vector<const char*>& rows_;
  int64_t offset_, lines_, step_, line_ = 0, lent_ = 0;
  size_t row_;
};

// Copies past the caches: the written lines are not read first, and evict nothing. For output that
// would not stay in the caches anyway. Weakly ordered: end_streaming() before others may read it.
inline void copy_streaming(void* to, const void* from, size_t bytes) {
#if defined(__SSE2__)
  char* out = static_cast<char*>(to);
  const char* in = static_cast<const char*>(from);
  const size_t head = std::min(bytes, -reinterpret_cast<uintptr_t>(out) % 64);
  std::memcpy(out, in, head);
  size_t done = head;
  for (; done + 64 <= bytes; done += 64) {
    for (size_t i = done; i < done + 64; i += 16) {
      _mm_stream_si128(reinterpret_cast<__m128i*>(out + i),
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i)));
    }
  }
  std::memcpy(out + done, in + done, bytes - done);
#else
  std::memcpy(to, from, bytes);
#endif
}

inline void end_streaming() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// The trial of `member` in one tile. row_at(i) points to the tile's first column in row i.
// kStreaming: the output is written past the caches, see end_streaming().
template <class S, bool kStreaming, class RowAt>
void trial_tile(const Generation& g, int64_t member, Tile tile, const RowAt& row_at,
                typename S::Stored* out, Prefetcher& prefetcher) {
  using Stored = typename S::Stored;
  const int32_t* choice = g.choices + member * kChoiceColumns;
  Mask mask;
  Span<S> span = {};
  span.parent = row_at(static_cast<int32_t>(member));
  span.base = row_at(choice[kBaseRow]);
  span.terms = choice[kTerms];
  for (int m = 0; m < span.terms; ++m) span.rows[m] = row_at(choice[kRows + m]);
  span.coefficients = g.coefficients + member * kMaxTerms;
  span.mask = mask;
  span.bounds = g.bounds;
  span.stream = kStreaming && reinterpret_cast<uintptr_t>(out) % 64 == 0;
  for (int64_t at = 0; at < tile.size; at += kPiece) {
    const int64_t first = tile.begin + at;
    const int64_t size = std::min(kPiece, tile.size - at);
    if (crossover_mask(g, member, first, size, mask)) {
      prefetcher.lend(&span.fetch, &span.fetch_lines, size * int64_t{sizeof(Stored)} / 64);
      const int64_t nonneg = std::clamp<int64_t>(g.nonneg_start - first, 0, size);
      std::get<Trial<S>>(loops().trials)(span, out, size, nonneg);
    } else if (kStreaming) {
      copy_streaming(out, span.parent, size * sizeof(Stored));
    } else if (out != span.parent) {
      std::memcpy(out, span.parent, size * sizeof(Stored));
    }
    prefetcher.advance();
    span.parent += size;
    span.base += size;
    for (int m = 0; m < span.terms; ++m) span.rows[m] += size;
    out += size;
  }
}

// Checks that memory safety rests on; null when the member's choices are usable.
inline const char* check_choice(const Generation& g, int64_t member) {
  if (member < 0 || member >= g.population.count) return "members name a row that does not exist";
  const int32_t* choice = g.choices + member * kChoiceColumns;
  if (choice[kThreshold] < 0 || choice[kThreshold] > 65536) return "choices hold a bad threshold";
  if (choice[kTerms] < 0 || choice[kTerms] > kMaxTerms) return "choices hold a bad term count";
  for (int m = -1; m < choice[kTerms]; ++m) {
    const int32_t row = choice[m < 0 ? kBaseRow : kRows + m];
    if (row < 0 || row >= g.population.count + g.archive.count) {
      return "choices name a row that does not exist";
    }
  }
  return nullptr;
}

// As the reference: ascending starts of segments, the first at 0.
inline const char* check_genes(const Generation& g) {
  bool good = g.num_genes == 0 || g.genes[0] == 0;
  for (int64_t k = 1; k < g.num_genes; ++k) good = good && g.genes[k - 1] < g.genes[k];
  return good ? nullptr : "genes are not ascending starts of segments, the first at 0";
}

// The rows that the trials of these members read, each once, ascending.
inline std::vector<int32_t> rows_read(const Generation& g, const int64_t* members, int64_t count) {
  std::vector<uint8_t> read(g.population.count + g.archive.count);
  for (int64_t e = 0; e < count; ++e) {
    const int32_t* choice = g.choices + members[e] * kChoiceColumns;
    read[members[e]] = read[choice[kBaseRow]] = 1;
    for (int m = 0; m < choice[kTerms]; ++m) read[choice[kRows + m]] = 1;
  }
  std::vector<int32_t> rows;
  for (size_t row = 0; row < read.size(); ++row) {
    if (read[row]) rows.push_back(static_cast<int32_t>(row));
  }
  return rows;
}

// Column 0 of a row of the population, or of the archive behind it.
template <class Stored>
Stored* row_start(const Generation& g, int32_t row) {
  return row < g.population.count
             ? static_cast<Stored*>(g.population.data) + row * g.population.stride
             : static_cast<Stored*>(g.archive.data) + (row - g.population.count) * g.archive.stride;
}

}  // namespace deevo::cpu
