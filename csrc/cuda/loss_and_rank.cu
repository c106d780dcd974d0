// loss_and_rank on CUDA: cross-entropy and rank of the true class, from logits in memory.
//   loss = log sum_j exp(z_j - max) + (1 - s) (max - z_y) + s mean_j (max - z_j)
//   rank = #(z_j > z_y) + #(z_j == z_y, j < y)
// (label smoothing s: Szegedy et al., "Rethinking the Inception Architecture", CVPR 2016); float64
// and exact sums over classes (deevo/head.h). A warp, or a part of one where classes are few, has
// a sample. Bytes: a logit read once, and once more from the caches; 8 written per sample.
#include "device.h"
#include "losses.h"

namespace deevo::cuda {
namespace {

constexpr int kLossThreads = 256;
constexpr int kLossBlocks = 4;  // of a multiprocessor

struct LossLaunch : LossAndRankArguments {
  int lanes;  // of a sample, a power of two up to 32
};

template <class S>
DEEVO_KERNEL(kLossThreads, kLossBlocks)
loss_and_rank_kernel(DEEVO_PARAMETERS LossLaunch a) {
  using Stored = typename S::Stored;
  const int64_t total = a.l.losses.count * a.l.samples, classes = a.l.classes;
  const int lane = thread_index() % a.lanes, bits = gap_bits(classes);
  const int64_t together = 32 / a.lanes, warps = block_threads() / 32;
  const int64_t warp = block_index() * warps + thread_index() / 32;
  // All lanes of a warp go round as often, as its shuffles need.
  for (int64_t first = warp * together; first < total; first += grid_blocks() * warps * together) {
    const int64_t item = first + thread_index() % 32 / a.lanes;
    const bool exists = item < total;
    const int64_t member = exists ? item / a.l.samples : 0;
    const int64_t sample = exists ? item - member * a.l.samples : 0;
    const Stored* z =
        static_cast<const Stored*>(a.logits.data) + member * a.logits.stride + sample * classes;
    const auto logit = [&](int64_t j) { return S::widen(z[j]); };
    const int64_t label = a.l.labels[sample];
    const float label_logit = label >= 0 && label < classes ? logit(label) : 0.0f;
    LossSums sums = no_classes();
    scan_logits(&sums, 0, classes, lane, a.lanes, logit);
    add_logits(&sums, 0, classes, lane, a.lanes, label, label_logit, bits, logit);
    if (exists && lane == 0) store_loss(a.l, member, sample, sums, label_logit);
  }
}

}  // namespace

const char* loss_and_rank(const LossAndRankArguments& arguments, const Queue& queue) {
  const Losses& l = arguments.l;
  const int64_t total = l.losses.count * l.samples;
  if (total == 0) return nullptr;
  const CurrentDevice device(queue.device);
  if (device.error() != nullptr) return device.error();
  LossLaunch a = {arguments, 1};
  while (a.lanes < 32 && a.lanes < l.classes) a.lanes *= 2;
  const int64_t a_block = kLossThreads / a.lanes, useful = (total + a_block - 1) / a_block;
  const int64_t most = int64_t{device.limits().multiprocessors} * kLossBlocks * 2;
  const int64_t blocks = useful < most ? useful : most;
  return dispatch(a.number, [&](auto number) {
    return DEEVO_LAUNCH(loss_and_rank_kernel<decltype(number)>, blocks, kLossThreads, 0,
                        queue.stream, a);
  });
}

}  // namespace deevo::cuda
