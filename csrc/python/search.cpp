// The arguments of compose.
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

}  // namespace deevo
