// See cuda_on_host.h. Fibres are ucontexts that the scheduler below resumes in turn; a failed check
// abandons them all.
#include "cuda_on_host.h"

#include <ucontext.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "cuda/device.h"
#include "python/bindings.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace deevo::cuda {
namespace host {

Place place;
bool bulk = false;

namespace {

enum class Order { kForward, kReverse, kShuffled };

// The machine that is played; set from Python.
struct Machine {
  int multiprocessors = 3;
  size_t shared_bytes = 232448;
  int threads = 64;  // of blocks that are launched with more; kernels take any multiple of 32
  Order order = Order::kForward;
  int64_t launches = 0;
} machine;

enum class State { kReady, kAtBlock, kAtWarp, kDone };

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
};

struct Fibre {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  State state;
  std::vector<std::vector<Copy>> groups;  // committed groups of copies that are still to be made
  std::vector<Copy> open;
};

// An mbarrier: who is to arrive in a phase and has, the phase's expected and issued bytes, and the
// copies, which come when they are waited for.
struct Barrier {
  int arrivals;
  uint32_t phase;
  int arrived;
  uint32_t expected, issued;
  std::vector<Copy> copies;
};

constexpr size_t kStack = 256 * 1024;

std::vector<std::unique_ptr<Fibre>> fibres;
std::map<uint64_t*, Barrier> barriers;
ucontext_t scheduler;
const std::function<void()>* body;
unsigned char* shared = nullptr;
std::string failure;
std::mt19937 source(1);

Fibre& current() { return *fibres[place.thread]; }

#if defined(__SANITIZE_ADDRESS__)
const void* scheduler_stack = nullptr;
size_t scheduler_size = 0;
#endif

void to_scheduler([[maybe_unused]] bool last) {
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(last ? nullptr : &fake, scheduler_stack, scheduler_size);
#endif
  swapcontext(&current().context, &scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, &scheduler_stack, &scheduler_size);
#endif
}

void entry() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_size);
#endif
  (*body)();
  current().state = State::kDone;
  if (!current().groups.empty() || !current().open.empty()) {
    failure = "cuda-on-host: a thread ended with copies that it never waited for";
  }
  to_scheduler(true);
}

void resume(int thread) {
  place.thread = thread;
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, fibres[thread]->stack.get(), kStack);
#endif
  swapcontext(&scheduler, &fibres[thread]->context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

void make(const std::vector<Copy>& copies) {
  for (const Copy& copy : copies) std::memcpy(copy.to, copy.from, copy.bytes);
}

// Lets threads [first, end) go on once all of them wait in the same way; says whether they did.
bool release(int first, int end, State waiting) {
  for (int i = first; i < end; ++i) {
    if (fibres[i]->state != waiting) return false;
  }
  for (int i = first; i < end; ++i) fibres[i]->state = State::kReady;
  return true;
}

void run_block(int threads) {
  while (static_cast<int>(fibres.size()) < threads) {
    fibres.push_back(std::make_unique<Fibre>());
    fibres.back()->stack = std::make_unique<char[]>(kStack);
  }
  for (int i = 0; i < threads; ++i) {
    Fibre& fibre = *fibres[i];
    fibre.state = State::kReady;
    fibre.groups.clear();
    fibre.open.clear();
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = fibre.stack.get();
    fibre.context.uc_stack.ss_size = kStack;
    fibre.context.uc_link = nullptr;
    makecontext(&fibre.context, entry, 0);
  }
  std::vector<int> turn(threads);
  std::iota(turn.begin(), turn.end(), 0);
  if (machine.order == Order::kReverse) std::reverse(turn.begin(), turn.end());
  for (int done = 0; done < threads;) {
    if (machine.order == Order::kShuffled) std::shuffle(turn.begin(), turn.end(), source);
    bool progress = false;
    for (const int i : turn) {
      if (fibres[i]->state != State::kReady) continue;
      resume(i);
      if (!failure.empty()) return;
      done += fibres[i]->state == State::kDone ? 1 : 0;
      progress = true;
    }
    for (int first = 0; first < threads; first += 32) {
      progress |= release(first, std::min(first + 32, threads), State::kAtWarp);
    }
    progress |= done == 0 && release(0, threads, State::kAtBlock);
    if (!progress && done < threads) {
      failure = "cuda-on-host: some threads wait at a barrier that the others do not reach";
      return;
    }
  }
}

void wait(State state) {
  current().state = state;
  to_scheduler(false);
}

}  // namespace

unsigned char* shared_memory() { return shared; }

void fail(const char* text) {
  failure = text;
  current().state = State::kDone;
  to_scheduler(true);
  std::abort();
}

const char* launch(const std::function<void()>& kernel, int64_t blocks, int threads,
                   size_t shared_bytes, void* stream) {
  static std::string text;
  text.clear();
  if (blocks < 1 || blocks > 0x7FFFFFFF || threads < 1 || threads > 1024) {
    return "cuda-on-host: a launch of no threads, or of too many";
  }
  if (shared_bytes > machine.shared_bytes) return "cuda-on-host: more shared memory than there is";
  if (stream != nullptr) return "cuda-on-host: no such stream";
  machine.launches += 1;
  failure.clear();
  body = &kernel;
  for (int64_t block = 0; block < blocks && failure.empty(); ++block) {
    place = {0, std::min(threads, machine.threads), block, blocks};
    shared = static_cast<unsigned char*>(
        std::aligned_alloc(128, (shared_bytes + 127) / 128 * 128 + 128));
    std::memset(shared, 0xFF, shared_bytes);
    barriers.clear();
    run_block(place.threads);
    for (const auto& [address, barrier] : barriers) {
      if (failure.empty() && !barrier.copies.empty()) {
        failure = "cuda-on-host: a block ended with bulk copies that it never waited for";
      }
    }
    std::free(shared);
  }
  text = failure;
  return text.empty() ? nullptr : text.c_str();
}

}  // namespace host

