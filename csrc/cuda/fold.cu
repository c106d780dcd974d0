// fold on CUDA: a whole network's inference weights, for all members, in one launch.
//   scale = gamma / sqrt(var + eps), shift = beta + (bias - mean) scale   per output channel,
//   float64, each operation rounded; weight[o, r, c] = W[o, c, r] float32(scale[o]) in float32,
//   rounded to nearest even into the target type; channels last, padded with zeros.
// (Jacob et al., "Quantization and Training of Neural Networks", CVPR 2018, section 3.2.)
// Bytes per weight: the stored type read once, the target type written once.
//
// A tile's weights are read in their own order, 16 bytes at a time, scaled, rounded and kept in
// shared memory; then they are written channels last, again 16 bytes at a time. Whole channels of a
// tile lie together in the target, so that its pads are part of one run. A block takes every so
// many-th tile, since how many there are is written in the table, on the device.
#include "deevo/fold.h"
#include "device.h"
#include "launch.h"
#include "operators.h"
#include "vectors.h"

namespace deevo::cuda {
namespace {

constexpr int kFoldThreads = 256;
constexpr int kFoldBlocks = 4;  // of a multiprocessor

// Rounding by the instructions there are, with one pattern for every NaN, as To::round.
template <class To>
DEEVO_DEVICE typename To::Stored narrow(float x) {
  return To::round(x);
}

#if defined(__CUDA_ARCH__)
template <>
DEEVO_DEVICE uint16_t narrow<BFloat16>(float x) {
  uint16_t stored;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(stored) : "f"(x));
  return x != x ? uint16_t{0x7FC0} : stored;
}

template <>
DEEVO_DEVICE uint16_t narrow<Float16>(float x) {
  uint16_t stored;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(stored) : "f"(x));
  return x != x ? uint16_t{0x7E00} : stored;
}
#endif

// `count` elements in memory, seen as vectors at multiples of 16 bytes, the first of which may
// begin `lead` elements before them.
template <class Stored>
struct Span {
  static constexpr int kAll = 16 / static_cast<int>(sizeof(Stored));
  const Stored* data;
  int count, lead;

  DEEVO_DEVICE Span(const Stored* from, int elements) : data(from), count(elements) {
    lead = static_cast<int>(reinterpret_cast<uintptr_t>(from) / sizeof(Stored) % kAll);
  }

  // The vector from element j on, zeros where there is none.
  DEEVO_DEVICE Vector operator()(int j) const {
    if (j >= 0 && j + kAll <= count) return load_vector(data + j);
    Vector x = {};
    DEEVO_UNROLL
    for (int i = 0; i < kAll; ++i) {
      if (j + i >= 0 && j + i < count) put_weight(&x, i, data[j + i]);
    }
    return x;
  }
};

// Shared memory of a block, in bytes: the tile, scales of its channels, its weights.
constexpr int kFoldScalesAt = 128;
constexpr int kFoldStagedAt = kFoldScalesAt + static_cast<int>(kFoldTile) * 4;

// Where element j of a tile is kept. A word in 32 is skipped, so that neither neighbours in the
// source nor neighbours in the target, which are `taps` apart, meet in one bank.
template <class Target>
DEEVO_DEVICE int staged_at(int j) {
  constexpr int kWord = 4 / static_cast<int>(sizeof(Target));
  return j + j / (32 * kWord) * kWord;
}

template <class Target>
constexpr int fold_shared_bytes() {
  return kFoldStagedAt + static_cast<int>(kFoldTile / 32 * 33 * sizeof(Target));
}

template <class From, class To>
class FoldBlock {
  using Stored = typename From::Stored;
  using Target = typename To::Stored;
  static constexpr int kAll = 16 / static_cast<int>(sizeof(Target));

 public:
  DEEVO_DEVICE FoldBlock(const FoldArguments& f, unsigned char* shared)
      : f_(f),
        next_(reinterpret_cast<FoldTile*>(shared)),
        scales_(reinterpret_cast<float*>(shared + kFoldScalesAt)),
        staged_(reinterpret_cast<Target*>(shared + kFoldStagedAt)) {}

  DEEVO_DEVICE void run() {
    const int64_t members = f_.weights.count;
    const int64_t items = fold_num_tiles(f_.table, f_.entries) * members;
    // Members fastest: what they share of a tile is still in the caches.
    for (int64_t item = block_index(); item < items; item += grid_blocks()) {
      member_ = item % members;
      row_ = static_cast<const Stored*>(f_.rows.data) + member_ * f_.rows.stride;
      if (thread_index() == 0) *next_ = fold_tile(f_.table, f_.entries, item / members);
      sync_block();
      tile_ = *next_;
      entry_ = f_.table + tile_.entry * kFoldColumns;
      fold_channels();
      sync_block();
      const int64_t weight = entry_[kFoldWeight];
      if (weight < 0) continue;  // of the whole block; scales_ is not read
      taps_ = static_cast<int>(entry_[kFoldTaps]);
      ins_ = entry_[kFoldIn];
      const int count = static_cast<int>(
          ((tile_.out_end - tile_.out - 1) * ins_ + tile_.in_end - tile_.in) * taps_);
      const int64_t first = fold_offset(weight) + (tile_.out * ins_ + tile_.in) * taps_;
      if (fold_space(weight) == 0) {
        stage<From>(Span<Stored>(row_ + first, count));
      } else {
        stage<Float32>(
            Span<float>(fold_apart(f_, member_, weight) + first - fold_offset(weight), count));
      }
      sync_block();
      write();
    }
  }

