// tell on CUDA: what a generation teaches, by one block (deevo/tell.h has the formulas and their
// sources). Members are dealt out to threads, the weighted means to warps, each of which adds
// halves in the contract's order:  s[i] = s[i] + s[i + half], half = P/2, P/4, ..., 1. float64.
// About 150 bytes per member, so what counts is latency: some ten block-wide barriers.
#include "deevo/tell.h"
#include "tables.h"

namespace deevo::cuda {
namespace {

constexpr int kLanes = 32;

// Shared memory of the block. sums: what the warps add up, [warps, power_of_two(NP)].
struct TellShared {
  int64_t improvement, slots, largest, totals, counts, accepted, sums, warps, bytes;

  DEEVO_HD TellShared(int64_t members, int64_t strategies, int64_t threads, int64_t limit) {
    int64_t end = 32;  // counters, and the largest improvement of all
    improvement = take_bytes<double>(&end, members);
    slots = take_bytes<int32_t>(&end, members);
    largest = take_bytes<double>(&end, strategies);
    totals = take_bytes<double>(&end, 2 * strategies + 4);
    counts = take_bytes<int>(&end, 2 * strategies + 4);
    accepted = take_bytes<uint8_t>(&end, members);
    sums = end;
    const int64_t each = power_of_two(members < kLanes ? kLanes : members) * 8;
    warps = (limit - end) / each;
    warps = warps < 1 ? 1 : (warps > threads / kLanes ? threads / kLanes : warps);
    bytes = end + warps * each;
  }
};

struct TellParameters {
  TellArguments a;
  int64_t shared_bytes;
};

class TellBlock {
 public:
  DEEVO_DEVICE TellBlock(const TellParameters& parameters, unsigned char* shared)
      : a_(parameters.a),
        n_(a_.num_members),
        state_at_(a_.settings, a_.num_strategies),
        at_(n_, a_.num_strategies, block_threads(), parameters.shared_bytes),
        generation_(*a_.generation),
        living_(reinterpret_cast<int*>(shared)),
        largest_of_all_(reinterpret_cast<double*>(shared + 16)),
        improvement_(reinterpret_cast<double*>(shared + at_.improvement)),
        slots_(reinterpret_cast<int32_t*>(shared + at_.slots)),
        largest_(reinterpret_cast<double*>(shared + at_.largest)),
        totals_(reinterpret_cast<double*>(shared + at_.totals)),
        counts_(reinterpret_cast<int*>(shared + at_.counts)),
        accepted_(shared + at_.accepted),
        sums_(reinterpret_cast<double*>(shared + at_.sums)),
        start_(thread_index()),
        step_(block_threads()) {}

  DEEVO_DEVICE void run() {
    check();
    select();
    if (a_.settings[kAdaptMemories] != 0.0) update_memories();
    update_windows();
    assign_archive();
    reduce_population();
    if (start_ == 0) *a_.generation = generation_ + 1;
  }

 private:
  // Everything before the first write.
  DEEVO_DEVICE void check() {
    check_generation(generation_);
    check_sizes(a_);
    if (start_ == 0) *living_ = 0;
    for (int64_t j = start_; j < 2 * a_.num_strategies + 4; j += step_) counts_[j] = 0;
    sync_block();
    for (int64_t i = start_; i < n_; i += step_) {
      const int32_t* choice = a_.choices + i * kChoiceColumns;
      DEEVO_CHECK(choice[kGeneration] == generation_, "choices are of another generation");
      DEEVO_CHECK(choice[kStrategy] >= 0 && choice[kStrategy] < a_.num_strategies,
                  "choices name a strategy that does not exist");
      if (a_.alive[i] != 0) add_shared(living_, 1);
    }
    for (int64_t k = start_; k < a_.num_strategies; k += step_) {
      const double pointer = a_.state[state_at_.pointer + k];
      DEEVO_CHECK(pointer >= 0.0 && pointer < a_.settings[kMemorySize],
                  "state holds a memory pointer that does not exist");
    }
    const double count = a_.state[state_at_.archive_count];
    DEEVO_CHECK(count >= 0.0 && count <= a_.settings[kArchiveCapacity],
                "state holds an archive count beyond the archive");
    sync_block();
    check_living(*living_);
  }

