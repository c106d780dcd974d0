// From Python's arguments to the structs of deevo/arguments.h. Here alone is written what an
// operator's arguments are and in which order; it is that of its schema in deevo_ext/ops.
#pragma once

#include "deevo/arguments.h"
#include "view.h"

namespace deevo {

PlanArguments read_plan(View settings, View strategies, View state, View fitness, View alive,
                        View generation, int64_t seed, View choices, View parameters,
                        View coefficients, View gene_mask);

TellArguments read_tell(View settings, View strategies, View trial_fitness, View choices,
                        View parameters, int64_t seed, View state, View fitness, View alive,
                        View generation, View accepted, View archive_slot);

TrialsArguments read_trials(View population, View archive, View choices, View coefficients,
                            View genes, View gene_mask, View members, int64_t seed,
                            int64_t nonneg_start, int64_t first_weight, float lower, float upper,
                            View out);

CommitArguments read_commit(View population, View archive, View choices, View coefficients,
                            View genes, View gene_mask, View accepted, View archive_slot,
                            int64_t seed, int64_t nonneg_start, int64_t first_weight, float lower,
                            float upper);

FoldArguments read_fold(View rows, View statistics, View constants, View table, View eps,
                        View weights, View vectors);

HeadArguments read_head(View features, View weight, View bias, View labels, double smoothing,
                        View losses, View ranks);

LossAndRankArguments read_loss_and_rank(View logits, View labels, double smoothing, View losses,
                                        View ranks);

ComposeArguments read_compose(View population, View recipes, View starts, View block_of,
                              int64_t nonneg_start, View out);

LinearScoresArguments read_linear_scores(View z0, View slopes, View coefficients, View labels,
                                         double smoothing, View losses, View ranks, View predicted,
                                         View probability);

}  // namespace deevo
