// What launchers need to know of a device.
#pragma once

#include <cstddef>

namespace deevo::cuda {

struct Limits {
  int multiprocessors;
  size_t shared_bytes;  // that one block can have
};

// Reads a device's limits, once per device; an error text, null when all is well.
const char* limits_of(int device, Limits* limits);

// Makes a device the current one until the end of the scope.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  const char* error() const { return error_; }

 private:
  int before_ = -1;
  const char* error_ = nullptr;
};

}  // namespace deevo::cuda
