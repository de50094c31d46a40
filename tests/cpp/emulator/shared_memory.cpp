// Shared memory by its addresses, and the barriers in it and beside it.
#include "machine.h"

namespace emulator {
namespace {

constexpr uint64_t kBarrierBits = 0xba441e40ba441e40;  // where a barrier lies
constexpr int64_t kMostBytes = (1 << 20) - 1;          // that a barrier counts

// Static shared memory, of which blocks have no copies of their own: only clusters of one block run at a
// time that use it.
const unsigned char* static_begin;

unsigned char* array() { return machine().memory_of(*machine().current->block); }

struct BarrierWait final : Wait {
  Block& block;
  unsigned address;
  int parity;

  BarrierWait(Block& of, unsigned at, int phase, Where from)
      : Wait(from), block(of), address(at), parity(phase) {}
  const Barrier& barrier() const { return block.barriers.at(address); }
  bool over() override { return (barrier().phase & 1) != parity; }
  std::string what() const override {
    return format(
        "parity %d of the barrier at %#x (%lld phases complete, %d of %d arrivals and %lld bytes missing)",
        parity, address, static_cast<long long>(barrier().phase), barrier().pending, barrier().count,
        static_cast<long long>(barrier().bytes));
  }
};

struct NamedWait final : Wait {
  const NamedBarrier& barrier;
  int number;
  int64_t generation;

  NamedWait(const NamedBarrier& of, int at, Where from)
      : Wait(from), barrier(of), number(at), generation(of.generation) {}
  bool over() override { return barrier.generation != generation; }
  std::string what() const override {
    return format("barrier %d (%d of %d threads)", number, barrier.arrived, barrier.threads);
  }
};

struct ExchangeWait final : Wait {
  const Warp& warp;
  int64_t generation;

  ExchangeWait(const Warp& of, Where from) : Wait(from), warp(of), generation(of.generation) {}
  bool over() override { return warp.generation != generation; }
  std::string what() const override { return format("%s (%d lanes)", warp.what, warp.arrived); }
};

struct ClusterWait final : Wait {
  int64_t generation = machine().cluster_generation;

  explicit ClusterWait(Where from) : Wait(from) {}
  bool over() override { return machine().cluster_generation != generation; }
  std::string what() const override {
    return format("the cluster's barrier (%d of %d threads)", machine().cluster_arrived, machine().alive);
  }
};

struct RegisterWait final : Wait {
  const Block& block;
  int registers;

