// The operators of backend cuda for Python.
#include "bindings.h"
#include "cuda/operators.h"

namespace deevo {
namespace {

// Defines an operator; read makes the launcher's arguments of Python's.
template <class Arguments, class... Rest>
void define(pybind11::module_& m, const char* name, Arguments (*read)(Rest...),
            const char* (*launch)(const Arguments&, const cuda::Queue&)) {
  m.def(name, [read, launch](int device, uintptr_t stream, Rest... rest) {
    check(launch(read(rest...), {device, reinterpret_cast<void*>(stream)}));
  });
}

}  // namespace

void bind_cuda(pybind11::module_ m) {
  define(m, "plan", read_plan, cuda::plan);
  define(m, "tell", read_tell, cuda::tell);
  define(m, "trials", read_trials, cuda::trials);
  define(m, "commit", read_commit, cuda::commit);
  define(m, "compose", read_compose, cuda::compose);
  define(m, "fold", read_fold, cuda::fold);
  define(m, "head", read_head, cuda::head);
  define(m, "loss_and_rank", read_loss_and_rank, cuda::loss_and_rank);
}

}  // namespace deevo
