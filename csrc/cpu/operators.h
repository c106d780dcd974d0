// The CPU backend's entry points: arguments and a number of threads in, an error text (null when
// all went well) out. Nothing is written when an error is returned.
#pragma once

#include <cstdint>

#include "deevo/arguments.h"

namespace deevo::cpu {

const char* plan(const PlanArguments& a, int64_t threads);
const char* tell(const TellArguments& a, int64_t threads);
const char* trials(const TrialsArguments& a, int64_t threads);
const char* commit(const CommitArguments& a, int64_t threads);
const char* fold(const FoldArguments& a, int64_t threads);
const char* head(const HeadArguments& a, int64_t threads);
const char* loss_and_rank(const LossAndRankArguments& a, int64_t threads);
const char* compose(const ComposeArguments& a, int64_t threads);
const char* linear_scores(const LinearScoresArguments& a, int64_t threads);

}  // namespace deevo::cpu