  RegisterWait(const Block& of, int count, Where from) : Wait(from), block(of), registers(count) {}
  bool over() override { return block.free_registers >= registers; }
  std::string what() const override {
    return format("%d registers, of which %d are free", registers, block.free_registers);
  }
};

void may_be_complete(Barrier& barrier) {
  if (barrier.pending > 0 || barrier.bytes != 0) return;
  ++barrier.phase;
  barrier.pending = barrier.count;
}

void set_bytes(Barrier& barrier, int64_t bytes) {
  barrier.bytes = bytes;
  if (bytes > kMostBytes || bytes < -kMostBytes)
    fail("a barrier counts %lld bytes", static_cast<long long>(bytes));
}

NamedBarrier& arrive_named(Block& block, int number, int threads) {
  if (number < 0 || number >= 16) fail("barrier %d of 16", number);
  NamedBarrier& barrier = block.named[number];
  if (threads % kLanes != 0) fail("barrier %d of %d threads, no whole warps", number, threads);
  if (barrier.arrived > 0 && barrier.threads != threads)
    fail("barrier %d of %d threads, others have called it with %d", number, threads, barrier.threads);
  barrier.threads = threads;
  return barrier;
}

void count_named(NamedBarrier& barrier) {
  if (++barrier.arrived < barrier.threads) return;
  barrier.arrived = 0;
  ++barrier.generation;
}

}  // namespace

unsigned char* shared_of(Block& block, unsigned address, unsigned bytes, const char* by) {
  if (address < kSharedBegin || address - kSharedBegin + bytes > machine().grid.shared_bytes)
    fail("%s: %u bytes at %#x of shared memory, of which there are %zu from %#x on", by, bytes, address,
         machine().grid.shared_bytes, kSharedBegin);
  return machine().memory_of(block) + (address - kSharedBegin);
}

unsigned char* shared_at(unsigned address, unsigned bytes, unsigned alignment, bool remote) {
  Machine& m = machine();
  if (address % alignment != 0)
    fail("%u bytes at %#x of shared memory, no multiple of %u", bytes, address, alignment);
  Block* block = m.current->block;
  if (address >= kBlockStep) {
    if (!remote) fail("an access to %#x, the address of another block's shared memory", address);
    block = &m.block_of_rank(static_cast<int>(address / kBlockStep) - 1);
    address %= kBlockStep;
  } else if (address >= kStaticBegin / 2) {
    return const_cast<unsigned char*>(static_begin) +
           (static_cast<int>(address) - static_cast<int>(kStaticBegin));
  }
  return shared_of(*block, address, bytes, "an access");
}

unsigned char* written_shared_at(unsigned address, unsigned bytes) {
  unsigned char* const at = shared_at(address, bytes, bytes);
  if (address < kStaticBegin / 2) {
    const Thread& thread = *machine().current;
    for (unsigned i = (address - kSharedBegin) / 4; i <= (address - kSharedBegin + bytes - 1) / 4; ++i)
      thread.block->stamps[i] = {static_cast<uint16_t>(thread.index + 1), thread.fences};
  }
  return at;
}

const unsigned char* loaded_shared_at(unsigned address, unsigned bytes) {
  Thread& thread = *machine().current;
  // Only copies that count at barriers are checked.
  if (!thread.block->barriers.empty()) thread.loads.emplace_back(address, bytes);
  return shared_at(address, bytes, bytes);
}

void check_loaded(const Block& block, unsigned address, unsigned bytes, const char* by) {
  for (const Thread& thread : block.threads) {
    for (const auto& [begin, size] : thread.loads) {
      if (begin < address + bytes && address < begin + size)
        fail("%s to %#x of shared memory, which thread %d has loaded: that may be on its way", by, begin,
             thread.index);
    }
  }
}

void check_fenced(Block& block, unsigned address, unsigned bytes, const char* by) {
  for (unsigned i = (address - kSharedBegin) / 4; i <= (address - kSharedBegin + bytes - 1) / 4; ++i) {
    const Stamp stamp = block.stamps[i];
    if (stamp.thread_plus_1 != 0 && block.threads[stamp.thread_plus_1 - 1u].fences == stamp.fences)
      fail("%s reads %#x, which thread %d has written without a fence after it", by, kSharedBegin + 4 * i,
           stamp.thread_plus_1 - 1);
  }
}

void clear_stamps(Block& block, unsigned address, unsigned bytes) {
  std::memset(static_cast<void*>(&block.stamps[(address - kSharedBegin) / 4]), 0, bytes / 4 * sizeof(Stamp));
}

void fence_for_copies() { ++machine().current->fences; }

unsigned address_of(const void* shared) {
  const auto* const at = static_cast<const unsigned char*>(shared);
  if (machine().grid.shared_bytes > 0) return kSharedBegin + static_cast<unsigned>(at - array());
  if (static_begin == nullptr) static_begin = at - reinterpret_cast<uintptr_t>(at) % 1024;
  return kStaticBegin + static_cast<unsigned>(at - static_begin);
}

void* pointer_to(size_t address) {
  return address >= kStaticBegin / 2 ? shared_at(static_cast<unsigned>(address), 1, 1)
                                     : array() + (address - kSharedBegin);
}

unsigned address_in_block(unsigned address, int rank) {
  if (address >= kStaticBegin / 2) fail("address %#x is none of this block's dynamic shared memory", address);
  machine().block_of_rank(rank);
  return address + static_cast<unsigned>(rank + 1) * kBlockStep;
}

// ---- barriers in shared memory

Barrier& barrier_of(Block& block, unsigned address, const char* by) {
  const auto found = block.barriers.find(address);
  if (found == block.barriers.end())
    fail("%s: no barrier has been initialised at %#x of block %u", by, address, block.index);
  if (std::memcmp(shared_of(block, address, 8, by), &kBarrierBits, 8) != 0)
    fail("%s: the barrier at %#x of block %u has been overwritten", by, address, block.index);
  return found->second;
}

void init_barrier(unsigned address, int count, Where) {
  Thread& thread = *machine().current;
  if (address % 8 != 0) fail("a barrier at %#x, no multiple of 8", address);
  if (count < 1) fail("a barrier of %d arrivals", count);
  std::memcpy(shared_of(*thread.block, address, 8, "init_barrier"), &kBarrierBits, 8);
  if (!thread.block->barriers.emplace(address, Barrier{count, count, thread.index}).second)
    fail("the barrier at %#x is initialised once more", address);
}

void fence_barriers() {
  const Thread& thread = *machine().current;
  for (auto& [address, barrier] : thread.block->barriers)
    if (barrier.thread == thread.index) barrier.fenced = true;
}

void arrive(unsigned address, int rank, unsigned expected_bytes, Where) {
  Machine& m = machine();
  Block& block = rank < 0 ? *m.current->block : m.block_of_rank(rank);
  Barrier& barrier = barrier_of(block, address, "arrive");
  if (&block != m.current->block && !barrier.fenced) fail("the barrier at %#x has not been fenced", address);
  set_bytes(barrier, barrier.bytes + expected_bytes);
  if (--barrier.pending < 0) fail("more than %d arrivals at the barrier at %#x", barrier.count, address);
  may_be_complete(barrier);
}

void complete_bytes(Block& block, unsigned address, int64_t bytes) {
  Barrier& barrier = barrier_of(block, address, "a copy");
  set_bytes(barrier, barrier.bytes - bytes);
  may_be_complete(barrier);
}

void wait(unsigned address, int parity, Where where) {
  Block& block = *machine().current->block;
  barrier_of(block, address, "wait");
  BarrierWait wait(block, address, parity, where);
  machine().wait_until(wait);
}

// ---- barriers of threads

void sync_named(int number, int threads, Where where) {
  NamedBarrier& barrier = arrive_named(*machine().current->block, number, threads);
  NamedWait wait(barrier, number, where);
  count_named(barrier);
  machine().wait_until(wait);
}

void arrive_at_named(int number, int threads, Where) {
  count_named(arrive_named(*machine().current->block, number, threads));
}

void sync_block(Where where) { sync_named(0, machine().grid.threads, where); }

const uint4* exchange(const uint4& own, const char* what, Where where) {
  const Thread& thread = *machine().current;
  Warp& warp = thread.block->warps[static_cast<size_t>(thread.index / kLanes)];
  if (warp.arrived > 0 && std::strcmp(warp.what, what) != 0)
    fail("lanes of a warp are at %s, others at %s", what, warp.what);
  warp.what = what;
  uint4* const values = warp.values[warp.generation % 2];
  values[thread.lane()] = own;
  ExchangeWait wait(warp, where);
  if (++warp.arrived == kLanes) {
    warp.arrived = 0;
    ++warp.generation;
  }
  machine().wait_until(wait);
  return values;
}

void sync_warp(Where where) { exchange({}, "__syncwarp", where); }

int elect(Where where) {
  exchange({}, "elect", where);
  return machine().elected;
}

void Machine::cluster_barrier_may_be_complete() {
  if (cluster_arrived == 0 || cluster_arrived < alive) return;
  cluster_arrived = 0;
  ++cluster_generation;
}

void sync_cluster(Where where) {
  ClusterWait wait(where);
  ++machine().cluster_arrived;
  machine().cluster_barrier_may_be_complete();
  machine().wait_until(wait);
}

// ---- registers

void release_registers(int registers, Where) {
  Thread& thread = *machine().current;
  if (registers % 8 != 0 || registers < 24 || registers > thread.registers)
    fail("a thread of %d registers keeps %d", thread.registers, registers);
  thread.block->free_registers += thread.registers - registers;
  thread.registers = registers;
}

void claim_registers(int registers, Where where) {
  Thread& thread = *machine().current;
  if (registers % 8 != 0 || registers > 256 || registers < thread.registers)
    fail("a thread of %d registers claims %d", thread.registers, registers);
  RegisterWait wait(*thread.block, registers - thread.registers, where);
  machine().wait_until(wait);
  thread.block->free_registers -= registers - thread.registers;
  thread.registers = registers;
}

}  // namespace emulator
