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

const char* check_strategy(const double* strategy) {
  const bool trig = strategy[kKind] != 0.0;
  const double terms = strategy[kNumTerms];
  bool usable = trig ? terms == 2.0 : terms >= 0.0 && terms <= kMaxTerms;
  for (int m = -1; m < kMaxTerms; ++m) {
    const double code = strategy[m < 0 ? kBaseTerm : kTermCodes + m];
    // Trigonometric mutation looks up the losses of its rows, which the archive does not keep.
    usable = usable && code >= 0.0 && code < (trig ? kFromArchive : kNumTermCodes);
  }
  return usable ? nullptr : "strategies hold a term that does not exist";
}

const char* check_state(const TellInputs& in, const double* state) {
  const StateLayout at(in.settings, in.num_strategies);
  for (int64_t k = 0; k < in.num_strategies; ++k) {
    const double pointer = state[at.pointer + k];
    if (!(pointer >= 0.0 && pointer < in.settings[kMemorySize])) {
      return "state holds a memory pointer that does not exist";
    }
  }
  const double count = state[at.archive_count];
  const bool possible = count >= 0.0 && count <= in.settings[kArchiveCapacity];
  return possible ? nullptr : "state holds an archive count beyond the archive";
}

}  // namespace

const char* plan(const PlanArguments& a, int64_t) {
  const Configuration& c = a.configuration;
  const int64_t generation = *a.generation;
  if (const char* error = check_generation(generation)) return error;
  for (int64_t k = 0; k < c.num_strategies; ++k) {
    if (const char* error = check_strategy(c.strategies + k * kStrategyColumns)) return error;
  }
  const FloatEnvironment environment;
  std::vector<double> clean(c.num_members);
  std::transform(a.fitness, a.fitness + c.num_members, clean.begin(), clean_fitness);
  std::vector<int32_t> living, by_rank;
  for (int64_t i = 0; i < c.num_members; ++i) {
    if (a.alive[i]) living.push_back(static_cast<int32_t>(i));
  }
  if (const char* error = check_living(static_cast<int64_t>(living.size()))) return error;
  by_rank = living;
  std::stable_sort(by_rank.begin(), by_rank.end(),
                   [&](int32_t i, int32_t j) { return clean[i] < clean[j]; });
  const double infinity = clean_fitness(double_of(0x7FF8000000000000ull));
  const int64_t num_valid =
      std::count_if(living.begin(), living.end(), [&](int32_t i) { return clean[i] < infinity; });
  const PlanInputs in = {
      c.settings,   c.strategies,  c.num_strategies, a.state,
      clean.data(), living.data(), by_rank.data(),   static_cast<int64_t>(living.size()),
      num_valid,    c.num_members, generation,       c.key};
  const int64_t genes = static_cast<int64_t>(c.settings[kGenes]);
  const int64_t words = a.gene_mask_words;
  int64_t position = 0;
  for (int64_t i = 0; i < c.num_members; ++i) {
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
          gene_mask_word(word, genes, generation, i, row.choices[kThreshold], forced, c.key));
    }
  }
  return nullptr;
}

const char* tell(const TellArguments& a, int64_t) {
  const Configuration& c = a.configuration;
  const TellInputs in = {c.settings, c.strategies, c.num_strategies, a.trial_fitness,
                         a.choices,  a.parameters, c.num_members,    c.key};
  if (const char* error = check_generation(*a.generation)) return error;
  for (int64_t i = 0; i < in.num_members; ++i) {
    const int32_t* choice = in.choices + i * kChoiceColumns;
    if (choice[kGeneration] != *a.generation) return "choices are of another generation";
    if (choice[kStrategy] < 0 || choice[kStrategy] >= in.num_strategies) {
      return "choices name a strategy that does not exist";
    }
  }
  const auto lives = [](uint8_t value) { return value != 0; };
  const int64_t living = std::count_if(a.alive, a.alive + in.num_members, lives);
  if (const char* error = check_living(living)) return error;
  if (const char* error = check_state(in, a.state)) return error;
  const FloatEnvironment environment;
  std::vector<double> improvement(in.num_members), scratch(2 * power_of_two(in.num_members));
  tell_generation(in, {a.state, a.fitness, a.alive, a.generation, a.accepted, a.archive_slot,
                       improvement.data(), scratch.data()});
  return nullptr;
}

}  // namespace deevo::cpu
