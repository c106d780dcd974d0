// plan and tell on the CPU: NP numbers, so one thread does it.
#include <algorithm>
#include <vector>

#include "deevo/plan.h"
#include "deevo/tell.h"
#include "operators.h"
#include "threads.h"

namespace deevo::cpu {
namespace {

// Checks that memory safety rests on; null when all is well.
const char* check_generation(int64_t generation) {
  const bool usable = generation >= 1 && generation <= 0x7FFFFFFF;
  return usable ? nullptr : "generation is not in 1..2147483647";
}

const char* check_living(int64_t living) {
  return living >= 2 ? nullptr : "alive leaves fewer than two members";
}

const char* check_choices(const TellArguments& a) {
  for (int64_t i = 0; i < a.num_members; ++i) {
    const int32_t* choice = a.choices + i * kChoiceColumns;
    if (choice[kGeneration] != *a.generation) return "choices are of another generation";
    if (choice[kStrategy] < 0 || choice[kStrategy] >= a.num_strategies) {
      return "choices name a strategy that does not exist";
    }
  }
  return nullptr;
}

const char* check_state(const TellArguments& a) {
  const StateOffsets at(a.settings, a.num_strategies);
  for (int64_t k = 0; k < a.num_strategies; ++k) {
    const double pointer = a.state[at.pointer + k];
    if (!(pointer >= 0.0 && pointer < a.settings[kMemorySize])) {
      return "state holds a memory pointer that does not exist";
    }
  }
  const double count = a.state[at.archive_count];
  const bool possible = count >= 0.0 && count <= a.settings[kArchiveCapacity];
  return possible ? nullptr : "state holds an archive count beyond the archive";
}

// Sum in the contract's order: pad with +0 to a power of two, then repeatedly add halves.
double halving_sum(std::vector<double>& values, int64_t n) {
  std::fill(values.begin() + n, values.end(), 0.0);
  for (size_t half = values.size() / 2; half >= 1; half /= 2) {
    for (size_t i = 0; i < half; ++i) values[i] = values[i] + values[i + half];
  }
  return values[0];
}

// What a generation teaches, step by step.
class Lesson {
 public:
  explicit Lesson(const TellArguments& arguments)
      : a(arguments),
        at(a.settings, a.num_strategies),
        generation(*a.generation),
        improvement(a.num_members) {}

  void run() {
    select();
    if (a.settings[kAdaptMemories] != 0.0) {
      for (int64_t k = 0; k < a.num_strategies; ++k) update_memories(k);
    }
    update_odds();
    assign_archive();
    reduce_population();
    *a.generation = generation + 1;
  }

 private:
  // Selection; improvements that are not finite count as the largest finite one, 1 if there is
  // none.
  void select() {
    double largest = 0.0;
    for (int64_t i = 0; i < a.num_members; ++i) {
      const double parent = clean_fitness(a.fitness[i]);
      const double trial = clean_fitness(a.trial_fitness[i]);
      a.accepted[i] = (a.alive[i] != 0) & (trial < parent) ? 1 : 0;
      improvement[i] = a.accepted[i] ? parent - trial : 0.0;
      a.fitness[i] = a.accepted[i] ? trial : parent;
      if (is_finite(improvement[i]) && improvement[i] > largest) {
        largest = improvement[i];
      }
    }
    if (!(largest > 0.0)) largest = 1.0;
    for (int64_t i = 0; i < a.num_members; ++i) {
      if (!is_finite(improvement[i])) improvement[i] = largest;
    }
  }

  void update_memories(int64_t k) {
    if (!has_mean(a, kMeanF, k) && !has_mean(a, kMeanCR, k)) return;
    double largest = 0.0;
    for (int64_t i = 0; i < a.num_members; ++i) {
      const bool mine = a.choices[i * kChoiceColumns + kStrategy] == k;
      if (mine && a.accepted[i] && improvement[i] > largest) largest = improvement[i];
    }
    if (!(largest > 0.0)) return;
    std::vector<double> numerator(power_of_two(a.num_members)), denominator(numerator);
    for (const Mean which : {kMeanF, kMeanFrequency, kMeanCR}) {
      if (!has_mean(a, which, k)) continue;
      for (int64_t i = 0; i < a.num_members; ++i) {
        const MeanTerm term =
            mean_term(a, which, k, i, a.accepted[i] != 0, improvement[i], largest);
        numerator[i] = term.numerator;
        denominator[i] = term.denominator;
      }
      const MeanTerm sums = {halving_sum(numerator, a.num_members),
                             halving_sum(denominator, a.num_members)};
      remember(a, at, which, k, sums, a.state);
    }
    advance_pointer(a, at, k, a.state);
  }

  // SaDE's and cnEpSin's success windows, and the odds that follow from them.
  void update_odds() {
    const int64_t n = a.num_strategies;
    const int64_t periods[2] = {static_cast<int64_t>(a.settings[kStrategyPeriod]),
                                static_cast<int64_t>(a.settings[kSinusoidPeriod])};
    double* by_strategy = a.state + at.strategy_window + ((generation - 1) % periods[0]) * n * 2;
    double* by_sinusoid = a.state + at.sinusoid_window + ((generation - 1) % periods[1]) * 4;
    for (int64_t j = 0; j < 2 * n; ++j) by_strategy[j] = 0.0;
    for (int64_t j = 0; j < 4; ++j) by_sinusoid[j] = 0.0;
    for (int64_t i = 0; i < a.num_members; ++i) {
      if (!a.alive[i]) continue;
      const int32_t* choice = a.choices + i * kChoiceColumns;
      const int64_t failed = a.accepted[i] ? 0 : 1;
      by_strategy[choice[kStrategy] * 2 + failed] += 1.0;
      if (choice[kSource] == kSourceSinusoid1) by_sinusoid[failed] += 1.0;
      if (choice[kSource] == kSourceSinusoid2) by_sinusoid[2 + failed] += 1.0;
    }
    if (adapts_strategies(a, generation)) {
      update_strategy_odds(a, at, a.state, [&](int64_t entry) {
        return window_total(a.state + at.strategy_window, periods[0], 2 * n, entry);
      });
    }
    update_sinusoid_odds(a, at, a.state, [&](int64_t entry) {
      return window_total(a.state + at.sinusoid_window, periods[1], 4, entry);
    });
  }

