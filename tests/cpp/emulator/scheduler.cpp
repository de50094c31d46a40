// Threads as fibers, and the order in which they go on.
#include <sys/mman.h>
#include <unistd.h>

#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "machine.h"

EmulatedIndex threadIdx, blockIdx, blockDim, gridDim;

#if !defined(__x86_64__)
#error "fibers are switched in x86-64 instructions"
#endif

// Stores the registers that a call preserves and goes on at another stack.
extern "C" void emulator_switch(void** from, void* to);
asm(R"(
.text
.globl emulator_switch
.type emulator_switch, @function
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_switch, .-emulator_switch
)");

namespace emulator {
namespace {

constexpr size_t kStackBytes = 128 * 1024;
constexpr uint64_t kStackEnd = 0x57ac4e0d57ac4e0d;
constexpr int kMostCluster = 8;

void* scheduler_stack;
const std::function<void()>* kernel_of_launch;
std::string context;
unsigned char* (*shared_array)();

void fiber_entry() {
  (*kernel_of_launch)();
  machine().thread_ends();
}

// Stacks are kept from launch to launch.
unsigned char* stack_of(size_t number) {
  static std::vector<unsigned char*> stacks;
  while (stacks.size() <= number) {
    void* const stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED) std::abort();
    stacks.push_back(static_cast<unsigned char*>(stack));
  }
  return stacks[number];
}

void report_crash(int, siginfo_t* info, void*) {
  Machine& m = machine();
  // Addresses that cannot exist are given as null.
  const std::string text =
      context + format("\n    access of address %p, which is no tensor's, by %s\n", info->si_addr,
                       m.current == nullptr ? "the host" : m.place_of(*m.current).c_str());
  if (write(2, text.data(), text.size()) < 0) std::abort();
  std::signal(SIGSEGV, SIG_DFL);
  std::raise(SIGSEGV);
}

void catch_crashes() {
  static const bool caught = [] {
    static unsigned char stack[64 * 1024];
    stack_t other = {};
    other.ss_sp = stack;
    other.ss_size = sizeof(stack);
    sigaltstack(&other, nullptr);
    struct sigaction action = {};
    action.sa_sigaction = report_crash;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, nullptr);
    return true;
  }();
  (void)caught;
}

}  // namespace

Machine& machine() {
  static Machine machine;
  return machine;
}

std::string format(const char* text, ...) {
  char buffer[1024];
  va_list arguments;
  va_start(arguments, text);
  std::vsnprintf(buffer, sizeof(buffer), text, arguments);
  va_end(arguments);
  return buffer;
}

std::string text_of(Where where) {
  const std::string file = where.file_name();
  return format("%s:%u", file.substr(file.rfind('/') + 1).c_str(), static_cast<unsigned>(where.line()));
}

void fail(const char* text, ...) {
  char buffer[1024];
  va_list arguments;
  va_start(arguments, text);
  std::vsnprintf(buffer, sizeof(buffer), text, arguments);
  va_end(arguments);
  Machine& m = machine();
  m.note_failure(buffer);
  if (m.current == nullptr) throw Failure{};
  emulator_switch(&m.current->stack_pointer, scheduler_stack);
  std::abort();  // it is not resumed
}

void set_options(const Options& options) { machine().options = options; }

Options options_of(uint64_t number) {
  constexpr Delay kDelays[] = {Delay::kRandom, Delay::kNone, Delay::kLongest};
  return {number, kDelays[number % 3], kDelays[number / 3 % 3]};
}

void set_context(const std::string& text) { context = text; }

std::string take_failure() { return std::exchange(machine().failure, {}); }

void set_shared_array(unsigned char* (*array)()) { shared_array = array; }
void allow_shared_bytes(size_t bytes) { machine().allowed_shared_bytes = bytes; }

cudaError_t run(const Grid& grid, const std::function<void()>& kernel) { return machine().run(grid, kernel); }

void Machine::note_failure(const std::string& text) {
  if (!failure.empty()) return;
  failure = text;
  if (current != nullptr) failure += "\n      by " + place_of(*current);
}

std::string Machine::place_of(const Thread& thread) const {
  std::string text = format("block %u thread %d (warp %d lane %d)", thread.block->index, thread.index,
                            thread.index / kLanes, thread.lane());
  return text;
}

uint64_t Machine::random() {  // splitmix64
  uint64_t z = state_ += 0x9e3779b97f4a7c15;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return z ^ z >> 31;
}

unsigned char* Machine::memory_of(Block& block) {
  return &block == active ? shared_array() : block.memory.data();
}

Block& Machine::block_of_rank(int rank) {
  if (rank < 0 || rank >= grid.cluster) fail("block %d of a cluster of %d", rank, grid.cluster);
  Block& block = *blocks[static_cast<size_t>(rank)];
  if (block.alive == 0) fail("access to the shared memory of block %d of the cluster, which has ended", rank);
  return block;
}

