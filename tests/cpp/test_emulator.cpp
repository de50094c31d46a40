// The emulator itself: products whose operands are in registers beside those in shared memory, and the
// mistakes that it finds.
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "convt/device/async_copy.cuh"
#include "convt/device/launch.cuh"
#include "convt/device/tensor_copy.cuh"
#include "convt/device/wgmma.cuh"
#include "emulator.h"

CONVT_EMULATED_SHARED(convt::emulator_test)

namespace convt {
namespace emulator_test {

constexpr unsigned kRows = 64, kDepth = 32, kLine = 128;

struct Params {
  const float *a, *b;  // [row][channel], [column][channel]
  float* c;            // [row][column]
  bool a_in_registers;
};

// Element `channel` of a line of 32, from a multiple of 1024 on.
unsigned element(unsigned lines, unsigned line, unsigned channel) {
  const unsigned at = lines + line * kLine + channel * 4;
  return at ^ (at >> 7 & 7) << 4;
}

template <int kColumns>
__global__ void __launch_bounds__(128, 1) product_kernel(const __grid_constant__ Params p) {
  extern __shared__ __align__(1024) unsigned char shared[];
  const unsigned a = shared_address(shared), b = a + kRows * kLine;
  for (unsigned i = threadIdx.x; i < kRows * kDepth; i += 128)
    store_shared(element(a, i / kDepth, i % kDepth), __float_as_uint(p.a[i]));
  for (unsigned i = threadIdx.x; i < kColumns * kDepth; i += 128)
    store_shared(element(b, i / kDepth, i % kDepth), __float_as_uint(p.b[i]));
  fence_for_wgmma();
  __syncthreads();
  const unsigned row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, member = threadIdx.x % 4;
  unsigned fragments[kDepth / 8][4];
  for (unsigned step = 0; step < kDepth / 8; ++step) {
    for (unsigned i = 0; i < 4; ++i)
      fragments[step][i] = load_word(element(a, row + i % 2 * 8, step * 8 + member + i / 2 * 4));
  }
  float c[kColumns / 8][4];
  const unsigned of_a = wgmma_swizzled_descriptor(a, 0), of_b = wgmma_swizzled_descriptor(b, 0);
  wgmma_fence();
  for (unsigned step = 0; step < kDepth / 8; ++step) {
    if (p.a_in_registers) {
      multiply_fragment<kColumns>(c, fragments[step], of_b + 2 * step, step > 0);
    } else {
      multiply_lines<float, kColumns, false>(c, of_a + 2 * step, of_b + 2 * step, step > 0);
    }
  }
  wgmma_commit();
  wgmma_wait<0>();
  for (unsigned j = 0; j < kColumns / 8; ++j) {
    for (unsigned i = 0; i < 4; ++i) p.c[(row + i / 2 * 8) * kColumns + 8 * j + 2 * member + i % 2] = c[j][i];
  }
}

}  // namespace emulator_test
}  // namespace convt

