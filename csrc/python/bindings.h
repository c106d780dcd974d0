// What the files of bindings share.
#pragma once

#include <pybind11/pybind11.h>

#include <stdexcept>

#include "arguments.h"

namespace deevo {

// Adds the operators of the CPU; each takes the number of threads before its own arguments.
void bind_cpu(pybind11::module_ m);
// Adds the operators of CUDA devices, in builds with CUDA alone; each takes a device's number and a
// stream's address before its own arguments.
void bind_cuda(pybind11::module_ m);

inline void check(const char* error) {
  if (error != nullptr) throw std::invalid_argument(error);
}

}  // namespace deevo