void Machine::activate(Block& block) {
  if (active == &block) return;
  if (grid.shared_bytes > 0) {
    if (active != nullptr) std::memcpy(active->memory.data(), shared_array(), grid.shared_bytes);
    std::memcpy(shared_array(), block.memory.data(), grid.shared_bytes);
  }
  active = &block;
}

void Machine::start_cluster(unsigned first_block) {
  // Fewer registers are not given than threads of this many may have.
  const int registers = std::min(65536 / (grid.threads * options.resident_blocks) / 8 * 8, 248);
  blocks.clear();
  copies.clear();
  active = nullptr;
  cluster_arrived = 0;
  alive = 0;
  elected = below(kLanes);
  size_t stack = 0;
  for (int rank = 0; rank < grid.cluster; ++rank) {
    blocks.push_back(std::make_unique<Block>());
    Block& block = *blocks.back();
    block.rank = rank;
    block.index = first_block + static_cast<unsigned>(rank);
    block.memory.resize(grid.shared_bytes);
    for (size_t i = 0; i + 4 <= block.memory.size(); i += 4) std::memcpy(&block.memory[i], &kPoison, 4);
    block.stamps.resize(grid.shared_bytes / 4 + 1);
    block.threads.resize(static_cast<size_t>(grid.threads));
    block.warps.resize(static_cast<size_t>(grid.threads / kLanes));
    block.groups.resize(static_cast<size_t>((grid.threads + kGroupThreads - 1) / kGroupThreads));
    for (Warp& warp : block.warps) warp.priority = random();
    for (int i = 0; i < grid.threads; ++i) {
      Thread& thread = block.threads[static_cast<size_t>(i)];
      thread.block = &block;
      thread.index = i;
      thread.registers = registers;
      unsigned char* const base = stack_of(stack++);
      std::memcpy(base, &kStackEnd, sizeof(kStackEnd));
      // As emulator_switch leaves it, with the entry to return to; a call has 8 bytes beyond a multiple of
      // 16.
      void** top = reinterpret_cast<void**>(base + kStackBytes - 16);
      *--top = nullptr;
      *--top = reinterpret_cast<void*>(&fiber_entry);
      for (int j = 0; j < 6; ++j) *--top = nullptr;
      thread.stack_pointer = top;
    }
    block.alive = grid.threads;
    alive += grid.threads;
  }
}

void Machine::end_cluster() {
  // Stores have been waited for, or no thread could have ended.
  for (const Copy& copy : copies)
    if (copy.thread < 0)
      fail("a copy to block %u, started at %s, was under way when the block ended", copy.block->index,
           text_of(copy.where).c_str());
  for (const auto& block : blocks) {
    for (const auto& [address, barrier] : block->barriers) {
      if (barrier.bytes != 0)
        fail("the barrier at %#x of block %u waits for %lld bytes when the block ends", address, block->index,
             static_cast<long long>(barrier.bytes));
    }
  }
  if (grid.shared_bytes == 0) return;
  for (size_t i = grid.shared_bytes; i < kSharedBytes; ++i)
    if (shared_array()[i] != 0xa5)
      fail("byte %zu of shared memory was written, but there are %zu", i, grid.shared_bytes);
}

cudaError_t Machine::run(const Grid& of, const std::function<void()>& kernel) {
  catch_crashes();
  grid = of;
  state_ = options.seed;
  constexpr int kChances[] = {2, 8, 64};
  copy_chance_ = kChances[below(3)];
  product_chance_ = kChances[below(3)];
  kernel_of_launch = &kernel;
  gridDim = {static_cast<unsigned>(grid.blocks), 1, 1};
  blockDim = {static_cast<unsigned>(grid.threads), 1, 1};
  try {
    if (grid.shared_bytes > allowed_shared_bytes || grid.shared_bytes > kSharedBytes)
      fail("a launch with %zu bytes of shared memory, %zu are allowed", grid.shared_bytes,
           allowed_shared_bytes);
    if (grid.blocks <= 0 || grid.threads <= 0 || grid.threads > 1024 || grid.threads % kLanes != 0 ||
        grid.cluster < 1 || grid.cluster > kMostCluster || grid.blocks % grid.cluster != 0)
      fail("a launch of %lld blocks of %d threads in clusters of %d", static_cast<long long>(grid.blocks),
           grid.threads, grid.cluster);
    if (grid.shared_bytes > 0) std::memset(shared_array(), 0xa5, kSharedBytes);
    for (int64_t block = 0; block < grid.blocks; block += grid.cluster) {
      start_cluster(static_cast<unsigned>(block));
      schedule();
      end_cluster();
    }
  } catch (const Failure&) {
    current = nullptr;
    return cudaErrorLaunchFailure;
  }
  return cudaSuccess;
}

