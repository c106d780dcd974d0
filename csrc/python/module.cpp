// The extension module deevo_ext._C: tensors in, errors as exceptions out. No logic; shapes, dtypes
// and overlaps are checked in deevo_ext/ops.
#include "bindings.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled operators of deevo_ext; use them through torch.ops.deevo.";
  deevo::bind_support(m);
  deevo::bind_cpu(m.def_submodule("cpu"));
#if defined(DEEVO_WITH_CUDA)
  deevo::bind_cuda(m.def_submodule("cuda"));
#endif
}