  // Greedy selection, the generation's counts, and improvements that are all finite.
  DEEVO_DEVICE void select() {
    for (int64_t i = start_; i < n_; i += step_) {
      const double parent = clean_fitness(a_.fitness[i]);
      const double trial = clean_fitness(a_.trial_fitness[i]);
      const bool lives = a_.alive[i] != 0, better = lives & (trial < parent);
      accepted_[i] = better ? 1 : 0;
      a_.accepted[i] = better ? 1 : 0;
      improvement_[i] = better ? parent - trial : 0.0;
      a_.fitness[i] = better ? trial : parent;
      if (!lives) continue;
      const int32_t* choice = a_.choices + i * kChoiceColumns;
      const int failed = better ? 0 : 1;
      add_shared(&counts_[choice[kStrategy] * 2 + failed], 1);
      int* by_sinusoid = counts_ + 2 * a_.num_strategies;
      if (choice[kSource] == kSourceSinusoid1) add_shared(&by_sinusoid[failed], 1);
      if (choice[kSource] == kSourceSinusoid2) add_shared(&by_sinusoid[2 + failed], 1);
    }
    sync_block();
    if (warp() == 0) {
      const double largest = warp_largest(
          [&](int64_t i) { return is_finite(improvement_[i]) ? improvement_[i] : 0.0; });
      if (lane() == 0) *largest_of_all_ = largest > 0.0 ? largest : 1.0;
    }
    sync_block();
    for (int64_t i = start_; i < n_; i += step_) {
      if (!is_finite(improvement_[i])) improvement_[i] = *largest_of_all_;
    }
    sync_block();
  }

  // SHADE's memories: a warp per strategy finds its largest improvement, then one per mean.
  DEEVO_DEVICE void update_memories() {
    const int64_t strategies = a_.num_strategies;
    for (int64_t k = warp(); k < strategies && warp() < at_.warps; k += at_.warps) {
      const double largest = warp_largest([&](int64_t i) {
        const bool mine = a_.choices[i * kChoiceColumns + kStrategy] == k;
        return mine && accepted_[i] != 0 ? improvement_[i] : 0.0;
      });
      if (lane() == 0) largest_[k] = largest;
      sync_warp();
    }
    sync_block();
    for (int64_t job = warp(); job < strategies * kNumMeans && warp() < at_.warps;
         job += at_.warps) {
      const int64_t k = job / kNumMeans;
      const Mean which = static_cast<Mean>(job % kNumMeans);
      if (!has_mean(a_, which, k) || !(largest_[k] > 0.0)) continue;
      MeanTerm sums;
      sums.numerator = warp_sum([&](int64_t i) { return term(which, k, i).numerator; });
      sums.denominator = warp_sum([&](int64_t i) { return term(which, k, i).denominator; });
      if (lane() == 0) remember(a_, state_at_, which, k, sums, a_.state);
    }
    sync_block();
    for (int64_t k = start_; k < strategies; k += step_) {
      if (!has_mean(a_, kMeanF, k) && !has_mean(a_, kMeanCR, k)) continue;
      if (largest_[k] > 0.0) advance_pointer(a_, state_at_, k, a_.state);
    }
  }

  DEEVO_DEVICE MeanTerm term(Mean which, int64_t k, int64_t i) const {
    return mean_term(a_, which, k, i, accepted_[i] != 0, improvement_[i], largest_[k]);
  }

  // SaDE's and cnEpSin's success windows, a thread per entry, and the odds that follow.
  DEEVO_DEVICE void update_windows() {
    const int64_t entries = 2 * a_.num_strategies;
    for (int64_t j = start_; j < entries + 4; j += step_) {
      const bool sinusoid = j >= entries;
      const int64_t columns = sinusoid ? 4 : entries, column = sinusoid ? j - entries : j;
      const int64_t period =
          static_cast<int64_t>(a_.settings[sinusoid ? kSinusoidPeriod : kStrategyPeriod]);
      double* window =
          a_.state + (sinusoid ? state_at_.sinusoid_window : state_at_.strategy_window);
      window[(generation_ - 1) % period * columns + column] = static_cast<double>(counts_[j]);
      totals_[j] = window_total(window, period, columns, column);
    }
    sync_block();
    if (start_ == 0 && adapts_strategies(a_, generation_)) {
      update_strategy_odds(a_, state_at_, a_.state, [&](int64_t entry) { return totals_[entry]; });
    }
    if (start_ == step_ - 1) {
      update_sinusoid_odds(a_, state_at_, a_.state,
                           [&](int64_t entry) { return totals_[entries + entry]; });
    }
  }