void Machine::schedule() {
  while (alive > 0) {
    if (!copies.empty() && options.copies == Delay::kRandom && below(copy_chance_) == 0)
      perform_copy(random() % copies.size());
    if (options.products == Delay::kRandom && below(product_chance_) == 0) {
      Block& block = *blocks[random() % blocks.size()];
      const int group = below(static_cast<int>(block.groups.size()));
      if (product_is_ready(block, block.groups[static_cast<size_t>(group)])) perform_product(block, group);
    }
    if (!run_some_warp() && !happen_by_itself()) fail("%s", deadlock().c_str());
    if (!failure.empty()) throw Failure{};
  }
}

// The warp of the highest priority that can go on. Now and then priorities and the block change.
bool Machine::run_some_warp() {
  if (active == nullptr || below(32) == 0) activate(*blocks[random() % blocks.size()]);
  {
    Block& block = *active;
    if (below(8) == 0) block.warps[random() % block.warps.size()].priority = random();
  }
  const auto can_go_on = [](Thread& thread) {
    return !thread.ended && (thread.wait == nullptr || thread.wait->over());
  };
  const int first = active->rank;
  for (int i = 0; i < grid.cluster; ++i) {
    Block& block = *blocks[static_cast<size_t>((first + i) % grid.cluster)];
    if (block.alive == 0) continue;
    int best = -1;
    for (size_t w = 0; w < block.warps.size(); ++w) {
      if (best >= 0 && block.warps[w].priority < block.warps[static_cast<size_t>(best)].priority) continue;
      bool any = false;
      for (size_t lane = 0; lane < kLanes && !any; ++lane) any = can_go_on(block.threads[w * kLanes + lane]);
      if (any) best = static_cast<int>(w);
    }
    if (best < 0) continue;
    activate(block);
    const size_t start = random() % kLanes, step = below(2) == 0 ? 1 : kLanes - 1;
    for (size_t lane = 0; lane < kLanes; ++lane) {
      Thread& thread = block.threads[static_cast<size_t>(best) * kLanes + (start + lane * step) % kLanes];
      if (can_go_on(thread)) resume(thread);
      if (!failure.empty()) break;
    }
    return true;
  }
  return false;
}

// Where no thread can go on: a copy, or a product that is waited for.
bool Machine::happen_by_itself() {
  std::vector<std::pair<Block*, int>> products;
  for (const auto& block : blocks) {
    for (size_t i = 0; i < block->groups.size(); ++i) {
      if (product_is_ready(*block, block->groups[i])) products.emplace_back(block.get(), static_cast<int>(i));
    }
  }
  const size_t all = products.size() + copies.size();
  if (all == 0) return false;
  const size_t number = random() % all;
  if (number < copies.size()) {
    perform_copy(number);
  } else {
    perform_product(*products[number - copies.size()].first, products[number - copies.size()].second);
  }
  return true;
}

void Machine::resume(Thread& thread) {
  thread.wait = nullptr;
  current = &thread;
  threadIdx = {static_cast<unsigned>(thread.index), 0, 0};
  blockIdx = {thread.block->index, 0, 0};
  emulator_switch(&scheduler_stack, thread.stack_pointer);
  current = nullptr;
}

void Machine::wait_until(Wait& wait) {
  if (wait.over()) return;
  Thread& thread = *current;
  thread.wait = &wait;
  emulator_switch(&thread.stack_pointer, scheduler_stack);
}

void Machine::thread_ends() {
  Thread& thread = *current;
  for (const Copy& copy : copies)
    if (copy.block == thread.block && copy.thread == thread.index)
      fail("a thread ends, but its store started at %s has not been waited for", text_of(copy.where).c_str());
  if (!thread.in_flight.empty()) fail("a thread ends, but its products have not been waited for");
  if (!thread.copies.empty()) fail("a thread ends, but its copies have not been waited for");
  if (std::memcmp(stack_of(static_cast<size_t>(thread.block->rank * grid.threads + thread.index)), &kStackEnd,
                  sizeof(kStackEnd)) != 0)
    fail("the stack of a fiber is too small");
  thread.ended = true;
  --thread.block->alive;
  --alive;
  cluster_barrier_may_be_complete();
  emulator_switch(&thread.stack_pointer, scheduler_stack);
  std::abort();
}

// Threads of a warp that wait for the same are told together.
std::string Machine::deadlock() const {
  std::string text = "no thread can go on:";
  for (const auto& block : blocks) {
    for (size_t warp = 0; warp < block->warps.size(); ++warp) {
      std::map<std::string, int> waits;
      for (size_t lane = 0; lane < kLanes; ++lane) {
        const Thread& thread = block->threads[warp * kLanes + lane];
        if (!thread.ended) ++waits[thread.wait->what() + " at " + text_of(thread.wait->where)];
      }
      for (const auto& [wait, count] : waits)
        text += format("\n      block %u warp %zu: %d lanes wait for %s", block->index, warp, count,
                       wait.c_str());
    }
  }
  return text;
}

}  // namespace emulator
