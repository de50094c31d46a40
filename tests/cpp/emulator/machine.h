// What the emulated machine consists of, for the files of the emulator.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "emulator.h"

namespace emulator {

inline constexpr int kLanes = 32, kGroupThreads = 128;
// A signalling NaN, which is no more the same once it has been computed with.
inline constexpr unsigned kPoison = 0x7fa0dead;

struct Block;

// What a thread waits for.
struct Wait {
  Where where;

  virtual bool over() = 0;
  virtual std::string what() const = 0;

 protected:
  explicit Wait(Where at) : where(at) {}
  ~Wait() = default;
};

inline constexpr int kNotCommitted = -1;

// A copy from shared to global memory, or to it.
struct Copy {
  Block* block;  // whose shared memory it is
  convt::TensorBox box;
  convt::BoxPlace place;
  unsigned shared, barrier;
  int thread;  // that waits for a store; -1 of a load
  int group;   // of its stores; kNotCommitted before
  Where where;
};

struct AsyncCopy {
  void* destination;
  const void* source;
  int bytes, read, group;
};

// Registers whose values products are still to change, by the number that all threads of the warpgroup give
// them.
struct InFlight {
  float* sums;
  int columns, number;
  int64_t last_product;
};

struct Thread {
  Block* block = nullptr;
  int index = 0;
  void* stack_pointer = nullptr;
  Wait* wait = nullptr;
  bool ended = false;
  int registers = 0;
  uint16_t fences = 0;                               // of shared memory
  std::vector<std::pair<unsigned, unsigned>> loads;  // since products were committed: addresses and bytes
  // Products.
  int64_t products = 0, wanted = 0;
  std::vector<int64_t> groups;  // committed: the products up to each
  std::vector<InFlight> in_flight;
  int accumulators = 0;
  bool fenced = false;
  // Copies by threads.
  std::vector<AsyncCopy> copies;
  int copy_groups = 0;
  std::vector<int> stores;  // of shared memory: of each group committed, those still to be performed

  int lane() const { return index % kLanes; }
};

struct Warp {
  uint4 values[2][kLanes];
  const char* what = nullptr;
  int arrived = 0;
  int64_t generation = 0;
  uint64_t priority = 0;
};

struct IssuedProduct {
  Product product;
  int accumulators = 0, arrived = 0;
  float a[64][8];  // of operands in registers
  const unsigned* a_from[kGroupThreads];
  Where where;
};

struct Warpgroup {
  std::deque<std::shared_ptr<IssuedProduct>> queue;
  int64_t done = 0;
  struct Sums {
    std::vector<float> of;  // [64][columns]
    int retired = 0;
  };
  std::map<int, Sums> sums;
};

struct Barrier {
  int count, pending, thread;  // that has initialised it
  int64_t bytes = 0, phase = 0;
  bool fenced = false;
};

struct NamedBarrier {
  int threads = 0, arrived = 0;
  int64_t generation = 0;
};

// Who wrote a word of shared memory last by an ordinary store, and how many fences came before.
struct Stamp {
  uint16_t thread_plus_1 = 0, fences = 0;
};

struct Block {
  int rank = 0;
  unsigned index = 0;
  std::vector<unsigned char> memory;  // while another block runs
  std::vector<Stamp> stamps;
  std::map<unsigned, Barrier> barriers;
  NamedBarrier named[16];
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<Warpgroup> groups;
  int alive = 0, free_registers = 0;
};

struct Failure {};

class Machine {
 public:
  Grid grid;
  Options options;
  std::vector<std::unique_ptr<Block>> blocks;  // of the cluster that runs
  Block* active = nullptr;                     // whose memory lies in the array
  Thread* current = nullptr;
  std::deque<Copy> copies;
  int cluster_arrived = 0, alive = 0;
  int64_t cluster_generation = 0;
  int elected = 0;
  size_t allowed_shared_bytes = 48 * 1024;
  std::string failure;

  uint64_t random();
  int below(int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); }

  cudaError_t run(const Grid& grid, const std::function<void()>& kernel);
  void wait_until(Wait& wait);
  void thread_ends();
  unsigned char* memory_of(Block& block);
  Block& block_of_rank(int rank);  // that another one accesses
  void note_failure(const std::string& text);
  std::string place_of(const Thread& thread) const;

  // Things that happen by themselves.
  void perform_copy(size_t number);
  bool product_is_ready(const Block& block, const Warpgroup& group) const;
  void perform_product(Block& block, int group);

  void cluster_barrier_may_be_complete();

 private:
  uint64_t state_ = 0;
  int copy_chance_ = 4, product_chance_ = 4;

  void start_cluster(unsigned first_block);
  void end_cluster();
  void schedule();
  void activate(Block& block);
  bool run_some_warp();
  bool happen_by_itself();
  void resume(Thread& thread);
  std::string deadlock() const;
};

Machine& machine();

// The address of the first byte of a block's dynamic shared memory: what lies before it is the runtime's.
inline constexpr unsigned kSharedBegin = 1024, kStaticBegin = 1u << 23, kBlockStep = 1u << 24;

// Bytes of a block's dynamic shared memory, which the launch has.
unsigned char* shared_of(Block& block, unsigned address, unsigned bytes, const char* by);
// Fails if loads of these bytes may be on their way.
void check_loaded(const Block& block, unsigned address, unsigned bytes, const char* by);
// Fails if they hold what a thread has written, but not fenced.
void check_fenced(Block& block, unsigned address, unsigned bytes, const char* by);
void clear_stamps(Block& block, unsigned address, unsigned bytes);
Barrier& barrier_of(Block& block, unsigned address, const char* by);
void complete_bytes(Block& block, unsigned address, int64_t bytes);
void check_global(const void* begin, size_t bytes, const char* by);
std::string text_of(Where where);
std::string format(const char* text, ...) __attribute__((format(printf, 1, 2)));

// The lines of 128 bytes whose 16-byte pieces are swapped.
inline unsigned swizzled(unsigned address) { return address ^ (address >> 7 & 7) << 4; }

}  // namespace emulator
