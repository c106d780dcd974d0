// The extension module deevo_ext._C: tensors in, errors as exceptions out. No logic; shapes, dtypes
// and overlaps are checked in deevo_ext/ops.
#include "bindings.h"
#include "cpu/loops.h"
#include "deevo/exact_math.h"
#include "deevo/fold.h"
#include "deevo/head.h"
#include "deevo/philox.h"
#include "deevo/tables.h"

namespace py = pybind11;

namespace deevo {
namespace {

// Adds what the tests compare with implementations of their own, and the choice of loops.
void bind_support(py::module_ m) {
  m.def("philox4x32", [](int rounds, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3,
                         uint32_t k0, uint32_t k1) {
    if (rounds != kMaskRounds && rounds != kRounds) {
      throw std::invalid_argument("rounds must be 7 or 10");
    }
    const Words out = rounds == kRounds ? philox4x32<kRounds>(c0, c1, c2, c3, {k0, k1})
                                        : philox4x32<kMaskRounds>(c0, c1, c2, c3, {k0, k1});
    return py::make_tuple(out.w[0], out.w[1], out.w[2], out.w[3]);
  });
  m.def("instruction_set", [] { return cpu::loops().name; });
  m.def("use_instruction_set",
        [](const std::string& name) { return cpu::use_loops(name.c_str()); });
  m.def("exact_log", &exact_log);
  m.def("sin2pi", &sin2pi);
  m.def("normal_quantile", &normal_quantile);
  m.def("cauchy_quantile", &cauchy_quantile);
  m.def("exp_fixed", &exp_fixed);
  m.def("fold_constants", [] { return py::make_tuple(static_cast<int>(kFoldColumns), kFoldTile); });
  m.def(
      "table_sizes",
      [] {
        const StateOffsets offsets(5, 3, 10, 7);
        return py::make_tuple(static_cast<int>(kNumSettings), static_cast<int>(kStrategyColumns),
                              static_cast<int>(kChoiceColumns), static_cast<int>(kParameterColumns),
                              kMaxTerms, static_cast<int>(kNumTermCodes), offsets.size);
      },
      "Sizes of the shared tables; the last is a state of H=5, K=3 and windows of 10 and 7.");
}

}  // namespace
}  // namespace deevo

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled operators of deevo_ext; use them through torch.ops.deevo.";
  deevo::bind_support(m);
  deevo::bind_cpu(m.def_submodule("cpu"));
#if defined(DEEVO_WITH_CUDA)
  deevo::bind_cuda(m.def_submodule("cuda"));
#endif
}
