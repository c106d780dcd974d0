// From Python's arguments to the structs of deevo/arguments.h. Here alone is written what an
// operator's arguments are and in which order; it is that of its schema in deevo_ext/ops.
#pragma once

#include "deevo/arguments.h"
#include "deevo/tables.h"
#include "view.h"

namespace deevo {

inline Configuration configuration(View settings, View strategies, View state, View fitness,
                                   int64_t seed) {
  return {settings.data<double>(), strategies.data<double>(), strategies.numel() / kStrategyColumns,
          state.numel(),           fitness.numel(),           key_of(seed)};
}

inline Generation generation(View population, View archive, View choices, View coefficients,
                             View genes, View gene_mask, int64_t seed, int64_t nonneg_start,
                             int64_t first_weight, Bounds bounds) {
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

inline PlanArguments read_plan(View settings, View strategies, View state, View fitness, View alive,
                               View generation, int64_t seed, View choices, View parameters,
                               View coefficients, View gene_mask) {
  return {configuration(settings, strategies, state, fitness, seed),
          state.data<double>(),
          fitness.data<double>(),
          alive.data<uint8_t>(),
          generation.data<int64_t>(),
          choices.data<int32_t>(),
          parameters.data<double>(),
          coefficients.data<float>(),
          gene_mask.data<int32_t>(),
          gene_mask.numel() / fitness.numel()};
}

inline TellArguments read_tell(View settings, View strategies, View trial_fitness, View choices,
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

inline TrialsArguments read_trials(View population, View archive, View choices, View coefficients,
                                   View genes, View gene_mask, View members, int64_t seed,
                                   int64_t nonneg_start, int64_t first_weight, float lower,
                                   float upper, View out) {
  return {generation(population, archive, choices, coefficients, genes, gene_mask, seed,
                     nonneg_start, first_weight, {lower, upper}),
          members.data<int64_t>(), members.numel(), out.rows()};
}

inline CommitArguments read_commit(View population, View archive, View choices, View coefficients,
                                   View genes, View gene_mask, View accepted, View archive_slot,
                                   int64_t seed, int64_t nonneg_start, int64_t first_weight,
                                   float lower, float upper) {
  return {generation(population, archive, choices, coefficients, genes, gene_mask, seed,
                     nonneg_start, first_weight, {lower, upper}),
          accepted.data<uint8_t>(), archive_slot.data<int32_t>()};
}

inline Losses losses_of(View labels, int64_t classes, double smoothing, View losses, View ranks) {
  return {labels.data<int64_t>(), labels.numel(), classes, smoothing, losses.rows(), ranks.rows()};
}

inline FoldArguments read_fold(View rows, View statistics, View constants, View table, View eps,
                               View weights, View vectors) {
  return {rows.number(),           weights.number(),      rows.rows(),        statistics.rows(),
          constants.data<float>(), table.data<int64_t>(), eps.data<double>(), eps.numel(),
          weights.rows(),          vectors.rows()};
}

inline HeadArguments read_head(View features, View weight, View bias, View labels, double smoothing,
                               View losses, View ranks) {
  return {losses_of(labels, weight.size(1), smoothing, losses, ranks),
          features.number(),
          features.rows(),
          weight.rows(),
          bias.rows(),
          features.size(2),
          features.size(3)};
}

inline LossAndRankArguments read_loss_and_rank(View logits, View labels, double smoothing,
                                               View losses, View ranks) {
  return {losses_of(labels, logits.size(2), smoothing, losses, ranks), logits.number(),
          logits.rows()};
}

inline ComposeArguments read_compose(View population, View recipes, View starts, View block_of,
                                     int64_t nonneg_start, View out) {
  return {population.number(),
          population.rows(),
          population.size(1),
          recipes.data<float>(),
          recipes.size(1),
          starts.data<int64_t>(),
          block_of.data<int32_t>(),
          starts.numel(),
          nonneg_start,
          out.rows()};
}

inline LinearScoresArguments read_linear_scores(View z0, View slopes, View coefficients,
                                                View labels, double smoothing, View losses,
                                                View ranks, View predicted, View probability) {
  return {losses_of(labels, z0.size(1), smoothing, losses, ranks),
          z0.data<float>(),
          slopes.number(),
          slopes.rows(),
          slopes.size(0),
          coefficients.data<float>(),
          predicted.rows(),
          probability.rows()};
}

}  // namespace deevo
