// A trial of plain weights, as a warp walks along a tile with the trial's plan in registers: whole
// vectors, no bounds, no genes, before the non-negative tail, and the forced weight elsewhere.
//   What other weights may need is left out, and the instructions of a step are counted: with a
// hundred more they, not memory, would decide how fast trials are (docs/kernels.md). A lane has two
// vectors at a time, half a chunk apart, so that two lanes can share the random bits of a Philox
// block of eight float32 weights: each draws one block and gives half of it away.
#pragma once

#include "mutation.h"

namespace deevo::cuda {

constexpr int kChunk = 1024;  // bytes of a row that a warp makes in a step
constexpr int kVectorsTogether = 2;

// A lane's way along a tile: where its first vectors would be read and written in the tile's first
// chunk, and from which byte of a row to which the warp goes. archive: null where nothing is kept.
struct Path {
  const unsigned char* rows;  // the stage's first row
  unsigned char *to, *archive;
  uint32_t block;       // of random bits, for the first chunk
  uint32_t begin, end;  // multiples of a chunk
};

// Bytes of the eight weights that a block of random bits is for.
template <class S>
constexpr uint32_t kBlockBytes = 8 * sizeof(typename S::Stored);

// A lane's first block of random bits in a chunk, counted from the chunk's first.
template <class S>
DEEVO_DEVICE uint32_t lane_block(int lane) {
  return kWeights<S> == 4 ? (lane >> 1) + (lane & 1) * (kChunk / 2 / kBlockBytes<S>) : lane;
}

// The random bits of a lane's vectors.
template <class S>
DEEVO_DEVICE void pair_words(const MaskStart& mask, uint32_t block, const MaskKeys& keys,
                             uint32_t (&words)[kVectorsTogether][kWeights<S> / 2]) {
  if constexpr (kWeights<S> == 4) {
    // Of the block that this lane draws its neighbour needs one half: an even lane draws for both
    // lanes' first vectors, an odd one for both's second.
    const bool odd = (thread_index() & 1) != 0;
    const Words own = mask_words(mask, block, keys);
    for (int i = 0; i < 2; ++i) {
      const uint32_t other = shuffle_xor(odd ? own.w[i] : own.w[2 + i], 1);
      words[0][i] = odd ? other : own.w[i];
      words[1][i] = odd ? own.w[2 + i] : other;
    }
  } else {
    for (int n = 0; n < kVectorsTogether; ++n) {
      const Words own = mask_words(mask, block + n * (kChunk / 2 / kBlockBytes<S>), keys);
      for (int i = 0; i < 4; ++i) words[n][i] = own.w[i];
    }
  }
}

// Mutants where their 16 bits are not above the limit and storage holds them, else the parent.
template <class S>
DEEVO_DEVICE Vector crossed(const float (&v)[kWeights<S>], const Vector& parent,
                            const uint32_t* words, uint32_t limit) {
  float old[kWeights<S>], chosen[kWeights<S>];
  widen<S>(parent, old);
  DEEVO_UNROLL
  for (int i = 0; i < kWeights<S>; ++i) {
    const uint32_t drawn = i % 2 == 0 ? words[i / 2] << 16 : words[i / 2];
    const bool take = (drawn <= limit) & (fabsf(v[i]) < beyond_storage<S>());
    chosen[i] = take ? v[i] : old[i];
  }
  return round<S>(chosen);
}

// kDrawn: whether crossover leaves weights to the parent at all. keys lie in shared memory, where
// copies of them come from that the compiler keeps in registers: constants it would read anew.
template <class S, int kTerms, bool kDrawn>
DEEVO_DEVICE void walk_terms(const Record& r, const Path& path, const MaskKeys& shared_keys) {
  const MaskKeys keys = shared_keys;
  // threshold is not 0 here: a draw takes the mutant where it is at most threshold - 1.
  const uint32_t limit = (static_cast<uint32_t>(r.threshold) << 16) - 1;
  for (uint32_t at = path.begin; at != path.end; at += kChunk) {
    uint32_t words[kVectorsTogether][kWeights<S> / 2] = {};
    if (kDrawn) pair_words<S>(r.mask, path.block + at / kBlockBytes<S>, keys, words);
    unsigned char* to = path.to + at;
    DEEVO_UNROLL
    for (int n = 0; n < kVectorsTogether; ++n) {
      const int apart = n * (kChunk / kVectorsTogether);
      const auto load = [&](uint32_t row) { return load_vector(path.rows + (row + at) + apart); };
      float v[kWeights<S>];
      mutate<S, kTerms>(r, load, v);
      const Vector parent = load(r.parent);
      store_vector(to + apart, crossed<S>(v, parent, words[n], limit));
      if (path.archive != nullptr) store_vector(path.archive + at + apart, parent);
    }
  }
}

// A trial that takes nothing of its mutant.
DEEVO_DEVICE void walk_parent(const Record& r, Path path) {
  for (uint32_t at = path.begin; at != path.end; at += kChunk / kVectorsTogether) {
    const Vector parent = load_vector(path.rows + r.parent + at);
    store_vector(path.to + at, parent);
    if (path.archive != nullptr) store_vector(path.archive + at, parent);
  }
}

template <class S, int kTerms>
DEEVO_DEVICE void walk_drawn(const Record& r, const Path& path, const MaskKeys& keys) {
  if (r.threshold < 65536) {
    walk_terms<S, kTerms, true>(r, path, keys);
  } else {
    walk_terms<S, kTerms, false>(r, path, keys);
  }
}

// All lanes of a warp make chunks of one trial.
template <class S>
DEEVO_DEVICE void walk(const Record& r, const Path& path, const MaskKeys& keys) {
  if (r.threshold == 0) return walk_parent(r, path);
  switch (r.terms) {
    case 0:
      return walk_drawn<S, 0>(r, path, keys);
    case 1:
      return walk_drawn<S, 1>(r, path, keys);
    case 2:
      return walk_drawn<S, 2>(r, path, keys);
    case 3:
      return walk_drawn<S, 3>(r, path, keys);
    case 4:
      return walk_drawn<S, 4>(r, path, keys);
    default:
      return walk_drawn<S, 5>(r, path, keys);
  }
}

}  // namespace deevo::cuda
