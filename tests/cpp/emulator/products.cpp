// Products of warpgroups. Sums leave the registers when the first product of a row of them is started, and
// come back when the last one has been waited for; between, the registers hold NaN.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "convt/device/wgmma_operands.cuh"
#include "machine.h"

namespace emulator {
namespace {

constexpr int kRows = 64, kMostDepth = 16, kMostColumns = 256;

struct Operands {
  float a[kRows][kMostDepth];
  float b[kMostDepth][kMostColumns];
};

float widen(Operand type, const unsigned char* from) {
  if (type == Operand::kTf32) {
    unsigned bits;
    std::memcpy(&bits, from, 4);
    return __uint_as_float(bits & 0xffffe000);
  }
  unsigned short bits;
  std::memcpy(&bits, from, 2);
  if (type == Operand::kBFloat16) return __uint_as_float(static_cast<unsigned>(bits) << 16);
  return __half2float(__half(__half_raw{bits}));
}

// Calls `visit(line, depth, value)` with the elements of an operand in shared memory: `lines` rows or
// columns.
template <typename Visit>
void read_operand(Block& block, const Product& product, unsigned descriptor, bool turned, int lines,
                  const Visit& visit) {
  const unsigned size = product.type == Operand::kTf32 ? 4 : 2, elements = 16 / size;
  const unsigned start = (descriptor & 0x3fff) * 16, pitch = (descriptor >> 16) * 16;
  const auto piece = [&](unsigned address, const auto& element) {
    const unsigned at = swizzled(address);
    const unsigned char* const from = shared_of(block, at, 16, "a product");
    check_fenced(block, at, 16, "a product");
    for (unsigned i = 0; i < elements; ++i)
      element(static_cast<int>(i), widen(product.type, from + i * size));
  };
  if (!turned) {
    if (start % 1024 + 32 > 128) fail("a product of lines that begin at %#x: no eight of them", start);
    for (int line = 0; line < lines; ++line) {
      for (unsigned i = 0; i < 2; ++i) {
        piece(start + static_cast<unsigned>(line / 8) * 1024 + static_cast<unsigned>(line % 8) * 128 + 16 * i,
              [&](int j, float x) { visit(line, static_cast<int>(i * elements) + j, x); });
      }
    }
    return;
  }
  if (start % 1024 != 0) fail("a product of lines that begin at %#x: no eight of them", start);
  for (int depth = 0; depth < static_cast<int>(2 * elements); ++depth) {
    for (int line = 0; line < lines; line += static_cast<int>(elements)) {
      piece(start + static_cast<unsigned>(line / 64) * pitch + static_cast<unsigned>(depth / 8) * 1024 +
                static_cast<unsigned>(depth % 8) * 128 + static_cast<unsigned>(line % 64) * size,
            [&](int j, float x) { visit(line + j, depth, x); });
    }
  }
}

__attribute__((optimize("O3"), target_clones("avx2", "default"))) void multiply(const Operands& x, int depth,
                                                                                int columns, float* sums) {
  for (int row = 0; row < kRows; ++row, sums += columns) {
    for (int k = 0; k < depth; ++k) {
      const float a = x.a[row][k];
      const float* const b = x.b[k];
      for (int column = 0; column < columns; ++column) sums[column] += a * b[column];
    }
  }
}

// Calls `visit(register, row, column)` with a thread's sums.
template <typename Visit>
void for_each_sum(const Thread& thread, int columns, const Visit& visit) {
  const int row = thread.index % kGroupThreads / kLanes * 16 + thread.lane() / 4;
  for (int i = 0; i < columns / 2; ++i)
    visit(i, row + i % 4 / 2 * 8, i / 4 * 8 + thread.lane() % 4 * 2 + i % 2);
}

Warpgroup& group_of(const Thread& thread) {
  return thread.block->groups[static_cast<size_t>(thread.index / kGroupThreads)];
}

struct ProductWait final : Wait {
  const Warpgroup& group;
  int64_t products;

