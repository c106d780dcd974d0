// The CUDA backend's entry points: arguments with device pointers and a queue in, an error text
// (null when all went well) out. Nothing here allocates or waits, so every call can be captured in
// a graph. Values on the device are checked by the kernels (DEEVO_CHECK in launch.h).
#pragma once

#include "deevo/arguments.h"

namespace deevo::cuda {

// Where the work goes: a device by number, and a cudaStream_t of it.
struct Queue {
  int device;
  void* stream;
};

const char* plan(const PlanArguments& a, const Queue& queue);
const char* tell(const TellArguments& a, const Queue& queue);
const char* trials(const TrialsArguments& a, const Queue& queue);
const char* commit(const CommitArguments& a, const Queue& queue);
const char* compose(const ComposeArguments& a, const Queue& queue);
const char* fold(const FoldArguments& a, const Queue& queue);
const char* head(const HeadArguments& a, const Queue& queue);
const char* loss_and_rank(const LossAndRankArguments& a, const Queue& queue);

}  // namespace deevo::cuda
