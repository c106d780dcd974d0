// A tensor as Python passes it. What an operator needs to know of one is asked of the object
// itself, which costs what `tensor.data_ptr()` costs in Python and needs no header of torch.
#pragma once

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "deevo/number.h"
#include "deevo/view.h"

namespace deevo {

// What torch calls things; never released, since statics outlive the interpreter.
struct Torch {
  pybind11::module_ torch = pybind11::module_::import("torch");
  pybind11::object tensor = torch.attr("Tensor");
  pybind11::object data_ptr = tensor.attr("data_ptr"), numel = tensor.attr("numel");
  pybind11::object size = tensor.attr("size"), stride = tensor.attr("stride");
  pybind11::object float32 = torch.attr("float32"), bfloat16 = torch.attr("bfloat16");
  pybind11::object float16 = torch.attr("float16");

  static const Torch& names() {
    static const Torch* const torch = new Torch;
    return *torch;
  }
};

class View {
 public:
  View() = default;
  explicit View(pybind11::handle tensor) : tensor_(tensor) {}

  template <class T>
  T* data() const {
    return static_cast<T*>(PyLong_AsVoidPtr(ask(Torch::names().data_ptr).ptr()));
  }

  int64_t numel() const { return PyLong_AsLongLong(ask(Torch::names().numel).ptr()); }
  int64_t size(int dimension) const { return ask(Torch::names().size, dimension); }
  int64_t stride(int dimension) const { return ask(Torch::names().stride, dimension); }
  Rows rows() const { return {data<void>(), size(0), stride(0)}; }

  Number number() const {
    const pybind11::object dtype = tensor_.attr("dtype");
    if (dtype.is(Torch::names().float32)) return Number::kFloat32;
    if (dtype.is(Torch::names().bfloat16)) return Number::kBFloat16;
    if (dtype.is(Torch::names().float16)) return Number::kFloat16;
    throw std::invalid_argument("no kernel for " + std::string(pybind11::str(dtype)));
  }

 private:
  static pybind11::object take(PyObject* result) {
    if (result == nullptr) throw pybind11::error_already_set();
    return pybind11::reinterpret_steal<pybind11::object>(result);
  }

  // Methods are looked up once: half of what calling one by name costs.
  pybind11::object ask(const pybind11::object& method) const {
    return take(PyObject_CallOneArg(method.ptr(), tensor_.ptr()));
  }

  int64_t ask(const pybind11::object& method, int dimension) const {
    const auto argument = take(PyLong_FromLong(dimension));
    PyObject* const arguments[] = {tensor_.ptr(), argument.ptr()};
    return PyLong_AsLongLong(take(PyObject_Vectorcall(method.ptr(), arguments, 2, nullptr)).ptr());
  }

  pybind11::handle tensor_;
};

}  // namespace deevo

namespace pybind11::detail {

template <>
struct type_caster<deevo::View> {
  PYBIND11_TYPE_CASTER(deevo::View, const_name("torch.Tensor"));

  bool load(handle source, bool) {
    value = deevo::View(source);
    return true;
  }
};

}  // namespace pybind11::detail
