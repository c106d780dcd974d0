// Python bindings of the operators that evaluate networks: addresses and sizes in. No logic.
#include <stdexcept>
#include <string>

#include "bindings.h"
#include "deevo/fold.h"
#include "deevo/head.h"

namespace py = pybind11;

namespace deevo {
namespace {

using Address = uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace

cpu::Number number(const std::string& dtype) {
  if (dtype == "float32") return cpu::Number::kFloat32;
  if (dtype == "bfloat16") return cpu::Number::kBFloat16;
  if (dtype == "float16") return cpu::Number::kFloat16;
  throw std::invalid_argument("no kernel for dtype " + dtype);
}

cpu::Blocks blocks(const py::tuple& t) {
  return {at<void>(t[0].cast<Address>()), t[1].cast<int64_t>(), t[2].cast<int64_t>()};
}

void bind_inference(py::module_& m) {
  m.def("fold",
        [](const std::string& source, const std::string& target, const py::tuple& rows,
           const py::tuple& statistics, Address constants, Address table, Address eps,
           int64_t entries, const py::tuple& weights, const py::tuple& vectors, int64_t threads) {
          const cpu::Fold f = {
              number(source),       number(target),     blocks(rows),    blocks(statistics),
              at<float>(constants), at<int64_t>(table), at<double>(eps), entries,
              blocks(weights),      blocks(vectors),    threads};
          const py::gil_scoped_release release;
          cpu::fold(f);
        });

  m.def("head", [](const std::string& dtype, const py::tuple& features, const py::tuple& weight,
                   const py::tuple& bias, int64_t positions, int64_t channels, Address labels,
                   int64_t samples, int64_t classes, double smoothing, const py::tuple& losses,
                   const py::tuple& ranks, int64_t threads) {
    const cpu::Number kind = number(dtype);
    const cpu::Losses l = {at<int64_t>(labels), samples,       classes, smoothing,
                           blocks(losses),      blocks(ranks), threads};
    const cpu::Blocks x = blocks(features), w = blocks(weight), b = blocks(bias);
    const py::gil_scoped_release release;
    cpu::head(kind, x, w, b, positions, channels, l);
  });

  m.def("loss_and_rank", [](const std::string& dtype, const py::tuple& logits, Address labels,
                            int64_t samples, int64_t classes, double smoothing,
                            const py::tuple& losses, const py::tuple& ranks, int64_t threads) {
    const cpu::Number kind = number(dtype);
    const cpu::Losses l = {at<int64_t>(labels), samples,       classes, smoothing,
                           blocks(losses),      blocks(ranks), threads};
    const cpu::Blocks z = blocks(logits);
    const py::gil_scoped_release release;
    cpu::loss_and_rank(kind, z, l);
  });

  m.def("exp_fixed", &exp_fixed);
  m.def("fold_constants", [] { return py::make_tuple(static_cast<int>(kFoldColumns), kFoldTile); });
}

}  // namespace deevo
