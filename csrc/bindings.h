// What the files of bindings share.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "cpu/inference.h"

namespace deevo {

// An address, a count and a stride each, as Python passes matrices.
cpu::Blocks blocks(const pybind11::tuple& t);
// A dtype by name.
cpu::Number number(const std::string& dtype);

// Adds fold, head and loss_and_rank.
void bind_inference(pybind11::module_& m);
// Adds cuda_plan, cuda_trials, cuda_tell and cuda_commit; only in builds with CUDA.
void bind_cuda(pybind11::module_& m);

}  // namespace deevo
