// head on CUDA: global average pool, linear layer, cross-entropy and rank of the true class.
//   z_j = bias_j + sum_c weight_jc mean_p x_pc, the mean and the products in float32: positions in
//   order, channels in 16 partial sums that are added by halves
//   loss = log sum_j exp(z_j - max) + (1 - s) (max - z_y) + s mean_j (max - z_j)
//   rank = #(z_j > z_y) + #(z_j == z_y, j < y)
// (label smoothing s: Szegedy et al., "Rethinking the Inception Architecture", CVPR 2016). Products
// are rounded before they are added, in reference's order, so tensor cores have no part in it: a
// logit has the same bits everywhere.
// Bytes: a feature read once; a member's weights once per block, from L2; 8 written per sample.
//
// A block has some samples of one member. It keeps their means and logits in shared memory; where
// classes are too many for that, it makes them tile by tile, once for the largest logit and once
// for the sums.
#include <string>

#include "device.h"
#include "losses.h"
#include "vectors.h"

namespace deevo::cuda {
namespace {

constexpr int kHeadThreads = 256;
constexpr int kHeadBlocks = 2;       // of a multiprocessor, if shared memory allows
constexpr int kMostSamples = 8;      // of a block
constexpr int kClassesEach = 4;      // that 16 lanes have at a time
constexpr int64_t kFewest = 64;      // classes of a tile
constexpr int64_t kSumsBytes = 512;  // of LossSums and the labels' logits

struct HeadLaunch : HeadArguments {
  int64_t tile;  // classes whose logits are kept at a time
  bool wide;     // features may be read 16 bytes at a time
};

template <class S, int kSamples>
class HeadBlock {
  using Stored = typename S::Stored;

 public:
  DEEVO_DEVICE HeadBlock(const HeadLaunch& a, unsigned char* shared)
      : a_(a),
        classes_(a.l.classes),
        channels_(a.channels),
        sums_(reinterpret_cast<LossSums*>(shared)),
        label_logits_(reinterpret_cast<float*>(shared + kMostSamples * sizeof(LossSums))),
        pooled_(reinterpret_cast<float*>(shared + kSumsBytes)),
        logits_(pooled_ + kSamples * a.channels) {}

  DEEVO_DEVICE void run() {
    const int64_t groups = (a_.l.samples + kSamples - 1) / kSamples;
    const bool once = a_.tile >= classes_;
    for (int64_t item = block_index(); item < groups * a_.l.losses.count; item += grid_blocks()) {
      member_ = item / groups;
      first_ = (item - member_ * groups) * kSamples;
      const int64_t left = a_.l.samples - first_;
      count_ = left < kSamples ? static_cast<int>(left) : kSamples;
      pool();
      if (thread_index() < kSamples) {
        sums_[thread_index()] = no_classes();
        label_logits_[thread_index()] = 0.0f;
      }
      sync_block();
      for (int64_t start = 0; start < classes_; start += a_.tile) {
        make_logits(start, end_of(start));
        sync_block();
        scan(start, end_of(start));
        sync_block();
      }
      for (int64_t start = 0; start < classes_; start += a_.tile) {
        if (!once) {
          make_logits(start, end_of(start));
          sync_block();
        }
        add(start, end_of(start));
        sync_block();
      }
    }
  }

 private:
  DEEVO_DEVICE int64_t end_of(int64_t start) const {
    return start + a_.tile < classes_ ? start + a_.tile : classes_;
  }

  // Means over positions; those of samples that do not exist are zero.
  DEEVO_DEVICE void pool() {
    const Stored* x = static_cast<const Stored*>(a_.features.data) + member_ * a_.features.stride +
                      first_ * a_.positions * channels_;
    const float inverse = static_cast<float>(1.0 / static_cast<double>(a_.positions));
    constexpr int kAll = kWeights<S>;
    const int each = a_.wide ? kAll : 1;
    const int pieces = static_cast<int>(channels_ / each);
    for (int item = thread_index(); item < kSamples * pieces; item += block_threads()) {
      const int n = item / pieces, c = item % pieces * each;
      const Stored* at = x + n * a_.positions * channels_ + c;
      float sums[kAll] = {};
      if (n < count_ && a_.wide) {
        for (int64_t p = 0; p < a_.positions; ++p) {
          float v[kAll];
          widen<S>(load_vector(at + p * channels_), v);
          for (int i = 0; i < kAll; ++i) sums[i] = sums[i] + v[i];
        }
      } else if (n < count_) {
        for (int64_t p = 0; p < a_.positions; ++p) {
          sums[0] = sums[0] + widened<S>(at[p * channels_]);
        }
      }
      DEEVO_UNROLL
      for (int i = 0; i < kAll; ++i) {
        if (i < each) pooled_[n * channels_ + c + i] = sums[i] * inverse;
      }
    }
  }

