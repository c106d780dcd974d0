// plan on CUDA: what each member does, by one block with a thread per member (deevo/plan.h has the
// formulas and their sources). Ranks are counted: rank i = |{j : f_j < f_i, or f_j = f_i and j <
// i}|. float64. About 250 bytes per member, so what counts is latency: two block-wide barriers.
// Gene masks, ceil(G / 32) words a member, are drawn by a second kernel with as many blocks as
// help.
#include "deevo/plan.h"
#include "tables.h"

namespace deevo::cuda {
namespace {

// Shared memory of the block.
struct PlanShared {
  int64_t fitness, living, by_rank, alive, bytes;

  DEEVO_HD explicit PlanShared(int64_t members) {
    int64_t end = 16;  // counters
    fitness = take_bytes<double>(&end, members);
    living = take_bytes<int32_t>(&end, members);
    by_rank = take_bytes<int32_t>(&end, members);
    alive = take_bytes<uint8_t>(&end, members);
    bytes = end;
  }
};

DEEVO_KERNEL(kTableThreads, 1)
plan_kernel(DEEVO_PARAMETERS PlanArguments a) {
  DEEVO_SHARED(shared);
  const int64_t n = a.num_members;
  const PlanShared at(n);
  int* counters = reinterpret_cast<int*>(shared);  // living, valid
  double* fitness = reinterpret_cast<double*>(shared + at.fitness);
  int32_t* living = reinterpret_cast<int32_t*>(shared + at.living);
  int32_t* by_rank = reinterpret_cast<int32_t*>(shared + at.by_rank);
  uint8_t* alive = shared + at.alive;
  const int64_t generation = *a.generation;
  const int start = thread_index(), step = block_threads();

  check_generation(generation);
  check_sizes(a);
  DEEVO_CHECK(gene_words(static_cast<int64_t>(a.settings[kGenes])) == a.gene_mask_words,
              "gene_mask has not the size that settings imply");
  for (int64_t k = start; k < a.num_strategies; k += step) {
    DEEVO_CHECK(is_usable(a.strategies + k * kStrategyColumns),
                "strategies hold a term that does not exist");
  }
  if (start < 2) counters[start] = 0;
  for (int64_t i = start; i < n; i += step) {
    fitness[i] = clean_fitness(a.fitness[i]);
    alive[i] = a.alive[i] != 0 ? 1 : 0;
  }
  sync_block();
  const double infinity = clean_fitness(double_of(0x7FF8000000000000ull));
  for (int64_t i = start; i < n; i += step) {
    if (alive[i] == 0) continue;
    int32_t position = 0, rank = 0;
    for (int64_t j = 0; j < n; ++j) {
      const int32_t lives = alive[j];
      const bool before = fitness[j] < fitness[i] || (fitness[j] == fitness[i] && j < i);
      position += j < i ? lives : 0;
      rank += before ? lives : 0;
    }
    living[position] = static_cast<int32_t>(i);
    by_rank[rank] = static_cast<int32_t>(i);
    add_shared(&counters[0], 1);
    if (fitness[i] < infinity) add_shared(&counters[1], 1);
  }
  sync_block();
  check_living(counters[0]);
  const PlanInputs in = {a,       a.state,     fitness,     living,
                         by_rank, counters[0], counters[1], generation};
  const auto row_of = [&](int64_t i) {
    return PlanRow{a.choices + i * kChoiceColumns, a.parameters + i * kParameterColumns,
                   a.coefficients + i * kMaxTerms};
  };
  for (int64_t position = start; position < counters[0]; position += step) {
    plan_member(in, position, row_of(living[position]));
  }
  for (int64_t i = start; i < n; i += step) {
    if (alive[i] == 0) plan_dead(in, i, row_of(i));
  }
}

// A word of a member's gene mask per thread, from the plan that the kernel before has made.
DEEVO_KERNEL(kTableThreads, 1)
gene_mask_kernel(DEEVO_PARAMETERS PlanArguments a) {
  const int64_t genes = static_cast<int64_t>(a.settings[kGenes]);
  for (int64_t n = block_index() * block_threads() + thread_index();
       n < a.num_members * a.gene_mask_words; n += grid_blocks() * block_threads()) {
    const int64_t member = n / a.gene_mask_words, word = n % a.gene_mask_words;
    uint32_t bits = 0;
    if (a.alive[member] != 0) {
      const int32_t* choice = a.choices + member * kChoiceColumns;
      const double* strategy =
          a.strategies + static_cast<int64_t>(choice[kStrategy]) * kStrategyColumns;
      const int32_t forced = forced_mutant(a, *a.generation, member, strategy[kCrossover] != 0.0);
      bits = gene_mask_word(word, genes, *a.generation, member, choice[kThreshold], forced, a.key);
    }
    a.gene_mask[n] = static_cast<int32_t>(bits);
  }
}

}  // namespace

const char* plan(const PlanArguments& a, const Queue& queue) {
  const CurrentDevice device(queue.device);
  if (device.error() != nullptr) return device.error();
  const int64_t members = a.num_members;
  const int64_t bytes = PlanShared(members).bytes;
  if (const char* error = check_shared(bytes, device.limits(), members)) return error;
  if (const char* error = DEEVO_ALLOW_SHARED(plan_kernel, bytes)) return error;
  if (const char* error = DEEVO_LAUNCH(plan_kernel, 1, kTableThreads, bytes, queue.stream, a)) {
    return error;
  }
  const int64_t words = members * a.gene_mask_words;
  if (words == 0) return nullptr;
  const int64_t useful = (words + kTableThreads - 1) / kTableThreads;
  const int64_t most = device.limits().multiprocessors * 4;
  return DEEVO_LAUNCH(gene_mask_kernel, useful < most ? useful : most, kTableThreads, 0,
                      queue.stream, a);
}

}  // namespace deevo::cuda