 private:
  DEEVO_DEVICE void fold_channels() {
    const int outs = static_cast<int>(tile_.out_end - tile_.out);
    float* vectors = static_cast<float*>(f_.vectors.data) + member_ * f_.vectors.stride;
    for (int i = thread_index(); i < outs; i += block_threads()) {
      const int64_t out = tile_.out + i;
      const FoldChannel made = fold_channel<From>(f_, member_, row_, tile_.entry, out);
      scales_[i] = static_cast<float>(made.scale);
      const int64_t to_shift = entry_[kFoldToShift];
      if (tile_.in > 0 || to_shift < 0) continue;
      vectors[to_shift + out] = Float32::round(static_cast<float>(made.shift));
    }
  }

  // Scales and rounds the tile's weights into shared memory.
  template <class Source>
  DEEVO_DEVICE void stage(const Span<typename Source::Stored>& span) {
    const int outs = static_cast<int>(tile_.out_end - tile_.out);
    const int channel = span.count / outs;  // weights of one: a tile of several has them whole
    const int vectors = (span.lead + span.count + kWeights<Source> - 1) / kWeights<Source>;
    for (int v = thread_index(); v < vectors; v += block_threads()) {
      const int j = v * kWeights<Source> - span.lead;
      float x[kWeights<Source>];
      widen<Source>(span(j), x);
      int out = (j > 0 ? j : 0) / channel, end = (out + 1) * channel;
      DEEVO_UNROLL
      for (int i = 0; i < kWeights<Source>; ++i) {
        const int at = j + i;
        if (at < 0 || at >= span.count) continue;
        if (at == end) {
          out += 1;
          end += channel;
        }
        staged_[staged_at<Target>(at)] = narrow<To>(x[i] * scales_[out]);
      }
    }
  }

  // From shared memory to the target, in runs that are contiguous there: all of a tile that has
  // whole channels, else the input channels of one tap.
  DEEVO_DEVICE void write() {
    // Of a tile everything fits 32 bits, in which divisions are short.
    DEEVO_CHECK((tile_.out_end - tile_.out) * taps_ * entry_[kFoldPadded] < (1 << 30),
                "table has an entry with too many padded channels");
    const int padded = static_cast<int>(entry_[kFoldPadded]);
    const int here = static_cast<int>(tile_.in_end - tile_.in);
    const bool last = tile_.in_end == ins_, whole = last && tile_.in == 0;
    const int runs = whole ? 1 : taps_;
    const int first_in = static_cast<int>(tile_.in), in_end = first_in + here;
    const int length = whole ? static_cast<int>(tile_.out_end - tile_.out) * taps_ * padded
                             : (last ? padded : in_end) - first_in;
    const int vectors = (length + 2 * (kAll - 1)) / kAll;  // wherever the run begins
    Target* base = static_cast<Target*>(f_.weights.data) + member_ * f_.weights.stride +
                   entry_[kFoldToWeight] + tile_.out * taps_ * int64_t{padded};
    for (int v = thread_index(); v < runs * vectors; v += block_threads()) {
      const int run = v / vectors, start = run * padded + first_in;
      Target* to = base + start;
      const int lead = static_cast<int>(reinterpret_cast<uintptr_t>(to) / sizeof(Target) % kAll);
      const int at = (v - run * vectors) * kAll - lead, first = at > 0 ? at : 0;
      if (first >= length) continue;
      const int row = (start + first) / padded;
      int c = start + first - row * padded, out = row / taps_, tap = row - out * taps_;
      Vector made = {};
      DEEVO_UNROLL
      for (int i = 0; i < kAll; ++i) {
        if (at + i < first || at + i >= length) continue;
        if (c < in_end) {
          const int j = (out * here + c - first_in) * taps_ + tap;
          put_weight(&made, i, staged_[staged_at<Target>(j)]);
        }
        c += 1;
        if (c < padded) continue;
        c = 0;
        tap += 1;
        if (tap < taps_) continue;
        tap = 0;
        out += 1;
      }
      if (at >= 0 && at + kAll <= length) {
        keep_vector(to + at, made);
        continue;
      }
      DEEVO_UNROLL
      for (int i = 0; i < kAll; ++i) {
        if (at + i >= first && at + i < length) to[at + i] = weight_of<Target>(made, i);
      }
    }
  }

  // To global memory that the network's layers read next.
  DEEVO_DEVICE static void keep_vector(Target* to, const Vector& x) {
#if defined(__CUDA_ARCH__)
    __stwb(reinterpret_cast<uint4*>(to), make_uint4(x.w[0], x.w[1], x.w[2], x.w[3]));
#else
    *reinterpret_cast<Vector*>(to) = x;
#endif
  }

  const FoldArguments& f_;
  FoldTile* next_;
  float* scales_;
  Target* staged_;
  FoldTile tile_;
  const int64_t* entry_ = nullptr;
  const Stored* row_ = nullptr;
  int64_t member_ = 0, ins_ = 0;
  int taps_ = 0;
};

template <class From, class To>
DEEVO_KERNEL(kFoldThreads, kFoldBlocks)
fold_kernel(DEEVO_PARAMETERS FoldArguments f) {
  DEEVO_SHARED(shared);
  FoldBlock<From, To>(f, shared).run();
}

}  // namespace

const char* fold(const FoldArguments& f, const Queue& queue) {
  if (f.entries == 0 || f.weights.count == 0) return nullptr;
  const CurrentDevice device(queue.device);
  if (device.error() != nullptr) return device.error();
  return dispatch(f.source, [&](auto from) {
    return dispatch(f.target, [&](auto to) {
      const auto kernel = fold_kernel<decltype(from), decltype(to)>;
      constexpr int kShared = fold_shared_bytes<typename decltype(to)::Stored>();
      return DEEVO_LAUNCH(kernel, device.limits().multiprocessors * kFoldBlocks, kFoldThreads,
                          kShared, queue.stream, f);
    });
  });
}

}  // namespace deevo::cuda