  // Logits of classes [start, end). Lane l of 16 adds channels l, l + 16, ... of some classes, for
  // all samples, so that a mean and a weight that it has read serve several products.
  DEEVO_DEVICE void make_logits(int64_t start, int64_t end) {
    const Stored* w = static_cast<const Stored*>(a_.weight.data) + member_ * a_.weight.stride;
    const float* bias = static_cast<const float*>(a_.bias.data) + member_ * a_.bias.stride;
    const int lane = thread_index() % kHeadLanes;
    const int half_warp = thread_index() % 32 / kHeadLanes;
    for (int64_t warp_first = start + thread_index() / 32 * (2 * kClassesEach); warp_first < end;
         warp_first += block_threads() / 32 * (2 * kClassesEach)) {
      const int64_t j = warp_first + half_warp * kClassesEach;
      const Stored* rows[kClassesEach];
      for (int i = 0; i < kClassesEach; ++i) {
        rows[i] = w + (j + i < end ? j + i : end - 1) * channels_;
      }
      float sums[kSamples][kClassesEach] = {};
      for (int64_t c = lane; c < channels_; c += kHeadLanes) {
        float weight[kClassesEach];
        for (int i = 0; i < kClassesEach; ++i) weight[i] = widened<S>(rows[i][c]);
        for (int n = 0; n < kSamples; ++n) {
          const float x = pooled_[n * channels_ + c];
          for (int i = 0; i < kClassesEach; ++i) sums[n][i] = sums[n][i] + x * weight[i];
        }
      }
      for (int n = 0; n < kSamples; ++n) {
        for (int i = 0; i < kClassesEach; ++i) {
          float sum = sums[n][i];
          for (int half = kHeadLanes / 2; half > 0; half /= 2) sum = sum + shuffle_xor(sum, half);
          if (lane == (n * kClassesEach + i) % kHeadLanes && j + i < end) {
            logits_[n * a_.tile + j + i - start] = sum + bias[j + i];
          }
        }
      }
    }
  }

  // The samples of a warp.
  template <class Body>
  DEEVO_DEVICE void for_samples(const Body& body) {
    for (int n = thread_index() / 32; n < count_; n += block_threads() / 32) {
      const float* z = logits_ + n * a_.tile;
      LossSums sums = sums_[n];
      body(n, thread_index() % 32, &sums, z);
      if (thread_index() % 32 == 0) sums_[n] = sums;
    }
  }

  DEEVO_DEVICE void scan(int64_t start, int64_t end) {
    for_samples([&](int n, int lane, LossSums* sums, const float* z) {
      scan_logits(sums, start, end, lane, 32, [&](int64_t j) { return z[j - start]; });
      const int64_t label = a_.l.labels[first_ + n];
      if (lane == 0 && label >= start && label < end) label_logits_[n] = z[label - start];
    });
  }

  DEEVO_DEVICE void add(int64_t start, int64_t end) {
    const int bits = gap_bits(classes_);
    for_samples([&](int n, int lane, LossSums* sums, const float* z) {
      const float label_logit = label_logits_[n];
      add_logits(sums, start, end, lane, 32, a_.l.labels[first_ + n], label_logit, bits,
                 [&](int64_t j) { return z[j - start]; });
      if (lane == 0 && end == classes_) store_loss(a_.l, member_, first_ + n, *sums, label_logit);
    });
  }

  const HeadLaunch& a_;
  const int64_t classes_, channels_;
  LossSums* sums_;
  float *label_logits_, *pooled_, *logits_;
  int64_t member_ = 0, first_ = 0;
  int count_ = 0;
};

template <class S, int kSamples>
DEEVO_KERNEL(kHeadThreads, kHeadBlocks)
head_kernel(DEEVO_PARAMETERS HeadLaunch a) {
  DEEVO_SHARED(shared);
  HeadBlock<S, kSamples>(a, shared).run();
}

// Room for a tile of classes beside the means of that many samples; below 1 if there is none.
int64_t room(const HeadLaunch& a, int64_t samples, const Limits& limits) {
  const int64_t left =
      static_cast<int64_t>(limits.shared_bytes) - kSumsBytes - samples * a.channels * 4;
  return left / (samples * 4);
}

template <class S, int kSamples>
const char* launch_head(const Queue& queue, HeadLaunch a, const Limits& limits) {
  const int64_t most = room(a, kSamples, limits);
  a.tile = a.l.classes < most ? a.l.classes : most;
  const int64_t bytes = kSumsBytes + kSamples * (a.channels + a.tile) * 4;
  const int64_t items = a.l.losses.count * ((a.l.samples + kSamples - 1) / kSamples);
  const int64_t blocks = items < (1 << 30) ? items : 1 << 30;
  const auto kernel = head_kernel<S, kSamples>;
  if (const char* error = DEEVO_ALLOW_SHARED(kernel, bytes)) return error;
  return DEEVO_LAUNCH(kernel, blocks, kHeadThreads, bytes, queue.stream, a);
}

template <class S>
const char* choose_head(const Queue& queue, HeadLaunch a, const Limits& limits) {
  constexpr int64_t kSize = sizeof(typename S::Stored);
  const bool steps = a.features.count < 2 || a.features.stride * kSize % 16 == 0;
  a.wide = reinterpret_cast<uintptr_t>(a.features.data) % 16 == 0 && steps &&
           a.channels % kWeights<S> == 0;
  const int64_t least = a.l.classes < kFewest ? a.l.classes : kFewest;
  if (room(a, kMostSamples, limits) >= least) {
    return launch_head<S, kMostSamples>(queue, a, limits);
  }
  if (room(a, 1, limits) >= least) return launch_head<S, 1>(queue, a, limits);
  thread_local std::string text;
  text = "features has " + std::to_string(a.channels) + " channels; expected at most the " +
         std::to_string(room(a, 1, limits) + a.channels - least) +
         " that fit a block's shared memory on this GPU: make the logits with a matrix product "
         "and call loss_and_rank";
  return text.c_str();
}

}  // namespace

const char* head(const HeadArguments& arguments, const Queue& queue) {
  if (arguments.l.losses.count == 0 || arguments.l.samples == 0) return nullptr;
  const CurrentDevice device(queue.device);
  if (device.error() != nullptr) return device.error();
  const HeadLaunch a = {arguments, 0, false};
  return dispatch(a.number, [&](auto number) {
    return choose_head<decltype(number)>(queue, a, device.limits());
  });
}

}  // namespace deevo::cuda
