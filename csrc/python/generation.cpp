// The arguments of plan, tell, trials and commit.
#include "arguments.h"
#include "deevo/tables.h"

namespace deevo {
namespace {

Configuration configuration(View settings, View strategies, View state, View fitness,
                            int64_t seed) {
  return {settings.data<double>(), strategies.data<double>(), strategies.numel() / kStrategyColumns,
          state.numel(),           fitness.numel(),           key_of(seed)};
}

Generation generation(View population, View archive, View choices, View coefficients, View genes,
                      View gene_mask, int64_t seed, int64_t nonneg_start, int64_t first_weight,
                      Bounds bounds) {
  return {population.number(),
          population.rows(),
          archive.rows(),
          population.size(1),
          nonneg_start,
          first_weight,
          choices.data<int32_t>(),
          coefficients.data<float>(),
          genes.data<int64_t>(),
          genes.numel(),
          gene_mask.data<int32_t>(),
          bounds,
          key_of(seed)};
}

}  // namespace

PlanArguments read_plan(View settings, View strategies, View state, View fitness, View alive,
                        View generation, int64_t seed, View choices, View parameters,
                        View coefficients, View gene_mask) {
  const Configuration c = configuration(settings, strategies, state, fitness, seed);
  return {c,
          state.data<double>(),
          fitness.data<double>(),
          alive.data<uint8_t>(),
          generation.data<int64_t>(),
          choices.data<int32_t>(),
          parameters.data<double>(),
          coefficients.data<float>(),
          gene_mask.data<int32_t>(),
          gene_mask.numel() / c.num_members};
}

TellArguments read_tell(View settings, View strategies, View trial_fitness, View choices,
                        View parameters, int64_t seed, View state, View fitness, View alive,
                        View generation, View accepted, View archive_slot) {
  return {configuration(settings, strategies, state, fitness, seed),
          trial_fitness.data<double>(),
          choices.data<int32_t>(),
          parameters.data<double>(),
          state.data<double>(),
          fitness.data<double>(),
          alive.data<uint8_t>(),
          generation.data<int64_t>(),
          accepted.data<uint8_t>(),
          archive_slot.data<int32_t>()};
}

TrialsArguments read_trials(View population, View archive, View choices, View coefficients,
                            View genes, View gene_mask, View members, int64_t seed,
                            int64_t nonneg_start, int64_t first_weight, float lower, float upper,
                            View out) {
  return {generation(population, archive, choices, coefficients, genes, gene_mask, seed,
                     nonneg_start, first_weight, {lower, upper}),
          members.data<int64_t>(), members.numel(), out.rows()};
}

CommitArguments read_commit(View population, View archive, View choices, View coefficients,
                            View genes, View gene_mask, View accepted, View archive_slot,
                            int64_t seed, int64_t nonneg_start, int64_t first_weight, float lower,
                            float upper) {
  return {generation(population, archive, choices, coefficients, genes, gene_mask, seed,
                     nonneg_start, first_weight, {lower, upper}),
          accepted.data<uint8_t>(), archive_slot.data<int32_t>()};
}

}  // namespace deevo