  ProductWait(const Warpgroup& of, int64_t count, Where from) : Wait(from), group(of), products(count) {}
  bool over() override { return group.done >= products; }
  std::string what() const override {
    std::string text = format("product %lld, of which %lld are done", static_cast<long long>(products),
                              static_cast<long long>(group.done));
    if (!group.queue.empty())
      text += format(" and the next one was started by %d threads", group.queue.front()->arrived);
    return text;
  }
};

// The number of registers among those in flight.
InFlight& in_flight(Thread& thread, const Product& product, float* sums) {
  const int count = product.columns / 2;
  for (InFlight& known : thread.in_flight) {
    if (known.sums == sums && known.columns == product.columns) return known;
    if (sums < known.sums + known.columns / 2 && known.sums < sums + count)
      fail("a product of %d columns takes part of the sums of one of %d that is under way", product.columns,
           known.columns);
  }
  if (!thread.fenced) fail("a product takes registers that were not fenced");
  thread.in_flight.push_back({sums, product.columns, thread.accumulators++, 0});
  auto& of = group_of(thread).sums[thread.in_flight.back().number];
  of.of.resize(static_cast<size_t>(kRows * product.columns));
  for_each_sum(thread, product.columns, [&](int i, int row, int column) {
    if (product.adds) of.of[static_cast<size_t>(row * product.columns + column)] = sums[i];
    std::memcpy(&sums[i], &kPoison, 4);
  });
  return thread.in_flight.back();
}

}  // namespace

void start_product(const Product& product, float* sums, const unsigned* a, Where where) {
  Thread& thread = *machine().current;
  Warpgroup& group = group_of(thread);
  if (a != nullptr && !thread.fenced) fail("a product reads registers that were not fenced");
  const int64_t number = thread.products++;
  if (number == group.done + static_cast<int64_t>(group.queue.size())) {
    group.queue.push_back(std::make_shared<IssuedProduct>());
    group.queue.back()->product = product;
    group.queue.back()->where = where;
    group.queue.back()->accumulators = -1;
  }
  IssuedProduct& issued = *group.queue[static_cast<size_t>(number - group.done)];
  if (!(issued.product == product))
    fail("threads of a warpgroup start different products at %s and %s", text_of(issued.where).c_str(),
         text_of(where).c_str());
  InFlight& registers = in_flight(thread, product, sums);
  registers.last_product = number;
  if (issued.accumulators >= 0 && issued.accumulators != registers.number)
    fail("threads of a warpgroup start a product of different sums at %s", text_of(where).c_str());
  issued.accumulators = registers.number;
  const int own = thread.index % kGroupThreads;
  issued.a_from[own] = a;
  if (a != nullptr) {
    for (int i = 0; i < 4; ++i)
      issued.a[own / kLanes * 16 + thread.lane() / 4 + i % 2 * 8][thread.lane() % 4 + i / 2 * 4] =
          __uint_as_float(a[i]);
  }
  if (++issued.arrived == kGroupThreads && machine().options.products == Delay::kNone)
    machine().perform_product(*thread.block, thread.index / kGroupThreads);
}

void fence_products() { machine().current->fenced = true; }

void commit_products() {
  Thread& thread = *machine().current;
  thread.groups.push_back(thread.products);
  // Products that are started have what they take from registers.
  thread.loads.clear();
}

void wait_for_products(int pending, Where where) {
  Thread& thread = *machine().current;
  Warpgroup& group = group_of(thread);
  const size_t keeps = static_cast<size_t>(pending);
  if (thread.groups.size() <= keeps) return;
  const int64_t products = thread.groups[thread.groups.size() - 1 - keeps];
  thread.groups.erase(thread.groups.begin(), thread.groups.end() - static_cast<std::ptrdiff_t>(keeps));
  thread.wanted = products;
  ProductWait wait(group, products, where);
  machine().wait_until(wait);
  thread.fenced = false;
  for (size_t i = 0; i < thread.in_flight.size();) {
    const InFlight known = thread.in_flight[i];
    if (known.last_product >= products) {
      ++i;
      continue;
    }
    auto& of = group.sums.at(known.number);
    for_each_sum(thread, known.columns, [&](int j, int row, int column) {
      if (std::memcmp(&known.sums[j], &kPoison, 4) != 0)
        fail("sums were written while products of them were under way, before %s", text_of(where).c_str());
      known.sums[j] = of.of[static_cast<size_t>(row * known.columns + column)];
    });
    if (++of.retired == kGroupThreads) group.sums.erase(known.number);
    thread.in_flight.erase(thread.in_flight.begin() + static_cast<std::ptrdiff_t>(i));
  }
}

// Where products are put off as long as may be: that a thread waits for it, too.
bool Machine::product_is_ready(const Block& block, const Warpgroup& group) const {
  if (group.queue.empty() || group.queue.front()->arrived < kGroupThreads) return false;
  if (options.products != Delay::kLongest) return true;
  const auto first = block.threads.begin() + (&group - block.groups.data()) * kGroupThreads;
  return std::any_of(first, first + kGroupThreads,
                     [&](const Thread& thread) { return thread.wanted > group.done; });
}

void Machine::perform_product(Block& block, int number) {
  Warpgroup& group = block.groups[static_cast<size_t>(number)];
  const std::shared_ptr<IssuedProduct> issued = std::move(group.queue.front());
  group.queue.pop_front();
  ++group.done;
  const Product& product = issued->product;
  static Operands x;
  const int depth = product.type == Operand::kTf32 ? 8 : 16;
  if (product.a_in_registers) {
    for (int i = 0; i < kGroupThreads; ++i) {
      for (int j = 0; j < 4; ++j) {
        const int row = i / kLanes * 16 + i % kLanes / 4 + j % 2 * 8, channel = i % 4 + j / 2 * 4;
        const unsigned bits = __float_as_uint(issued->a[row][channel]);
        if (issued->a_from[i][j] != bits)
          fail(
              "registers of thread %d that a product reads, started at %s, changed before it had been waited "
              "for",
              number * kGroupThreads + i, text_of(issued->where).c_str());
        x.a[row][channel] = __uint_as_float(bits & 0xffffe000);
      }
    }
  } else {
    read_operand(block, product, product.a, product.a_turned, kRows,
                 [](int row, int k, float value) { x.a[row][k] = value; });
  }
  read_operand(block, product, product.b, product.b_turned, product.columns,
               [](int column, int k, float value) { x.b[k][column] = value; });
  std::vector<float>& sums = group.sums.at(issued->accumulators).of;
  if (!product.adds) std::fill(sums.begin(), sums.end(), 0.0f);
  multiply(x, depth, product.columns, sums.data());
}

}  // namespace emulator