using host::Copy;

void sync_block() { host::wait(host::State::kAtBlock); }
void sync_warp() { host::wait(host::State::kAtWarp); }

void copy16(void* to, const void* from) {
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0) {
    host::fail("cuda-on-host: a 16-byte copy at an unaligned address");
  }
  host::current().open.push_back({to, from, 16});
}

void commit_copies(int) {
  host::current().groups.push_back(std::move(host::current().open));
  host::current().open.clear();
}

void wait_copies(int, int newer) {
  auto& groups = host::current().groups;
  while (static_cast<int>(groups.size()) > newer) {
    host::make(groups.front());
    groups.erase(groups.begin());
  }
}

void barrier_init(uint64_t* barrier, int arrivals) {
  host::barriers[barrier] = {arrivals, 0, 0, 0, 0, {}};
}

void barrier_expect(uint64_t* barrier, uint32_t bytes) {
  host::Barrier& b = host::barriers.at(barrier);
  if (b.arrived == b.arrivals) {
    host::fail("cuda-on-host: an mbarrier used again before its phase ended");
  }
  b.arrived += 1;
  b.expected += bytes;
}

void copy_bulk(uint64_t* barrier, void* to, const void* from, uint32_t bytes) {
  host::Barrier& b = host::barriers.at(barrier);
  const bool aligned = reinterpret_cast<uintptr_t>(to) % 16 == 0 &&
                       reinterpret_cast<uintptr_t>(from) % 16 == 0 && bytes % 16 == 0;
  if (!aligned || bytes == 0) host::fail("cuda-on-host: a bulk copy of unaligned memory");
  if (thread_index() % 32 != 0) host::fail("cuda-on-host: bulk copies that a warp takes in turn");
  b.issued += bytes;
  if (b.issued > b.expected) {
    host::fail("cuda-on-host: more bytes copied than the mbarrier expects");
  }
  b.copies.push_back({to, from, bytes});
}

void barrier_wait(uint64_t* barrier, uint32_t parity) {
  // As on a device, a thread may ask before the copies were issued.
  for (int tries = 0; host::barriers.at(barrier).phase % 2 == parity; ++tries) {
    host::Barrier& b = host::barriers.at(barrier);
    if (b.arrived == b.arrivals && b.issued == b.expected) {
      host::make(b.copies);
      b = {b.arrivals, b.phase + 1, 0, 0, 0, {}};
      return;
    }
    if (tries == 1000) host::fail("cuda-on-host: waiting for copies that never come");
    host::wait(host::State::kReady);
  }
}

void fence_bulk() {}

CurrentDevice::CurrentDevice(int)
    : error_(nullptr), limits_{host::machine.multiprocessors, host::machine.shared_bytes} {}
CurrentDevice::~CurrentDevice() {}

namespace {

// Small kernels with one mistake each, for the test that they are noticed; null for none.
const char* mistake(const std::string& which) {
  alignas(16) static unsigned char source[64] = {};
  static std::string seen;
  seen.clear();
  const auto kernel = [&] {
    unsigned char* shared = host::shared_memory();
    uint64_t* barrier = reinterpret_cast<uint64_t*>(shared);
    unsigned char* to = shared + 64;
    if (thread_index() == 0) barrier_init(barrier, 1);
    sync_block();
    if (which == "barrier" && thread_index() == 3) return;
    sync_block();
    if (which == "in turn" && thread_index() == 1) copy_bulk(barrier, to, source, 16);
    if (thread_index() != 0) return;
    if (which == "alignment") copy16(to + 4, source);
    if (which == "copy" || which == "early read") {
      copy16(to, source);
      commit_copies(0);
      if (which == "copy") return;
      seen = "read " + std::to_string(to[0]);
      wait_copies(0, 0);
    }
    if (which == "bytes") {
      barrier_expect(barrier, 16);
      copy_bulk(barrier, to, source, 32);
    }
  };
  const char* error = host::launch(kernel, 1, 32, 256, nullptr);
  return error != nullptr || seen.empty() ? error : seen.c_str();
}

}  // namespace

}  // namespace deevo::cuda

PYBIND11_MODULE(deevo_cuda_on_host, m) {
  deevo::bind_cuda(m);
  m.def("play", [](int multiprocessors, size_t shared_bytes, int threads, int order, bool bulk) {
    using namespace deevo::cuda::host;
    machine.multiprocessors = multiprocessors;
    machine.shared_bytes = shared_bytes;
    machine.threads = threads;
    machine.order = static_cast<Order>(order);
    deevo::cuda::host::bulk = bulk;
  });
  m.def("mistake", &deevo::cuda::mistake);
  m.def("launches", [] { return deevo::cuda::host::machine.launches; });
}
