// The arguments of compose and linear_scores.
#include "arguments.h"

namespace deevo {

ComposeArguments read_compose(View population, View recipes, View starts, View block_of,
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

LinearScoresArguments read_linear_scores(View z0, View slopes, View coefficients, View labels,
                                         double smoothing, View losses, View ranks, View predicted,
                                         View probability) {
  return {
      {labels.data<int64_t>(), labels.numel(), z0.size(1), smoothing, losses.rows(), ranks.rows()},
      z0.data<float>(),
      slopes.number(),
      slopes.rows(),
      slopes.size(0),
      coefficients.data<float>(),
      predicted.rows(),
      probability.rows()};
}

}  // namespace deevo
