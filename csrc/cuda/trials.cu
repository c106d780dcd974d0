// trials on CUDA: fused mutation and binomial crossover of the members asked for.
//   v = row[base]; for m in table order: v = v + c[m] (row[idx[m]] - row[base])
//   u = v where crossover takes it, else the parent's value
// Differential evolution of Storn & Price (1997) in the base-plus-differences form; float32, each
// operation rounded. Bytes per weight column: every row that is read once and E written, whatever
// the number of parents (tiles.h). Populations too tall for tiles gather rows through L2 instead,
// up to 7 reads per trial, members fastest so that a column's rows are still there.
#include "tiles.h"

namespace deevo::cuda {
namespace {

constexpr int kGatherThreads = 256;

template <class S>
DEEVO_KERNEL(kGatherThreads, 1)
gather_kernel(DEEVO_PARAMETERS TileArguments a) {
  using Stored = typename S::Stored;
  constexpr int kLanes = 32;
  check_genes(a.g);
  const int64_t all_rows = a.g.population.count + a.g.archive.count;
  const int64_t vectors = (a.g.columns + kWeights<S> - 1) / kWeights<S>;
  const int64_t chunks = (vectors + kLanes - 1) / kLanes;
  const int64_t warps = block_threads() / kLanes;
  for (int64_t item = block_index() * warps + thread_index() / kLanes; item < chunks * a.num_trials;
       item += grid_blocks() * warps) {
    const int64_t e = item % a.num_trials;
    const int64_t column = (item / a.num_trials * kLanes + thread_index() % kLanes) * kWeights<S>;
    const int64_t member = a.members[e];
    DEEVO_CHECK(member >= 0 && member < a.g.population.count,
                "members name a row that does not exist");
    check_choice(a.g.choices + member * kChoiceColumns, all_rows);
    if (column >= a.g.columns) continue;
    const int64_t rest = a.g.columns - column;
    const int left = rest < kWeights<S> ? static_cast<int>(rest) : kWeights<S>;
    const Record record = make_record(a.g, a.keys, static_cast<int32_t>(member),
                                      [](int32_t row) { return static_cast<uint32_t>(row); });
    const int64_t gene =
        a.g.num_genes > 0 ? segment_of(genes_of(a.g), a.g.first_weight + column, 0) : 0;
    const auto load = [&](uint32_t row) {
      return row_vector<S>(a.g, row, column, left, a.wide_loads);
    };
    Vector parent;
    const Vector made = trial_vector<S>(a.g, a.keys, record, column, gene, load, &parent);
    store_weights(static_cast<Stored*>(a.out.data) + e * a.out.stride + column, made, left,
                  a.wide_stores);
  }
}

template <class S>
const char* launch_gather(const Queue& queue, TileArguments a, const Limits& limits) {
  using Stored = typename S::Stored;
  a.wide_loads = aligned<Stored>(a.g.population) && aligned<Stored>(a.g.archive);
  a.wide_stores = aligned<Stored>(a.out);
  return DEEVO_LAUNCH(gather_kernel<S>, limits.multiprocessors * 8, kGatherThreads, 0, queue.stream,
                      a);
}

}  // namespace

const char* trials(const TrialsArguments& arguments, const Queue& queue) {
  const Generation& g = arguments.g;
  if (arguments.num_trials == 0 || g.columns == 0) return nullptr;
  const CurrentDevice device(queue.device);
  if (device.error() != nullptr) return device.error();
  TileArguments a = {};
  a.g = g;
  a.keys = MaskKeys(g.key);
  a.num_trials = arguments.num_trials;
  a.members = arguments.members;
  a.out = arguments.out;
  const bool tiles = tiles_fit(a, false, device.limits());
  return dispatch(g.number, [&](auto number) {
    using S = decltype(number);
    return tiles ? launch_tiles<S, false>(queue, a, device.limits())
                 : launch_gather<S>(queue, a, device.limits());
  });
}

}  // namespace deevo::cuda
