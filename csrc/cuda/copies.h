// Asynchronous copies from global to shared memory, one stage of a double buffer at a time. On
// compute capability 9.0 and above a bulk copy moves a row's whole part of a tile and reports to
// the stage's mbarrier; on 8.x every thread copies 16 bytes at a time. Both leave the registers and
// most issue slots to the arithmetic.
#pragma once

#include "launch.h"

namespace deevo::cuda {

#if defined(__CUDACC__)
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
constexpr bool kBulk = true;
#else
constexpr bool kBulk = false;
#endif

DEEVO_DEVICE uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

DEEVO_DEVICE void copy16(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from)
               : "memory");
}

DEEVO_DEVICE void commit_copies(int) { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for all groups of this thread but the `newer` latest.
DEEVO_DEVICE void wait_copies(int, int newer) {
  if (newer == 0) {
    asm volatile("cp.async.wait_group 0;" ::: "memory");
  } else {
    asm volatile("cp.async.wait_group 1;" ::: "memory");
  }
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
// A phase ends when `arrivals` threads have said what they expect, and all of that has come.
DEEVO_DEVICE void barrier_init(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals)
               : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Arrives, and expects that many bytes more in this phase.
DEEVO_DEVICE void barrier_expect(uint64_t* barrier, uint32_t bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}

DEEVO_DEVICE void copy_bulk(uint64_t* barrier, void* to, const void* from, uint32_t bytes) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}

DEEVO_DEVICE void barrier_wait(uint64_t* barrier, uint32_t parity) {
  uint32_t done;
  do {
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  } while (done == 0);
}

// Orders this thread's ordinary accesses to shared memory before later bulk copies into it.
DEEVO_DEVICE void fence_bulk() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
#else
DEEVO_DEVICE void barrier_init(uint64_t*, int) {}
DEEVO_DEVICE void barrier_expect(uint64_t*, uint32_t) {}
DEEVO_DEVICE void copy_bulk(uint64_t*, void*, const void*, uint32_t) {}
DEEVO_DEVICE void barrier_wait(uint64_t*, uint32_t) {}
DEEVO_DEVICE void fence_bulk() {}
#endif
#endif

// Up to two stages; every thread of the block makes every call.
class Copies {
 public:
  // barriers: two mbarriers in shared memory. The caller syncs the block before the first copy.
  DEEVO_DEVICE explicit Copies(uint64_t* barriers) : barriers_(barriers) {
    if (kBulk && thread_index() < 2) barrier_init(barriers + thread_index(), block_threads() / 32);
  }

  // Starts copying `bytes` (a multiple of 16, 0 allowed) for each of `count` rows:
  // to(i) and from(i) are 16-byte aligned.
  template <class To, class From>
  DEEVO_DEVICE void start(int stage, int count, uint32_t bytes, const To& to, const From& from) {
    if (kBulk) {
      // A thread of each warp: a warp's threads would issue their copies one after the other.
      if (thread_index() % 32 != 0) return;
      const int warp = thread_index() / 32, warps = block_threads() / 32;
      const int own = warp < count ? (count - warp + warps - 1) / warps : 0;
      barrier_expect(barriers_ + stage, static_cast<uint32_t>(own) * bytes);
      if (bytes == 0) return;
      for (int i = warp; i < count; i += warps) {
        copy_bulk(barriers_ + stage, to(i), from(i), bytes);
      }
      return;
    }
    const uint32_t vectors = bytes / 16;
    const uint32_t total = static_cast<uint32_t>(count) * vectors;
    for (uint32_t n = thread_index(); n < total; n += block_threads()) {
      const int i = static_cast<int>(n / vectors);
      const uint32_t at = n % vectors * 16;
      copy16(to(i) + at, from(i) + at);
    }
    commit_copies(stage);
  }

  // Waits for the stage's copies, of which `newer` have been started since on the other stage. The
  // caller syncs the block before it reads.
  DEEVO_DEVICE void wait(int stage, int newer) {
    if (kBulk) {
      barrier_wait(barriers_ + stage, (parities_ >> stage) & 1u);
      parities_ ^= 1u << stage;
    } else {
      wait_copies(stage, newer);
    }
  }

 private:
  uint64_t* barriers_;
  uint32_t parities_ = 0;
};

}  // namespace deevo::cuda