  // Free slots first, in member order; then a drawn slot each, the highest member winning it.
  DEEVO_DEVICE void assign_archive() {
    const int64_t capacity = archive_capacity(a_.settings, n_, *living_);
    const int64_t live = static_cast<int64_t>(a_.state[state_at_.archive_count]);
    for (int64_t i = start_; i < n_; i += step_) {
      slots_[i] = -1;
      if (accepted_[i] == 0 || capacity == 0) continue;
      int64_t slot = live;
      for (int64_t j = 0; j < i; ++j) slot += accepted_[j];
      if (slot >= capacity) {
        const Words words = draw(kPurposeArchive, generation_, i, 0, a_.key);
        slot = mulhi(words.w[0], static_cast<uint32_t>(capacity));
      }
      slots_[i] = static_cast<int32_t>(slot);
    }
    sync_block();
    int64_t successes = 0;
    for (int64_t i = start_; i < n_; i += step_) {
      int32_t slot = slots_[i];
      for (int64_t j = i + 1; j < n_ && slot >= 0; ++j) slot = slots_[j] == slot ? -1 : slot;
      a_.archive_slot[i] = slot;
    }
    if (start_ == 0) {
      for (int64_t k = 0; k < a_.num_strategies; ++k) successes += counts_[2 * k];
      int64_t filled = live + successes < capacity ? live + successes : capacity;
      // The archive's last rows go with the members that are about to.
      const int64_t target = population_target(a_.settings, n_, generation_);
      const int64_t left = archive_capacity(a_.settings, n_, target < *living_ ? target : *living_);
      filled = filled < left ? filled : left;
      a_.state[state_at_.archive_count] = static_cast<double>(filled);
    }
    sync_block();
  }

  // The worst of the living die; slots_ keeps who stays alive.
  DEEVO_DEVICE void reduce_population() {
    const int64_t target = population_target(a_.settings, n_, generation_);
    for (int64_t i = start_; i < n_; i += step_) {
      const bool stays = target >= n_ || rank_among_living(a_.fitness, a_.alive, n_, i) < target;
      slots_[i] = a_.alive[i] != 0 && stays ? 1 : 0;
    }
    sync_block();
    for (int64_t i = start_; i < n_; i += step_) {
      a_.alive[i] = static_cast<uint8_t>(slots_[i]);
      if (slots_[i] == 0) a_.fitness[i] = clean_fitness(double_of(0x7FF8000000000000ull));
    }
  }

  DEEVO_DEVICE int warp() const { return start_ / kLanes; }
  DEEVO_DEVICE int lane() const { return start_ % kLanes; }

  DEEVO_DEVICE double* warp_sums() const {
    return sums_ + warp() * power_of_two(n_ < kLanes ? kLanes : n_);
  }

  // The largest of value(i) over all members, 0 at least; for the whole warp.
  template <class Value>
  DEEVO_DEVICE double warp_largest(const Value& value) const {
    double* by_lane = warp_sums();
    double mine = 0.0;
    for (int64_t i = lane(); i < n_; i += kLanes) {
      const double x = value(i);
      mine = x > mine ? x : mine;
    }
    by_lane[lane()] = mine;
    sync_warp();
    double largest = 0.0;
    for (int i = 0; i < kLanes; ++i) largest = by_lane[i] > largest ? by_lane[i] : largest;
    sync_warp();
    return largest;
  }

  // The sum of value(i) over all members in the contract's order; for the whole warp.
  template <class Value>
  DEEVO_DEVICE double warp_sum(const Value& value) const {
    const int64_t padded = power_of_two(n_);
    double* sums = warp_sums();
    for (int64_t i = lane(); i < padded; i += kLanes) sums[i] = i < n_ ? value(i) : 0.0;
    sync_warp();
    for (int64_t half = padded / 2; half >= 1; half /= 2) {
      for (int64_t i = lane(); i < half; i += kLanes) sums[i] = sums[i] + sums[i + half];
      sync_warp();
    }
    const double sum = sums[0];
    sync_warp();
    return sum;
  }

  const TellArguments& a_;
  const int64_t n_;
  const StateOffsets state_at_;
  const TellShared at_;
  const int64_t generation_;
  int* living_;
  double* largest_of_all_;
  double* improvement_;
  int32_t* slots_;
  double *largest_, *totals_;
  int* counts_;
  uint8_t* accepted_;
  double* sums_;
  const int start_, step_;
};

DEEVO_KERNEL(kTableThreads, 1)
tell_kernel(DEEVO_PARAMETERS TellParameters parameters) {
  DEEVO_SHARED(shared);
  TellBlock(parameters, shared).run();
}

}  // namespace

const char* tell(const TellArguments& a, const Queue& queue) {
  const CurrentDevice device(queue.device);
  if (device.error() != nullptr) return device.error();
  const int64_t limit = static_cast<int64_t>(device.limits().shared_bytes);
  const TellShared layout(a.num_members, a.num_strategies, kTableThreads, limit);
  if (const char* error = check_shared(layout.bytes, device.limits(), a.num_members)) return error;
  if (const char* error = DEEVO_ALLOW_SHARED(tell_kernel, layout.bytes)) return error;
  return DEEVO_LAUNCH(tell_kernel, 1, kTableThreads, layout.bytes, queue.stream,
                      (TellParameters{a, layout.bytes}));
}

}  // namespace deevo::cuda
