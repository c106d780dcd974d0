// The host twin of csrc/cuda/launch.h and of the copies of copies.h: kernels as C++ on the CPU, one
// block after the other, each thread of a block a fibre. Made to find mistakes, not to be fast:
// shared memory is poisoned before each block and has not a byte too many, threads run in any
// order that is asked for, copies happen only when they are waited for, and a barrier that some
// threads of a block never reach is an error.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#define DEEVO_DEVICE inline
#define DEEVO_KERNEL(threads, blocks) void
#define DEEVO_PARAMETERS const
#define DEEVO_SHARED(name) unsigned char* const name = deevo::cuda::host::shared_memory()
#define DEEVO_LAUNCH(kernel, blocks, threads, shared_bytes, stream, parameters)                 \
  deevo::cuda::host::launch([function = kernel, copy = parameters] { function(copy); }, blocks, \
                            threads, static_cast<size_t>(shared_bytes), stream)
#define DEEVO_ALLOW_SHARED(kernel, shared_bytes) \
  (static_cast<void>(kernel), static_cast<const char*>(nullptr))
#define DEEVO_CHECK(condition, text)                 \
  do {                                               \
    if (!(condition)) deevo::cuda::host::fail(text); \
  } while (false)

namespace deevo::cuda {
namespace host {

unsigned char* shared_memory();
const char* launch(const std::function<void()>& kernel, int64_t blocks, int threads,
                   size_t shared_bytes, void* stream);
[[noreturn]] void fail(const char* text);

// Where the running fibre is.
struct Place {
  int thread, threads;
  int64_t block, blocks;
};
extern Place place;
extern bool bulk;

}  // namespace host

inline int thread_index() { return host::place.thread; }
inline int block_threads() { return host::place.threads; }
inline int64_t block_index() { return host::place.block; }
inline int64_t grid_blocks() { return host::place.blocks; }
void sync_block();
void sync_warp();

// Through a place for each thread; reading too early or too late finds another warp step's value.
template <class T>
T shuffle_xor(T value, int lanes) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  static uint64_t places[1024];
  std::memcpy(&places[thread_index()], &value, sizeof(T));
  sync_warp();
  T other;
  std::memcpy(&other, &places[thread_index() ^ lanes], sizeof(T));
  sync_warp();
  return other;
}

inline uint32_t vote(bool yes) {
  uint32_t bits = yes ? 1u << (thread_index() & 31) : 0u;
  for (int lanes = 1; lanes < 32; lanes *= 2) bits |= shuffle_xor(bits, lanes);
  return bits;
}
inline int population_count(uint32_t bits) { return __builtin_popcount(bits); }

inline int add_shared(int* counter, int value) {
  const int before = *counter;
  *counter += value;
  return before;
}

inline uint32_t or_shared(uint32_t* word, uint32_t bits) {
  const uint32_t before = *word;
  *word |= bits;
  return before;
}

// Both ways of copying are tried: by every thread, and in bulk by a few.
#define kBulk host::bulk

void copy16(void* to, const void* from);
void commit_copies(int stage);
void wait_copies(int stage, int newer);
void barrier_init(uint64_t* barrier, int arrivals);
void barrier_expect(uint64_t* barrier, uint32_t bytes);
void copy_bulk(uint64_t* barrier, void* to, const void* from, uint32_t bytes);
void barrier_wait(uint64_t* barrier, uint32_t parity);
void fence_bulk();

}  // namespace deevo::cuda
