// Limits of devices, and CUDA's errors in words.
#include <mutex>
#include <string>

#include "device.h"
#include "launch.h"

#if !defined(DEEVO_CUDA_ARCHITECTURES)
#define DEEVO_CUDA_ARCHITECTURES "unknown"
#endif

namespace deevo::cuda {

const char* error_text(cudaError_t error) {
  if (error == cudaSuccess) return nullptr;
  thread_local std::string text;
  text = std::string("CUDA error ") + cudaGetErrorName(error) + ": " + cudaGetErrorString(error);
  if (error == cudaErrorInsufficientDriver || error == cudaErrorNoKernelImageForDevice ||
      error == cudaErrorUnsupportedPtxVersion) {
    text += ". deevo_ext was built with CUDA " + std::to_string(CUDART_VERSION / 1000) + "." +
            std::to_string(CUDART_VERSION % 1000 / 10) +
            " for architectures " DEEVO_CUDA_ARCHITECTURES
            "; update the driver, or rebuild with a CUDA toolkit and TORCH_CUDA_ARCH_LIST that "
            "suit this machine";
  }
  return text.c_str();
}

namespace {

// An error text, null when all is well.
const char* read_limits(int device, Limits* limits) {
  constexpr int kMostDevices = 64;
  static std::mutex mutex;
  static Limits known[kMostDevices];
  if (device < 0 || device >= kMostDevices) return "device number beyond 63";
  const std::lock_guard<std::mutex> lock(mutex);
  if (known[device].multiprocessors == 0) {
    int shared = 0, multiprocessors = 0;
    if (const char* error = error_text(
            cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device))) {
      return error;
    }
    if (const char* error = error_text(
            cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device))) {
      return error;
    }
    known[device] = {multiprocessors, static_cast<size_t>(shared)};
  }
  *limits = known[device];
  return nullptr;
}

}  // namespace

CurrentDevice::CurrentDevice(int device) {
  int current = -1;
  error_ = error_text(cudaGetDevice(&current));
  if (error_ == nullptr && current != device) {
    error_ = error_text(cudaSetDevice(device));
    if (error_ == nullptr) before_ = current;
  }
  if (error_ == nullptr) error_ = read_limits(device, &limits_);
}

CurrentDevice::~CurrentDevice() {
  if (before_ >= 0) cudaSetDevice(before_);
}

}  // namespace deevo::cuda
