// What launchers need to know of a device.
#pragma once

#include <cstddef>

namespace deevo::cuda {

struct Limits {
  int multiprocessors;
  size_t shared_bytes;  // that one block can have
};

// Makes a device the current one until the end of the scope. Its limits are read once a process.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device);
  ~CurrentDevice();
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

  // A text, null when all is well; there are no limits otherwise.
  const char* error() const { return error_; }
  const Limits& limits() const { return limits_; }

 private:
  int before_ = -1;
  const char* error_;
  Limits limits_ = {};
};

}  // namespace deevo::cuda