namespace {

using namespace convt;

template <int kColumns>
void test_products() {
  using emulator_test::kDepth;
  using emulator_test::kLine;
  using emulator_test::kRows;
  std::mt19937 random(1);
  const auto numbers = [&random](size_t count) {
    std::vector<float> all(count);
    for (float& x : all) x = static_cast<float>(random() % 15) - 7;
    return all;
  };
  const std::vector<float> a = numbers(kRows * kDepth), b = numbers(kColumns * kDepth);
  for (const bool a_in_registers : {false, true}) {
    for (uint64_t schedule = 0; schedule < 9; ++schedule) {
      std::vector<float> c(kRows * kColumns, -1);
      emulator::set_options(emulator::options_of(schedule));
      CHECK(allow_shared_memory(&emulator_test::product_kernel<kColumns>, emulator::kSharedBytes) ==
                cudaSuccess,
            "");
      const emulator_test::Params p = {a.data(), b.data(), c.data(), a_in_registers};
      const size_t bytes = (kRows + kColumns) * kLine;
      launch_early(emulator_test::product_kernel<kColumns>, 1, 128, bytes, nullptr, p);
      const std::string failure = emulator::take_failure();
      CHECK(failure.empty(), failure);
      for (unsigned row = 0; row < kRows; ++row) {
        for (unsigned column = 0; column < kColumns; ++column) {
          float sum = 0;
          for (unsigned k = 0; k < kDepth; ++k) sum += a[row * kDepth + k] * b[column * kDepth + k];
          CHECK(c[row * kColumns + column] == sum,
                "row " + std::to_string(row) + " column " + std::to_string(column) + " of " +
                    std::to_string(kColumns) + (a_in_registers ? ", registers" : ""));
        }
      }
    }
  }
}

constexpr unsigned kBegin = 1024;  // of shared memory

// Every thread copies two pieces of a line that others have written, of 16 and 32 bytes, each in a group, and
// writes the first `overwritten` words of both once more, having waited for all groups but `pending`.
constexpr unsigned kThreads = 128, kPieceWords = 12;

unsigned word_of_line(unsigned i) { return 0x3f800000 + i; }

// Whether the words arrive that were there when the copies were started. Global memory has others around it.
bool copies_line(uint64_t schedule, int pending, unsigned overwritten) {
  constexpr unsigned kWords = kThreads * kPieceWords, kAround = 4;
  alignas(16) static unsigned line[kWords + 2 * kAround];
  for (unsigned& word : line) word = 1;
  emulator::forget_memory();
  emulator::add_memory(line + kAround, kWords * 4, "line");
  emulator::set_options(emulator::options_of(schedule));
  const cudaError_t error = emulator::run({1, kThreads, kWords * 4, 1}, [&] {
    for (unsigned i = threadIdx.x; i < kWords; i += kThreads) store_shared(kBegin + 4 * i, word_of_line(i));
    fence_for_bulk_copies();
    __syncthreads();
    const unsigned first = threadIdx.x * kPieceWords;
    copy_bulk(line + kAround + first, kBegin + 4 * first, 16);
    commit_bulk_copies();
    copy_bulk(line + kAround + first + 4, kBegin + 4 * first + 16, 32);
    commit_bulk_copies();
    if (pending == 0) wait_for_bulk_reads();
    if (pending == 1) wait_for_bulk_reads_but<1>();
    for (unsigned i = first; i < first + overwritten; ++i) store_shared(kBegin + 4 * i, 2u);
    wait_for_bulk_reads();
  });
  const std::string failure = emulator::take_failure();
  CHECK(error == cudaSuccess && failure.empty(), failure);
  emulator::forget_memory();
  for (unsigned i = 0; i < kAround; ++i)
    CHECK(line[i] == 1 && line[kAround + kWords + i] == 1, "beside the line");
  for (unsigned i = 0; i < kWords; ++i)
    if (line[kAround + i] != word_of_line(i)) return false;
  return true;
}

void test_bulk_copies() {
  int none_waited_for = 0, first_waited_for = 0;
  for (uint64_t schedule = 0; schedule < 9; ++schedule) {
    CHECK(copies_line(schedule, 0, kPieceWords), "schedule " + std::to_string(schedule));
    CHECK(copies_line(schedule, 1, 4), "schedule " + std::to_string(schedule));
    none_waited_for += !copies_line(schedule, 2, kPieceWords);
    first_waited_for += !copies_line(schedule, 1, kPieceWords);
  }
  // Where copies are put off at all.
  CHECK(none_waited_for == 6, "words were overwritten in " + std::to_string(none_waited_for) + " schedules");
  CHECK(first_waited_for == 6,
        "words were overwritten in " + std::to_string(first_waited_for) + " schedules");
}

// Runs a kernel of some blocks of 128 threads, in one cluster, that makes a mistake, under several schedules.
// At least `times` of nine find it.
void test_mistake(const char* expected, int times, int blocks, const std::function<void()>& kernel) {
  int found = 0;
  std::string last;
  for (uint64_t schedule = 0; schedule < 9; ++schedule) {
    emulator::set_options(emulator::options_of(schedule));
    const cudaError_t error = emulator::run({blocks, 128, 64 * 1024, blocks}, kernel);
    const std::string failure = emulator::take_failure();
    CHECK((error == cudaSuccess) == failure.empty(), failure);
    if (failure.find(expected) != std::string::npos) ++found;
    if (!failure.empty()) last = failure;
  }
  CHECK(found >= times,
        std::string(expected) + " was found " + std::to_string(found) + " times, last: " + last);
}

void test_mistakes() {
  const auto first = [] { return threadIdx.x == 0; };
  test_mistake("no thread can go on", 9, 1, [&] {
    if (!first()) __syncthreads();
  });
  test_mistake("no thread can go on", 9, 1, [&] {
    if (first()) init_barrier(kBegin, 2);
    __syncthreads();
    if (first()) arrive(kBegin);
    wait(kBegin, 0);
  });
  test_mistake("more than 1 arrivals", 9, 1, [&] {
    if (first()) {
      init_barrier(kBegin, 1);
      // The phase is not complete without the bytes.
      arrive_and_expect(kBegin, 16);
      arrive(kBegin);
    }
  });
  test_mistake("no barrier has been initialised", 9, 1, [&] {
    if (first()) arrive(kBegin);
  });
  test_mistake("has been overwritten", 9, 1, [&] {
    if (!first()) return;
    init_barrier(kBegin, 1);
    store_shared(kBegin, 0u);
    arrive(kBegin);
  });
  test_mistake("bytes at 0x10400 of shared memory, of which there are 65536", 9, 1, [&] {
    if (first()) load_words(kBegin + 64 * 1024);
  });
  test_mistake("no multiple of 16", 9, 1, [&] {
    if (first()) load_words(kBegin + 8);
  });
  test_mistake("which has ended", 1, 2, [&] {
    if (first() && blockIdx.x == 0) address_at(kBegin, 1);
  });
  test_mistake("lanes of a warp are at", 9, 1, [&] {
    if (threadIdx.x % 32 == 0) {
      __syncwarp();
    } else {
      __ballot_sync(~0u, true);
    }
  });
  test_mistake("registers that were not fenced", 9, 1, [&] {
    float c[8][4];
    multiply_lines<float, 64, false>(c, wgmma_swizzled_descriptor(kBegin, 0),
                                     wgmma_swizzled_descriptor(kBegin, 0), 0);
  });
  const auto multiply = [](float (&c)[8][4]) {
    wgmma_fence();
    multiply_lines<float, 64, false>(c, wgmma_swizzled_descriptor(kBegin, 0),
                                     wgmma_swizzled_descriptor(kBegin, 0), 0);
    wgmma_commit();
  };
  test_mistake("products have not been waited for", 9, 1, [&] {
    float c[8][4];
    multiply(c);
  });
  test_mistake("sums were written while products", 9, 1, [&] {
    float c[8][4];
    multiply(c);
    c[1][2] = 0;
    wgmma_wait<0>();
  });
  test_mistake("without a fence after it", 9, 1, [&] {
    store_shared(kBegin + 4 * threadIdx.x, 0u);
    __syncthreads();
    float c[8][4];
    multiply(c);
    wgmma_wait<0>();
  });
  test_mistake("changed before it had been waited for", 6, 1, [&] {
    float c[8][4];
    unsigned a[4] = {};
    wgmma_fence();
    multiply_fragment<64>(c, a, wgmma_swizzled_descriptor(kBegin, 0), 0);
    wgmma_commit();
    asm volatile("" : "+r"(a[1])::"memory");
    a[1] += 1;
    asm volatile("" : "+r"(a[1])::"memory");
    wgmma_wait<0>();
  });
  // A thread says that it has read shared memory, and another one copies to it.
  static float tensor[4] = {};
  emulator::add_memory(tensor, sizeof(tensor), "tensor");
  CUtensorMap map;
  TensorBox box = {
      CU_TENSOR_MAP_DATA_TYPE_FLOAT32, tensor, {4, 1, 1, 1, 1}, {16, 16, 16, 16}, {4, 1, 1, 1, 1}, false};
  CHECK(make_tensor_map(box, &map) == cudaSuccess, "a tensor map");
  const auto overwrite = [&](bool multiplies) {
    const unsigned barrier = kBegin + 32 * 1024;
    if (first()) {
      init_barrier(barrier, 128);
      init_barrier(barrier + 8, 1);
      fence_barriers();
    }
    __syncthreads();
    unsigned a[4] = {load_word(kBegin + threadIdx.x % 4 * 4), 0, 0, 0};
    float c[8][4];
    if (multiplies) {
      wgmma_fence();
      multiply_fragment<64>(c, a, wgmma_swizzled_descriptor(kBegin + 1024, 0), 0);
      wgmma_commit();
    }
    arrive(barrier);
    if (first()) {
      wait(barrier, 0);
      arrive_and_expect(barrier + 8, 16);
      copy_box(kBegin, map, {0, 0, 0, 0, 0}, barrier + 8);
    }
    if (multiplies) wgmma_wait<0>();
    wait(barrier + 8, 0);
  };
  test_mistake("that may be on its way", 9, 1, [&] { overwrite(false); });
  emulator::set_options(emulator::options_of(0));
  CHECK(emulator::run({1, 128, 64 * 1024, 1}, [&] { overwrite(true); }) == cudaSuccess,
        "products take loads");
  CHECK(emulator::take_failure().empty(), "products take loads");
  emulator::forget_memory();
}

// The same of bulk copies.
void test_mistakes_of_bulk_copies() {
  constexpr unsigned kPieces = 16, kSize = 16;
  alignas(16) static unsigned char memory[(kPieces + 2) * kSize];
  static unsigned char* const output = memory + kSize;
  emulator::add_memory(output, kPieces * kSize, "output");
  const auto copy = [](const char* expected, void* destination, unsigned source, int bytes) {
    test_mistake(expected, 9, 1, [=] {
      if (threadIdx.x != 0) return;
      copy_bulk(destination, source, bytes);
      commit_bulk_copies();
      wait_for_bulk_reads();
    });
  };
  copy("a bulk copy of 0 bytes", output, kBegin, 0);
  copy("a bulk copy of -16 bytes", output, kBegin, -16);
  copy("a bulk copy of 24 bytes", output, kBegin, 24);
  copy("a bulk copy from 0x408 of shared memory, no multiple of 16", output, kBegin + 8, 16);
  copy("no multiple of 16", output + 8, kBegin, 16);
  copy("32 bytes at 0x103f0 of shared memory, of which there are 65536", output, kBegin + 64 * 1024 - 16, 32);
  copy("a bulk copy: 16 bytes at 0x3f0 of shared memory", output, kBegin - 16, 16);
  copy("a bulk copy of 32 bytes at", output + (kPieces - 1) * kSize, kBegin, 32);
  copy("which is no tensor's", memory, kBegin, 16);
  copy("which is no tensor's", nullptr, kBegin, 16);

  // A warp writes pieces, and another one copies them, whose own fences do not help.
  const auto copy_written = [](bool fences) {
    const unsigned warp = threadIdx.x / 32, piece = threadIdx.x % 32;
    if (warp == 0) {
      store_shared(kBegin + kSize * piece, 0u, 0u, 0u, 0u);
      if (fences) fence_for_bulk_copies();
    }
    __syncthreads();
    if (warp != 1 || piece >= kPieces) return;
    fence_for_bulk_copies();
    copy_bulk(output + kSize * piece, kBegin + kSize * piece, kSize);
    commit_bulk_copies();
    wait_for_bulk_reads();
  };
  test_mistake("without a fence after it", 9, 1, [&] { copy_written(false); });
  emulator::set_options(emulator::options_of(0));
  CHECK(emulator::run({1, 128, 64 * 1024, 1}, [&] { copy_written(true); }) == cudaSuccess, "fenced");
  CHECK(emulator::take_failure().empty(), "fenced");

  const auto unfinished = [](bool commits, bool waits) {
    copy_bulk(output + threadIdx.x % kPieces * kSize, kBegin, kSize);
    if (commits) commit_bulk_copies();
    if (waits) wait_for_bulk_reads();
  };
  // Those that are not committed are not waited for either. Some have been done by chance.
  test_mistake("store started at test_emulator.cpp", 6, 1, [&] { unfinished(false, true); });
  test_mistake("has not been waited for", 6, 1, [&] { unfinished(true, false); });
  emulator::forget_memory();
}

}  // namespace

int main() {
  test_products<64>();
  test_products<128>();
  test_bulk_copies();
  test_mistakes();
  test_mistakes_of_bulk_copies();
  return check::result();
}
