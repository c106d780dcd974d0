// The CPU operators on exactly sized memory, for the sanitizers: every set of loops that this
// machine has, against a plain loop over weights. Prints what it ran; exit status 1 at a
// difference.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "cpu/loops.h"
#include "cpu/operators.h"
#include "deevo/tables.h"

namespace deevo::cpu {
namespace {

std::mt19937 source(20240229);  // its numbers are the same everywhere, unlike a distribution's

int64_t below(int64_t n) { return static_cast<int64_t>(source() % static_cast<uint64_t>(n)); }

void require(bool good, const char* what) {
  if (good) return;
  std::fprintf(stderr, "driver: %s\n", what);
  std::exit(1);
}

void succeed(const char* error) { require(error == nullptr, error); }

struct Case {
  int64_t members, archive, columns, genes, threads;
  bool bounded, forced;
};

// Inputs that own their memory, as tight as it can be: the last row has no stride behind it.
template <class S>
struct Inputs {
  using Stored = typename S::Stored;
  std::vector<Stored> population, archive;
  std::vector<int32_t> choices, gene_mask;
  std::vector<float> coefficients;
  std::vector<int64_t> genes;
  Generation g;

  Inputs(const Case& c, Number number) {
    const int64_t stride = c.columns + below(3);
    population = rows(c.members, stride, c.columns);
    archive = rows(c.archive, stride, c.columns);
    const int64_t all = c.members + c.archive;
    for (int64_t i = 0; i < c.members; ++i) {
      const int32_t thresholds[] = {0, 1, 30000, 58982, 65535, 65536};
      choices.insert(choices.end(),
                     {7, 0, 0, thresholds[below(6)], static_cast<int32_t>(below(kMaxTerms + 1)),
                      static_cast<int32_t>(below(all))});
      for (int m = 0; m < kMaxTerms; ++m) choices.push_back(static_cast<int32_t>(below(all)));
      choices.push_back(c.forced ? static_cast<int32_t>(below(c.columns)) : -1);
      for (int m = 0; m < kMaxTerms; ++m) {
        coefficients.push_back(static_cast<float>(below(2001) - 1000) * 1e-3f);
      }
    }
    for (int64_t k = 0; k < std::min(c.genes, c.columns); ++k) {
      genes.push_back(k * c.columns / std::min(c.genes, c.columns));
    }
    const int64_t count = static_cast<int64_t>(genes.size());
    for (int64_t i = 0; i < c.members * gene_words(count); ++i) {
      gene_mask.push_back(static_cast<int32_t>(source()));
    }
    const float bound = c.bounded ? 0.75f : INFINITY;
    g = {number,
         {population.data(), c.members, stride},
         {archive.data(), c.archive, stride},
         c.columns,
         c.columns - c.columns / 5,
         0,
         choices.data(),
         coefficients.data(),
         genes.data(),
         count,
         gene_mask.data(),
         {-bound, bound},
         key_of(0x7A5C012389ABCDEF)};
  }

  static std::vector<Stored> rows(int64_t count, int64_t stride, int64_t columns) {
    std::vector<Stored> values(count == 0 ? 0 : (count - 1) * stride + columns);
    for (Stored& value : values) {
      const float x = static_cast<float>(below(2001)) * 1e-3f;
      value = S::round(below(50) == 0 ? 0x1p-140f : x);
    }
    return values;
  }

  Stored at(int64_t row, int64_t column) const {
    return row < g.population.count
               ? population[row * g.population.stride + column]
               : archive[(row - g.population.count) * g.archive.stride + column];
  }

  bool takes(int64_t member, int64_t column) const {
    const int32_t* choice = g.choices + member * kChoiceColumns;
    if (g.num_genes > 0) {
      int64_t gene = 0;
      while (gene + 1 < g.num_genes && g.genes[gene + 1] <= column) ++gene;
      const int32_t word = g.gene_mask[member * gene_words(g.num_genes) + gene / 32];
      if (static_cast<uint32_t>(word) >> (gene % 32) & 1u) return true;
    } else {
      const Words words = philox4x32<kMaskRounds>(
          kPurposeMask, static_cast<uint32_t>(choice[kGeneration]), static_cast<uint32_t>(member),
          static_cast<uint32_t>(column / 8), g.key);
      const uint32_t draw = words.w[column % 8 / 2] >> (column % 2 * 16) & 0xFFFFu;
      if (static_cast<int32_t>(draw) < choice[kThreshold]) return true;
    }
    return choice[kForced] == column;
  }

