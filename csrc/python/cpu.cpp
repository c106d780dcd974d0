// The operators of backend cpu for Python. The interpreter goes on while they run.
#include "bindings.h"
#include "cpu/operators.h"

namespace deevo {
namespace {

// Defines an operator; read makes the launcher's arguments of Python's.
template <class Arguments, class... Rest>
void define(pybind11::module_& m, const char* name, Arguments (*read)(Rest...),
            const char* (*launch)(const Arguments&, int64_t)) {
  m.def(name, [read, launch](int64_t threads, Rest... rest) {
    const Arguments arguments = read(rest...);
    const char* error;
    {
      const pybind11::gil_scoped_release release;
      error = launch(arguments, threads);
    }
    check(error);
  });
}

}  // namespace

void bind_cpu(pybind11::module_ m) {
  define(m, "plan", read_plan, cpu::plan);
  define(m, "tell", read_tell, cpu::tell);
  define(m, "trials", read_trials, cpu::trials);
  define(m, "commit", read_commit, cpu::commit);
  define(m, "fold", read_fold, cpu::fold);
  define(m, "head", read_head, cpu::head);
  define(m, "loss_and_rank", read_loss_and_rank, cpu::loss_and_rank);
  define(m, "compose", read_compose, cpu::compose);
  define(m, "linear_scores", read_linear_scores, cpu::linear_scores);
}

}  // namespace deevo
