// Runs device code of the library on the CPU: each CUDA thread is a fiber, and the blocks of a cluster take
// turns. The headers in convt/device beside this one stand in for those whose functions are instructions
// written in PTX, and call what is declared here.
//
// What hardware leaves open is drawn from a seed: which warp goes on, when a copy or a product that runs by
// itself reads and writes. Rules of the instructions are checked. The first mistake ends the launch, and is
// printed with the thread that made it.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <vector_functions.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <source_location>
#include <string>

#include "convt/device/tensor_box.cuh"

// Kernels have code for this capability alone. __CUDA_ARCH__ stays undefined: what depends on it are
// instructions that host code writes in another way.
#define __CUDA_ARCH_FEAT_SM90_ALL 1

#undef __device__
#define __device__
#undef __host__
#define __host__
#undef __global__
#define __global__
#undef __grid_constant__
#define __grid_constant__
#undef __launch_bounds__
#define __launch_bounds__(...)
// A declaration of either kind of shared memory, with `extern` or of static size: one OS thread runs all.
#undef __shared__
#define __shared__ thread_local

// The dynamic shared memory of kernels in NAMESPACE, that of the block that runs.
#define CONVT_EMULATED_SHARED(NAMESPACE)                                                  \
  namespace NAMESPACE {                                                                   \
  alignas(1024) constinit thread_local unsigned char shared[emulator::kSharedBytes] = {}; \
  }                                                                                       \
  static const bool emulated_shared_is_known = [] {                                       \
    emulator::set_shared_array([] { return &NAMESPACE::shared[0]; });                     \
    return true;                                                                          \
  }();

namespace emulator {

using Where = std::source_location;

inline constexpr size_t kSharedBytes = 227 * 1024;  // that a block may ask for

// ---- for tests

// How what runs by itself is put off.
enum class Delay { kRandom, kNone, kLongest };

struct Options {
  uint64_t seed = 0;
  Delay copies = Delay::kRandom, products = Delay::kRandom;
  // Of a multiprocessor, by the kernels' launch bounds: what registers are divided among.
  int resident_blocks = 1;
};

// Of the launches that follow.
void set_options(const Options& options);

// Options that a number stands for: the first nine have all combinations of delays.
Options options_of(uint64_t number);

// Global memory that tensor copies and bulk copies may read or write. `name` is for messages.
void add_memory(const void* begin, size_t bytes, const char* name);
void forget_memory();

// What runs, for the message of an access that ends the program.
void set_context(const std::string& text);

// What went wrong first since the last call, or an empty string.
std::string take_failure();

// ---- for launches

void set_shared_array(unsigned char* (*array)());
void allow_shared_bytes(size_t bytes);

struct Grid {
  int64_t blocks;
  int threads;
  size_t shared_bytes;
  int cluster;
};
cudaError_t run(const Grid& grid, const std::function<void()>& kernel);

// ---- for device code

[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Shared memory by its address, which may be another block's of the cluster where `remote`.
unsigned char* shared_at(unsigned address, unsigned bytes, unsigned alignment, bool remote = false);
// That this thread writes with ordinary stores, which copies and products do not see before a fence.
unsigned char* written_shared_at(unsigned address, unsigned bytes);
// The same of what this thread loads to registers. Until it commits products the load may be on its way: an
// arrival at a barrier does not wait for it.
const unsigned char* loaded_shared_at(unsigned address, unsigned bytes);
unsigned address_of(const void* shared);
void* pointer_to(size_t address);
unsigned address_in_block(unsigned address, int rank);
void fence_for_copies();  // and products

void sync_block(Where where);
void sync_warp(Where where);
void sync_cluster(Where where);
void sync_named(int number, int threads, Where where);
void arrive_at_named(int number, int threads, Where where);

// The number of a warp's lane that is chosen.
int elect(Where where);
// What every lane of the warp has passed, in place: until the lane's next exchange.
const uint4* exchange(const uint4& own, const char* what, Where where);

void init_barrier(unsigned barrier, int count, Where where);
void fence_barriers();
void arrive(unsigned barrier, int rank, unsigned expected_bytes, Where where);  // rank -1: this block's
void wait(unsigned barrier, int parity, Where where);

void claim_registers(int registers, Where where);
void release_registers(int registers, Where where);

void copy_async(void* destination, const void* source, int bytes, int read);
void commit_async();
void wait_for_async(int pending, Where where);

cudaError_t make_tensor_map(const convt::TensorBox& box, CUtensorMap* map);
void load_box(unsigned blocks, unsigned destination, const CUtensorMap& map, const convt::BoxPlace& place,
              unsigned barrier, Where where);  // blocks 0: this one
void store_box(const CUtensorMap& map, const convt::BoxPlace& place, unsigned source, Where where);
void copy_bulk(void* destination, unsigned source, int bytes, Where where);
void commit_stores();                            // both kinds
void wait_for_stores(int pending, Where where);  // groups

enum class Operand { kTf32, kHalf, kBFloat16 };

struct Product {
  Operand type;
  int columns;
  unsigned a, b;  // descriptors' lower words; their upper ones are those of swizzled lines
  bool a_turned, b_turned, a_in_registers, adds;

  bool operator==(const Product&) const = default;
};
void start_product(const Product& product, float* sums, const unsigned* a, Where where);
void fence_products();
void commit_products();
void wait_for_products(int pending, Where where);

}  // namespace emulator

// ---- what CUDA declares without a header

struct EmulatedIndex {
  unsigned x, y, z;
};
extern EmulatedIndex threadIdx, blockIdx, blockDim, gridDim;

inline void __syncthreads(emulator::Where where = emulator::Where::current()) { emulator::sync_block(where); }
inline void __syncwarp(unsigned = ~0u, emulator::Where where = emulator::Where::current()) {
  emulator::sync_warp(where);
}
inline unsigned __shfl_xor_sync(unsigned, unsigned x, int mask,
                                emulator::Where where = emulator::Where::current()) {
  return emulator::exchange({x, 0, 0, 0}, "__shfl_xor_sync", where)[(threadIdx.x % 32) ^ mask].x;
}
inline unsigned __ballot_sync(unsigned, bool x, emulator::Where where = emulator::Where::current()) {
  const uint4* const all = emulator::exchange({x, 0, 0, 0}, "__ballot_sync", where);
  unsigned bits = 0;
  for (int i = 0; i < 32; ++i) bits |= all[i].x << i;
  return bits;
}
inline bool __any_sync(unsigned mask, bool x, emulator::Where where = emulator::Where::current()) {
  return __ballot_sync(mask, x, where) != 0;
}
inline bool __all_sync(unsigned mask, bool x, emulator::Where where = emulator::Where::current()) {
  return __ballot_sync(mask, x, where) == ~0u;
}

inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}
inline float __shfl_sync(unsigned, float x, int lane, emulator::Where where = emulator::Where::current()) {
  return __uint_as_float(emulator::exchange({__float_as_uint(x), 0, 0, 0}, "__shfl_sync", where)[lane].x);
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = uint64_t{y} << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i)
    result |= static_cast<unsigned>(bytes >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
  return result;
}
inline size_t __cvta_generic_to_shared(const void* shared) { return emulator::address_of(shared); }
inline void* __cvta_shared_to_generic(size_t address) { return emulator::pointer_to(address); }

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
