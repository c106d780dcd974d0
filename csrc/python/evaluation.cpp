// The arguments of fold, head and loss_and_rank.
#include "arguments.h"

namespace deevo {
namespace {

Losses losses_of(View labels, int64_t classes, double smoothing, View losses, View ranks) {
  return {labels.data<int64_t>(), labels.numel(), classes, smoothing, losses.rows(), ranks.rows()};
}

}  // namespace

FoldArguments read_fold(View rows, View statistics, View constants, View table, View eps,
                        View weights, View vectors) {
  return {rows.number(),           weights.number(),      rows.rows(),        statistics.rows(),
          constants.data<float>(), table.data<int64_t>(), eps.data<double>(), eps.numel(),
          weights.rows(),          vectors.rows()};
}

HeadArguments read_head(View features, View weight, View bias, View labels, double smoothing,
                        View losses, View ranks) {
  return {losses_of(labels, weight.size(1), smoothing, losses, ranks),
          features.number(),
          features.rows(),
          weight.rows(),
          bias.rows(),
          features.size(2),
          features.size(3)};
}

LossAndRankArguments read_loss_and_rank(View logits, View labels, double smoothing, View losses,
                                        View ranks) {
  return {losses_of(labels, logits.size(2), smoothing, losses, ranks), logits.number(),
          logits.rows()};
}

}  // namespace deevo
