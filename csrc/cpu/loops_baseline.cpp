// The loops for the instruction set that every machine of this architecture has.
#include "loops.h"

namespace deevo::cpu {
namespace {

#include "loops_body.h"

bool supported() { return true; }

}  // namespace

const Loops kBaselineLoops = {"baseline", supported, mask_draws, trial<Float32>, trial<BFloat16>};

}  // namespace deevo::cpu
