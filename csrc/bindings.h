// What the files of bindings share.
#pragma once

#include <pybind11/pybind11.h>

namespace deevo {

// Adds fold, head and loss_and_rank.
void bind_inference(pybind11::module_& m);

}  // namespace deevo
