// commit on CUDA: the accepted trials are made again and written over the population in place;
// replaced parents move to the archive.
//   row[i] = trial of i, archive[slot of i] = row[i] as it was, for every accepted i
// (greedy selection, Storn & Price 1997; archive, Zhang & Sanderson 2009). A tile of all rows that
// are read lies in shared memory before the first of its columns is written, and tiles share no
// column, so no trial sees another one's. Bytes per weight column: the rows that are read once, and
// two written per accepted member with an archive slot, one per member without.
#include <string>

#include "tiles.h"

namespace deevo::cuda {

const char* commit(const CommitArguments& arguments, const Queue& queue) {
  const Generation& g = arguments.g;
  if (g.population.count == 0 || g.columns == 0) return nullptr;
  const CurrentDevice device(queue.device);
  if (device.error() != nullptr) return device.error();
  TileArguments a = {};
  a.g = g;
  a.keys = MaskKeys(g.key);
  a.num_trials = g.population.count;
  a.accepted = arguments.accepted;
  a.archive_slot = arguments.archive_slot;
  if (!tiles_fit(a, true, device.limits())) {
    thread_local std::string text;
    text = "population and archive have " + std::to_string(g.population.count + g.archive.count) +
           " rows; expected at most about " + std::to_string(device.limits().shared_bytes / 45) +
           ", of which this GPU's shared memory holds 32 bytes each: use fewer members or a "
           "smaller archive, or keep the population on the CPU";
    return text.c_str();
  }
  return dispatch(g.number, [&](auto number) {
    return launch_tiles<decltype(number), true>(queue, a, device.limits());
  });
}

}  // namespace deevo::cuda