  // Free slots first, in member order; then a drawn slot each, the highest member winning it.
  void assign_archive() {
    const int64_t capacity = archive_capacity(a.settings, a.num_members, living());
    int64_t live = static_cast<int64_t>(a.state[at.archive_count]);
    for (int64_t i = 0; i < a.num_members; ++i) {
      a.archive_slot[i] = -1;
      if (!a.accepted[i] || capacity == 0) continue;
      if (live < capacity) {
        a.archive_slot[i] = static_cast<int32_t>(live++);
        continue;
      }
      const Words words = draw(kPurposeArchive, generation, i, 0, a.key);
      const int32_t slot = static_cast<int32_t>(mulhi(words.w[0], static_cast<uint32_t>(capacity)));
      for (int64_t j = 0; j < i; ++j) {
        if (a.archive_slot[j] == slot) a.archive_slot[j] = -1;
      }
      a.archive_slot[i] = slot;
    }
    a.state[at.archive_count] = static_cast<double>(live);
  }

  int64_t living() const {
    return std::count_if(a.alive, a.alive + a.num_members, [](uint8_t i) { return i != 0; });
  }

  // The worst of the living die, and the archive's last rows with them. improvement is scratch by
  // now: it keeps the ranks.
  void reduce_population() {
    const int64_t n = a.num_members, target = population_target(a.settings, n, generation);
    if (target < n) {
      for (int64_t i = 0; i < n; ++i) {
        improvement[i] = static_cast<double>(rank_among_living(a.fitness, a.alive, n, i));
      }
      for (int64_t i = 0; i < n; ++i) {
        if (improvement[i] >= static_cast<double>(target)) a.alive[i] = 0;
      }
    }
    for (int64_t i = 0; i < n; ++i) {
      a.alive[i] = a.alive[i] != 0 ? 1 : 0;
      if (!a.alive[i]) a.fitness[i] = clean_fitness(double_of(0x7FF8000000000000ull));
    }
    const auto capacity = static_cast<double>(archive_capacity(a.settings, n, living()));
    a.state[at.archive_count] = std::min(a.state[at.archive_count], capacity);
  }

  const TellArguments& a;
  const StateOffsets at;
  const int64_t generation;
  std::vector<double> improvement;  // [NP], 0 where the trial was rejected
};

}  // namespace

const char* plan(const PlanArguments& a, int64_t) {
  const int64_t generation = *a.generation;
  if (const char* error = check_generation(generation)) return error;
  for (int64_t k = 0; k < a.num_strategies; ++k) {
    if (!is_usable(a.strategies + k * kStrategyColumns)) {
      return "strategies hold a term that does not exist";
    }
  }
  const FloatEnvironment environment;
  std::vector<double> clean(a.num_members);
  std::transform(a.fitness, a.fitness + a.num_members, clean.begin(), clean_fitness);
  std::vector<int32_t> living, by_rank;
  for (int64_t i = 0; i < a.num_members; ++i) {
    if (a.alive[i]) living.push_back(static_cast<int32_t>(i));
  }
  if (const char* error = check_living(static_cast<int64_t>(living.size()))) return error;
  by_rank = living;
  std::stable_sort(by_rank.begin(), by_rank.end(),
                   [&](int32_t i, int32_t j) { return clean[i] < clean[j]; });
  const double infinity = clean_fitness(double_of(0x7FF8000000000000ull));
  const int64_t num_valid =
      std::count_if(living.begin(), living.end(), [&](int32_t i) { return clean[i] < infinity; });
  const PlanInputs in = {a,
                         a.state,
                         clean.data(),
                         living.data(),
                         by_rank.data(),
                         static_cast<int64_t>(living.size()),
                         num_valid,
                         generation};
  const int64_t genes = static_cast<int64_t>(a.settings[kGenes]);
  const int64_t words = a.gene_mask_words;
  int64_t position = 0;
  for (int64_t i = 0; i < a.num_members; ++i) {
    const PlanRow row = {a.choices + i * kChoiceColumns, a.parameters + i * kParameterColumns,
                         a.coefficients + i * kMaxTerms};
    int32_t* mask = a.gene_mask + i * words;
    if (!a.alive[i]) {
      plan_dead(in, i, row);
      std::fill(mask, mask + words, 0);
      continue;
    }
    const int32_t forced = plan_member(in, position++, row);
    for (int64_t word = 0; word < words; ++word) {
      mask[word] = static_cast<int32_t>(
          gene_mask_word(word, genes, generation, i, row.choices[kThreshold], forced, a.key));
    }
  }
  return nullptr;
}

const char* tell(const TellArguments& a, int64_t) {
  if (const char* error = check_generation(*a.generation)) return error;
  if (const char* error = check_choices(a)) return error;
  const auto lives = [](uint8_t value) { return value != 0; };
  const int64_t living = std::count_if(a.alive, a.alive + a.num_members, lives);
  if (const char* error = check_living(living)) return error;
  if (const char* error = check_state(a)) return error;
  const FloatEnvironment environment;
  Lesson(a).run();
  return nullptr;
}

}  // namespace deevo::cpu
