// The CUDA of deevo's kernels in one place: thread indices, barriers, the one dynamic shared
// buffer, checks and launches. Without nvcc these names come from a host twin
// (python_tests/support), which runs the same sources on the CPU; so no other file includes a CUDA
// header or names CUDA's own.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_runtime.h>

#include <cassert>

#define DEEVO_DEVICE __device__ __forceinline__
#define DEEVO_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define DEEVO_PARAMETERS const __grid_constant__
// Dynamic shared memory: the start of the block's buffer.
#define DEEVO_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
// Launches kernel(parameters); an error text, null when it was launched.
#define DEEVO_LAUNCH(kernel, blocks, threads, shared_bytes, stream, parameters) \
  (kernel<<<static_cast<unsigned>(blocks), threads, shared_bytes,               \
            static_cast<cudaStream_t>(stream)>>>(parameters),                   \
   deevo::cuda::error_text(cudaGetLastError()))
// Lets a kernel use more dynamic shared memory than every device has.
#define DEEVO_ALLOW_SHARED(kernel, shared_bytes)                                            \
  deevo::cuda::error_text(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),       \
                                               cudaFuncAttributeMaxDynamicSharedMemorySize, \
                                               static_cast<int>(shared_bytes)))
// What a kernel is given cannot be read by the host without waiting for the device, so kernels
// check it themselves, before they write. A failed check ends the kernel as a device-side assert
// does.
#define DEEVO_CHECK(condition, text)                                    \
  do {                                                                  \
    if (!(condition)) __assert_fail(text, "deevo", __LINE__, __func__); \
  } while (false)

namespace deevo::cuda {

// In words, with what to do; null for success.
const char* error_text(cudaError_t error);

DEEVO_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
DEEVO_DEVICE int block_threads() { return static_cast<int>(blockDim.x); }
DEEVO_DEVICE int64_t block_index() { return blockIdx.x; }
DEEVO_DEVICE int64_t grid_blocks() { return gridDim.x; }
DEEVO_DEVICE void sync_block() { __syncthreads(); }
DEEVO_DEVICE void sync_warp() { __syncwarp(); }
// The value of the lane whose number differs in these bits; all lanes of a warp take part.
template <class T>
DEEVO_DEVICE T shuffle_xor(T value, int lanes) {
  return __shfl_xor_sync(0xFFFFFFFFu, value, lanes);
}
// Which lanes of a warp say so, bit by bit; all of them take part.
DEEVO_DEVICE uint32_t vote(bool yes) { return __ballot_sync(0xFFFFFFFFu, yes); }
DEEVO_DEVICE int population_count(uint32_t bits) { return __popc(bits); }
DEEVO_DEVICE int add_shared(int* counter, int value) { return atomicAdd(counter, value); }
DEEVO_DEVICE uint32_t or_shared(uint32_t* word, uint32_t bits) { return atomicOr(word, bits); }

}  // namespace deevo::cuda

#else
#include "cuda_on_host.h"
#endif
