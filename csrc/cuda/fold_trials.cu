// fold_trials on CUDA: a whole network's inference weights from trials that are never stored.
//   u = the trial's weight (trials.h); weight[o, r, c] = u[o, c, r] float32(scale[o]), scale and
//   shift as in fold.h from the trial's own vectors; rounded to nearest even, channels last.
// Bytes per weight column: every row that is read once from memory, E writes of the target type.
// A trial's weights are made where fold would read them, from up to 7 rows through L2; members
// follow each other, so that a tile's rows are still there for all of them.
#include "deevo/fold_trials.h"
#include "device.h"
#include "fold_tiles.h"
#include "mutation.h"

namespace deevo::cuda {
namespace {

constexpr int kFoldTrialsBlocks = 2;  // of a multiprocessor: mutation takes registers

// Behind the tile, in front of the scales.
constexpr int kFoldRecordAt = kFoldScalesAt - static_cast<int>(sizeof(Record));
static_assert(kFoldRecordAt % alignof(Record) == 0 && kFoldRecordAt >= int{sizeof(FoldTile)});

struct FoldTrialsArguments {
  Fold f;  // without rows
  Generation g;
  const int64_t* members;  // [f.weights.count]
  bool wide_loads;
};

// Elements `first` to first + count - 1 of a trial, seen as vectors at multiples of their length.
template <class From_>
struct TrialSpan {
  using S = typename StorageOf<From_>::Type;
  const FoldTrialsArguments& a;
  const Record& record;
  int64_t first;
  int lead;

  DEEVO_DEVICE TrialSpan(const FoldTrialsArguments& arguments, const Record& of, int64_t offset)
      : a(arguments), record(of), first(offset), lead(static_cast<int>(offset % kWeights<S>)) {}

  // The vector from element j on; what lies beyond the row comes from zeros.
  DEEVO_DEVICE Vector operator()(int j) const {
    const int64_t column = first + j;
    const int64_t rest = a.g.columns - column;
    const int left = rest < kWeights<S> ? static_cast<int>(rest) : kWeights<S>;
    const int64_t gene = a.g.num_genes > 0 ? gene_of(a.g, column) : 0;
    const auto load = [&](uint32_t row) {
      return row_vector<S>(a.g, row, column, left, a.wide_loads);
    };
    Vector parent;
    return trial_vector<S>(a.g, record, column, gene, load, &parent);
  }
};

template <class From_>
struct TrialRows {
  using From = From_;
  using S = typename StorageOf<From>::Type;
  const FoldTrialsArguments& a;
  Record* record;  // the member's, in shared memory

  // The last thread, since the first one finds the tile meanwhile.
  DEEVO_DEVICE void begin(int64_t member) {
    if (thread_index() != block_threads() - 1) return;
    *record = make_record(a.g, static_cast<int32_t>(a.members[member]),
                          [](int32_t row) { return static_cast<uint32_t>(row); });
  }

  DEEVO_DEVICE float element(int64_t offset) const {
    const TrialSpan<From> trial(a, *record, offset);
    const Vector made = trial(-trial.lead);
    typename S::Stored x = weight_of<typename S::Stored>(made, 0);
    DEEVO_UNROLL
    for (int i = 1; i < kWeights<S>; ++i) {
      if (i == trial.lead) x = weight_of<typename S::Stored>(made, i);
    }
    return widened<From>(x);
  }

  DEEVO_DEVICE TrialSpan<From> span(int64_t offset, int) const { return {a, *record, offset}; }
};

// Every block looks at all plans before it writes.
DEEVO_DEVICE void check_plans(const FoldTrialsArguments& a) {
  const int64_t all_rows = a.g.population.count + a.g.archive.count;
  for (int64_t e = thread_index(); e < a.f.weights.count; e += block_threads()) {
    const int64_t member = a.members[e];
    DEEVO_CHECK(member >= 0 && member < a.g.population.count,
                "members name a row that does not exist");
    check_choice(a.g.choices + member * kChoiceColumns, all_rows);
  }
  check_genes(a.g);
  sync_block();
}

template <class From, class To>
DEEVO_KERNEL(kFoldThreads, kFoldTrialsBlocks)
fold_trials_kernel(DEEVO_PARAMETERS FoldTrialsArguments a) {
  DEEVO_SHARED(shared);
  check_plans(a);
  const TrialRows<From> rows = {a, reinterpret_cast<Record*>(shared + kFoldRecordAt)};
  FoldBlock<To, TrialRows<From>>(a.f, rows, shared).run();
}

}  // namespace

const char* fold_trials(const Queue& queue, const Fold& f, const Generation& g,
                        const int64_t* members) {
  if (f.entries == 0 || f.weights.count == 0) return nullptr;
  Limits limits;
  const DeviceGuard guard(queue.device);
  if (guard.error() != nullptr) return guard.error();
  if (const char* error = limits_of(queue.device, &limits)) return error;
  return dispatch_fold(f.source, f.target, [&](auto from, auto to) {
    using Stored = typename decltype(from)::Stored;
    const auto kernel = fold_trials_kernel<decltype(from), decltype(to)>;
    constexpr int kShared = fold_shared_bytes<typename decltype(to)::Stored>();
    const bool wide = aligned<Stored>(g.population) && aligned<Stored>(g.archive);
    const FoldTrialsArguments a = {f, g, members, wide};
    return DEEVO_LAUNCH(kernel, limits.multiprocessors * kFoldTrialsBlocks, kFoldThreads, kShared,
                        queue.stream, a);
  });
}

}  // namespace deevo::cuda
