// fold on CUDA: a whole network's inference weights, for all members, in one launch.
//   scale = gamma / sqrt(var + eps), shift = beta + (bias - mean) scale   per output channel,
//   float64, each operation rounded; weight[o, r, c] = W[o, c, r] float32(scale[o]) in float32,
//   rounded to nearest even into the target type; channels last, padded with zeros.
// (Jacob et al., "Quantization and Training of Neural Networks", CVPR 2018, section 3.2.)
// Bytes per weight: the stored type read once, the target type written once; the transposition
// goes through shared memory (fold_tiles.h).
#include "device.h"
#include "fold_tiles.h"

namespace deevo::cuda {
namespace {

// Rows in memory.
template <class From_>
struct StoredRows {
  using From = From_;
  using Stored = typename From::Stored;
  const Stored* rows;
  int64_t stride;
  const Stored* row;  // the member's

  DEEVO_DEVICE void begin(int64_t member) { row = rows + member * stride; }
  DEEVO_DEVICE float element(int64_t offset) const { return From::widen(row[offset]); }
  DEEVO_DEVICE MemorySpan<Stored> span(int64_t offset, int count) const {
    return {row + offset, count};
  }
};

template <class From, class To>
DEEVO_KERNEL(kFoldThreads, kFoldBlocks)
fold_kernel(DEEVO_PARAMETERS Fold f) {
  DEEVO_SHARED(shared);
  using Stored = typename From::Stored;
  const StoredRows<From> rows = {static_cast<const Stored*>(f.rows.data), f.rows.stride, nullptr};
  FoldBlock<To, StoredRows<From>>(f, rows, shared).run();
}

}  // namespace

const char* fold(const Queue& queue, const Fold& f) {
  if (f.entries == 0 || f.weights.count == 0) return nullptr;
  Limits limits;
  const DeviceGuard guard(queue.device);
  if (guard.error() != nullptr) return guard.error();
  if (const char* error = limits_of(queue.device, &limits)) return error;
  return dispatch_fold(f.source, f.target, [&](auto from, auto to) {
    const auto kernel = fold_kernel<decltype(from), decltype(to)>;
    constexpr int kShared = fold_shared_bytes<typename decltype(to)::Stored>();
    return DEEVO_LAUNCH(kernel, limits.multiprocessors * kFoldBlocks, kFoldThreads, kShared,
                        queue.stream, f);
  });
}

}  // namespace deevo::cuda