  Stored trial(int64_t member, int64_t column) const {
    const int32_t* choice = g.choices + member * kChoiceColumns;
    const float base = S::widen(at(choice[kBaseRow], column));
    float v = base;
    for (int m = 0; m < choice[kTerms]; ++m) {
      v = v +
          g.coefficients[member * kMaxTerms + m] * (S::widen(at(choice[kRows + m], column)) - base);
    }
    const Stored parent = at(member, column);
    const bool take = takes(member, column);
    return column >= g.nonneg_start ? trial_weight<S, kNonNegative>(parent, v, take, g.bounds)
                                    : trial_weight<S, kBounded>(parent, v, take, g.bounds);
  }
};

template <class S>
void check_weights(const Case& c, Number number) {
  using Stored = typename S::Stored;
  Inputs<S> in(c, number);
  std::vector<Stored> expected(c.members * c.columns), out(expected.size());
  for (int64_t i = 0; i < c.members; ++i) {
    for (int64_t j = 0; j < c.columns; ++j) expected[i * c.columns + j] = in.trial(i, j);
  }
  std::vector<int64_t> members(c.members);
  std::iota(members.begin(), members.end(), 0);
  // Two callers at once, as two populations would be.
  std::vector<Stored> other(out.size());
  const auto call = [&](std::vector<Stored>& to) {
    const Rows rows = {to.data(), c.members, c.columns};
    succeed(trials({in.g, members.data(), c.members, rows}, c.threads));
  };
  std::thread beside([&] { call(other); });
  call(out);
  beside.join();
  const size_t bytes = expected.size() * sizeof(Stored);
  require(std::memcmp(out.data(), expected.data(), bytes) == 0, "trials differ");
  require(std::memcmp(other.data(), expected.data(), bytes) == 0, "trials beside differ");

  std::vector<uint8_t> accepted(c.members);
  std::vector<int32_t> slots(c.members, -1);
  int32_t free = 0;
  for (int64_t i = 0; i < c.members; ++i) {
    accepted[i] = below(3) != 0;
    if (accepted[i] && free < c.archive) slots[i] = free++;
  }
  std::vector<Stored> next, replaced;
  for (int64_t i = 0; i < c.members; ++i) {
    for (int64_t j = 0; j < c.columns; ++j) {
      next.push_back(accepted[i] ? expected[i * c.columns + j] : in.at(i, j));
      if (slots[i] >= 0) replaced.push_back(in.at(i, j));
    }
  }
  succeed(commit({in.g, accepted.data(), slots.data()}, c.threads));
  size_t kept = 0;
  for (int64_t i = 0; i < c.members; ++i) {
    for (int64_t j = 0; j < c.columns; ++j) {
      require(in.at(i, j) == next[i * c.columns + j], "commit differs");
      if (slots[i] >= 0) {
        require(in.at(c.members + slots[i], j) == replaced[kept++], "the archive differs");
      }
    }
  }
}

// Whole adaptations: two strategies, an archive, genes, j_rand and a population that is reduced.
void check_tables(int64_t members, int64_t genes) {
  std::vector<double> settings(kNumSettings), strategies(2 * kStrategyColumns);
  const auto set = [&](Setting name, double value) { settings[name] = value; };
  set(kGenerations, 30), set(kSwitchGeneration, 15), set(kFInit, 0.5), set(kFStd, 0.1);
  set(kFMin, 0), set(kFMax, 1), set(kSinusoid1Frequency, 0.5), set(kFrequencyStd, 0.1);
  set(kCRStd, 0.1), set(kCRMax, 1), set(kSinusoidPeriod, 3), set(kStrategyPeriod, 4);
  set(kMemorySize, 5), set(kOddsFloor, 0.01), set(kAdaptStart, 3), set(kAdaptStrategies, 1);
  set(kAdaptMemories, 1), set(kPBestMin, 0.05), set(kPBestMax, 0.3);
  set(kArchiveCapacity, static_cast<double>(members)), set(kPopulationMin, 5);
  set(kEvaluations, 4.0 * static_cast<double>(members)), set(kArchiveShrinks, 1);
  set(kGenes, static_cast<double>(genes)), set(kJRandRange, genes > 0 ? genes : 1000.0);
  double* linear = strategies.data();
  linear[kCrossover] = 1, linear[kBaseTerm] = kTarget, linear[kNumTerms] = 5;
  for (int m = 0; m < kMaxTerms; ++m) {
    linear[kTermCodes + m] = m == 4 ? kFromArchive : kPBest + m;
    linear[kTermCoefficients + 4 * m + 1] = m % 2 == 0 ? 1 : -1;
  }
  double* trig = strategies.data() + kStrategyColumns;
  trig[kKind] = 1, trig[kBaseTerm] = kR1, trig[kNumTerms] = 2;
  trig[kTermCodes] = kR2, trig[kTermCodes + 1] = kR3;
  for (double* strategy : {linear, trig}) {
    strategy[kOddsInit] = 0.5, strategy[kOddsCap] = 1, strategy[kOddsFixed] = -1;
  }
  const StateOffsets at(settings.data(), 2);
  std::vector<double> state(at.size, 0.0), fitness(members), parameters(members * 4);
  std::fill(state.begin(), state.begin() + at.pointer, 0.5);
  state[at.odds] = state[at.odds + 1] = state[at.sinusoid1_odds] = 0.5;
  std::vector<int32_t> choices(members * kChoiceColumns), slots(members);
  std::vector<int32_t> mask(members * gene_words(genes));
  std::vector<float> coefficients(members * kMaxTerms);
  std::vector<uint8_t> alive(members, 1), accepted(members);
  for (double& value : fitness) value = static_cast<double>(source());
  int64_t generation = 1;
  const Configuration configuration = {settings.data(), strategies.data(), 2,
                                       at.size,         members,           key_of(5)};
  while (generation <= 30) {
    succeed(plan(
        {configuration, state.data(), fitness.data(), alive.data(), &generation, choices.data(),
         parameters.data(), coefficients.data(), mask.data(), gene_words(genes)},
        1));
    std::vector<double> trial(members);
    for (double& value : trial) value = below(9) == 0 ? NAN : static_cast<double>(source());
    succeed(tell({configuration, trial.data(), choices.data(), parameters.data(), state.data(),
                  fitness.data(), alive.data(), &generation, accepted.data(), slots.data()},
                 1));
  }
  require(std::accumulate(alive.begin(), alive.end(), 0) == 5, "the population is not reduced");
}

void check_all(const char* set) {
  if (!use_loops(set)) {
    std::printf("%s: not on this machine\n", set);
    return;
  }
  int64_t cases = 0;
  for (const int64_t columns : {1, 33, 64, 1025, 5003}) {
    for (int variant = 0; variant < 4; ++variant) {
      const Case c = {
          columns > 2000 ? 5 : 12, variant * 3, columns, variant == 1 ? 70 : 0, variant + 1,
          variant % 2 == 1,        variant >= 2};
      check_weights<Float32>(c, Number::kFloat32);
      check_weights<BFloat16>(c, Number::kBFloat16);
      check_weights<Float16>(c, Number::kFloat16);
      cases += 3;
    }
  }
  // Enough columns for several threads and tiles.
  check_weights<Float32>({5, 2, 40001, 0, 3, false, true}, Number::kFloat32);
  check_weights<BFloat16>({300, 9, 401, 0, 2, true, false}, Number::kBFloat16);
  std::printf("%s: %lld cases\n", set, static_cast<long long>(cases + 2));
}

}  // namespace
}  // namespace deevo::cpu

int main() {
  for (const char* set : {"avx512", "avx2", "baseline"}) deevo::cpu::check_all(set);
  for (const int64_t members : {7, 40}) {
    for (const int64_t genes : {0, 33}) deevo::cpu::check_tables(members, genes);
  }
  std::puts("tables: 4 cases");
}
