// Copies between global and shared memory.
#include <algorithm>

#include "convt/device/tf32_round.cuh"
#include "machine.h"

namespace emulator {
namespace {

using convt::BoxPlace;
using convt::kTensorRank;
using convt::TensorBox;

constexpr uint64_t kMapMark = 0x7e4504ba97e4504b;

struct EncodedMap {
  uint64_t mark;
  TensorBox box;
};
static_assert(sizeof(EncodedMap) <= sizeof(CUtensorMap));

struct Memory {
  const unsigned char *begin, *end;
  std::string name;
};
std::vector<Memory> memories;

unsigned size_of(CUtensorMapDataType type) {
  return type == CU_TENSOR_MAP_DATA_TYPE_FLOAT32 || type == CU_TENSOR_MAP_DATA_TYPE_TFLOAT32 ? 4 : 2;
}

unsigned bytes_of(const TensorBox& box) {
  unsigned bytes = size_of(box.type);
  for (const int side : box.box) bytes *= static_cast<unsigned>(side);
  return bytes;
}

const TensorBox& box_of(const CUtensorMap& map) {
  if (reinterpret_cast<uintptr_t>(&map) % 64 != 0)
    fail("a tensor map at %p, no multiple of 64", static_cast<const void*>(&map));
  const auto& encoded = reinterpret_cast<const EncodedMap&>(map);
  if (encoded.mark != kMapMark) fail("a copy with a tensor map that has not been made");
  return encoded.box;
}

// What a copy demands of both sides, of addresses in its own block.
void check_box(Block& block, const TensorBox& box, const BoxPlace& place, unsigned shared, const char* by) {
  const unsigned alignment = box.swizzled ? 1024 : 128;
  if (shared % alignment != 0)
    fail("%s: a box at %#x of shared memory, no multiple of %u", by, shared, alignment);
  shared_of(block, shared, bytes_of(box), by);
  // Documented of other layouts only, but measured: others fail on H100.
  if (place.at[0] * static_cast<int>(size_of(box.type)) % convt::kTensorAlignment != 0)
    fail("%s: a box that begins at element %d of its first side, no multiple of 16 bytes", by, place.at[0]);
}

// Calls `visit` with each line of a box along the first side: its offset in the box, the address of the first
// element, which may lie outside, and whether the other coordinates are inside of the tensor.
template <typename Visit>
void for_each_line(const TensorBox& box, const BoxPlace& place, const Visit& visit) {
  const unsigned line = size_of(box.type) * static_cast<unsigned>(box.box[0]);
  unsigned offset = 0;
  int at[kTensorRank] = {};
  const auto inside = [&](int i) {
    const int64_t x = int64_t{place.at[i]} + at[i];
    return 0 <= x && x < box.sides[i];
  };
  for (at[4] = 0; at[4] < box.box[4]; ++at[4])
    for (at[3] = 0; at[3] < box.box[3]; ++at[3])
      for (at[2] = 0; at[2] < box.box[2]; ++at[2])
        for (at[1] = 0; at[1] < box.box[1]; ++at[1], offset += line) {
          int64_t distance = place.at[0] * int64_t{size_of(box.type)};
          bool exists = true;
          for (int i = 1; i < kTensorRank; ++i) {
            exists = exists && inside(i);
            distance += (int64_t{place.at[i]} + at[i]) * box.pitches[i - 1];
          }
          visit(offset, distance, exists);
        }
}

// The elements of a line that the tensor has.
std::pair<int, int> existing(const TensorBox& box, const BoxPlace& place) {
  const int64_t begin = std::clamp<int64_t>(-int64_t{place.at[0]}, 0, box.box[0]);
  const int64_t end = std::clamp<int64_t>(box.sides[0] - place.at[0], begin, box.box[0]);
  return {static_cast<int>(begin), static_cast<int>(end)};
}

void load(const Copy& copy) {
  const TensorBox& box = copy.box;
  const unsigned size = size_of(box.type), line = size * static_cast<unsigned>(box.box[0]);
  unsigned char* const shared = shared_of(*copy.block, copy.shared, bytes_of(box), "a copy") - copy.shared;
  const auto [begin, end] = existing(box, copy.place);
  unsigned char values[256 * 4];
  for_each_line(box, copy.place,
                [&, first = begin, last = end](unsigned offset, int64_t distance, bool exists) {
                  std::memset(values, 0, line);
                  if (exists && first < last) {
                    const unsigned char* const from =
                        static_cast<const unsigned char*>(box.address) + distance + first * int64_t{size};
                    const size_t bytes = static_cast<size_t>(last - first) * size;
                    check_global(from, bytes, "a copy");
                    std::memcpy(values + static_cast<unsigned>(first) * size, from, bytes);
                  }
                  if (box.type == CU_TENSOR_MAP_DATA_TYPE_TFLOAT32) {
                    for (unsigned i = 0; i < line; i += 4) {
                      unsigned bits;
                      std::memcpy(&bits, values + i, 4);
                      bits = convt::round_to_tf32(bits);
                      std::memcpy(values + i, &bits, 4);
                    }
                  }
                  for (unsigned i = 0; i < line; i += 16) {
                    const unsigned to = copy.shared + offset + i;
                    std::memcpy(shared + (box.swizzled ? swizzled(to) : to), values + i, 16);
                  }
                });
  clear_stamps(*copy.block, copy.shared, bytes_of(box));
  complete_bytes(*copy.block, copy.barrier, bytes_of(box));
}

void store(const Copy& copy) {
  const TensorBox& box = copy.box;
  const unsigned size = size_of(box.type);
  const unsigned char* const shared =
      shared_of(*copy.block, copy.shared, bytes_of(box), "a store") - copy.shared;
  const auto [begin, end] = existing(box, copy.place);
  for_each_line(
      box, copy.place, [&, first = begin, last = end](unsigned offset, int64_t distance, bool exists) {
        if (!exists || first >= last) return;
        unsigned char* const to =
            static_cast<unsigned char*>(const_cast<void*>(box.address)) + distance + first * int64_t{size};
        const size_t bytes = static_cast<size_t>(last - first) * size;
        check_global(to, bytes, "a store");
        std::memcpy(to, shared + copy.shared + offset + static_cast<unsigned>(first) * size, bytes);
      });
}

struct StoreWait final : Wait {
  StoreWait(int pending_groups, Where from)
      : Wait(from), thread(*machine().current), pending(static_cast<size_t>(pending_groups)) {}
  const Thread& thread;
  const size_t pending;

  bool over() override {
    const auto& stores = thread.stores;
    return stores.size() <= pending || std::all_of(stores.begin(), stores.end() - static_cast<long>(pending),
                                                   [](int left) { return left == 0; });
  }
  std::string what() const override { return "stores to have read shared memory"; }
};

}  // namespace

void add_memory(const void* begin, size_t bytes, const char* name) {
  const auto* const first = static_cast<const unsigned char*>(begin);
  memories.push_back({first, first + bytes, name});
}

void forget_memory() { memories.clear(); }

void check_global(const void* begin, size_t bytes, const char* by) {
  const auto* const first = static_cast<const unsigned char*>(begin);
  for (const Memory& memory : memories) {
    if (memory.begin <= first && first + bytes <= memory.end) return;
  }
  std::string near;
  for (const Memory& memory : memories)
    near += format(" %s [%p, %p)", memory.name.c_str(), static_cast<const void*>(memory.begin),
                   static_cast<const void*>(memory.end));
  fail("%s of %zu bytes at %p, which is no tensor's:%s", by, bytes, begin, near.c_str());
}

cudaError_t make_tensor_map(const TensorBox& box, CUtensorMap* map) {
  const unsigned size = size_of(box.type);
  const auto refuse = [](const std::string& why) {
    machine().note_failure("a tensor map with " + why);
    return cudaErrorInvalidValue;
  };
  if (reinterpret_cast<uintptr_t>(box.address) % 16 != 0)
    return refuse("an address that is no multiple of 16");
  for (int i = 0; i < kTensorRank; ++i) {
    if (box.sides[i] < 1 || box.sides[i] > int64_t{1} << 32)
      return refuse(format("side %d of %lld", i, static_cast<long long>(box.sides[i])));
    if (box.box[i] < 1 || box.box[i] > 256) return refuse(format("a box of %d along side %d", box.box[i], i));
    if (i == 0 || box.sides[i] == 1) continue;
    const int64_t pitch = box.pitches[i - 1];
    if (pitch <= 0 || pitch % 16 != 0 || pitch >= int64_t{1} << 40)
      return refuse(format("distance %lld of side %d", static_cast<long long>(pitch), i));
  }
  const unsigned line = size * static_cast<unsigned>(box.box[0]);
  if (line % 16 != 0 || (box.swizzled && line > 128))
    return refuse(format("boxes of lines of %u bytes", line));
  EncodedMap encoded = {kMapMark, box};
  // As the driver is told (convt/device/tensor_copy.cuh).
  for (int i = 1; i < kTensorRank; ++i)
    if (box.sides[i] == 1) encoded.box.pitches[i - 1] = convt::kTensorAlignment;
  std::memset(static_cast<void*>(map), 0, sizeof(*map));
  std::memcpy(static_cast<void*>(map), &encoded, sizeof(encoded));
  return cudaSuccess;
}

void load_box(unsigned to_blocks, unsigned destination, const CUtensorMap& map, const BoxPlace& place,
              unsigned barrier, Where where) {
  Machine& m = machine();
  const TensorBox& box = box_of(map);
  const unsigned own = 1u << m.current->block->rank;
  if (to_blocks >> m.grid.cluster != 0)
    fail("a copy to blocks %#x of a cluster of %d", to_blocks, m.grid.cluster);
  for (int rank = 0; rank < m.grid.cluster; ++rank) {
    if (((to_blocks == 0 ? own : to_blocks) >> rank & 1) == 0) continue;
    Block& block = m.block_of_rank(rank);
    check_box(block, box, place, destination, "a copy");
    if (!barrier_of(block, barrier, "a copy").fenced)
      fail("a copy to a barrier at %#x that has not been fenced", barrier);
    check_loaded(block, destination, bytes_of(box), "a copy");
    // From now on it may write.
    unsigned char* const to = shared_of(block, destination, bytes_of(box), "a copy");
    for (unsigned i = 0; i < bytes_of(box); i += 4) std::memcpy(to + i, &kPoison, 4);
    m.copies.push_back({&block, box, place, destination, barrier, -1, true, where});
    if (m.options.copies == Delay::kNone) m.perform_copy(m.copies.size() - 1);
  }
}

void store_box(const CUtensorMap& map, const BoxPlace& place, unsigned source, Where where) {
  Machine& m = machine();
  const TensorBox& box = box_of(map);
  Block& block = *m.current->block;
  if (box.swizzled) fail("stores of swapped lines are not emulated");
  check_box(block, box, place, source, "a store");
  check_fenced(block, source, bytes_of(box), "a store");
  m.copies.push_back({&block, box, place, source, 0, m.current->index, kNotCommitted, where});
}

// A box of one line, which is performed like others. Both its places are checked here, where the thread that
// gives them is known.
void copy_bulk(void* destination, unsigned source, int bytes, Where where) {
  constexpr const char* kBy = "a bulk copy";
  constexpr int kUnit = 16;  // of its size and both addresses
  Machine& m = machine();
  Block& block = *m.current->block;
  if (bytes <= 0 || bytes % kUnit != 0) fail("%s of %d bytes, no positive multiple of %d", kBy, bytes, kUnit);
  if (source % kUnit != 0) fail("%s from %#x of shared memory, no multiple of %d", kBy, source, kUnit);
  if (reinterpret_cast<uintptr_t>(destination) % kUnit != 0)
    fail("%s to %p, no multiple of %d", kBy, destination, kUnit);
  const auto size = static_cast<unsigned>(bytes);
  shared_of(block, source, size, kBy);
  check_global(destination, size, kBy);
  check_fenced(block, source, size, kBy);
  const int words = bytes / 4;
  const TensorBox line = {
      CU_TENSOR_MAP_DATA_TYPE_FLOAT32, destination, {words, 1, 1, 1, 1}, {}, {words, 1, 1, 1, 1}, false};
  m.copies.push_back({&block, line, BoxPlace{}, source, 0, m.current->index, kNotCommitted, where});
}

void commit_stores() {
  Machine& m = machine();
  m.current->stores.push_back(0);
  for (size_t i = m.copies.size(); i-- > 0;) {
    Copy& copy = m.copies[i];
    if (copy.block != m.current->block || copy.thread != m.current->index) continue;
    if (copy.group == kNotCommitted) {
      copy.group = static_cast<int>(m.current->stores.size()) - 1;
      ++m.current->stores.back();
    }
    if (m.options.copies == Delay::kNone) m.perform_copy(i);
  }
}

void wait_for_stores(int pending, Where where) {
  StoreWait wait(pending, where);
  machine().wait_until(wait);
}

void Machine::perform_copy(size_t number) {
  const Copy copy = copies[number];
  copies.erase(copies.begin() + static_cast<std::ptrdiff_t>(number));
  if (copy.thread < 0) {
    load(copy);
  } else {
    store(copy);
    if (copy.group != kNotCommitted)
      --copy.block->threads[static_cast<size_t>(copy.thread)].stores[static_cast<size_t>(copy.group)];
  }
}

// ---- copies by threads

void copy_async(void* destination, const void* source, int bytes, int read) {
  Machine& m = machine();
  if (read > 0 && reinterpret_cast<uintptr_t>(source) % static_cast<unsigned>(bytes) != 0)
    fail("a copy of %d bytes from %p", bytes, source);
  m.current->copies.push_back({destination, source, bytes, read, m.current->copy_groups});
}

void commit_async() { ++machine().current->copy_groups; }

// They are done here: a thread that reads what it has not waited for finds what was there before.
void wait_for_async(int pending, Where) {
  Thread& thread = *machine().current;
  std::vector<AsyncCopy> later;
  for (const AsyncCopy& copy : thread.copies) {
    if (copy.group >= thread.copy_groups - pending) {
      later.push_back(copy);
      continue;
    }
    std::memset(copy.destination, 0, static_cast<size_t>(copy.bytes));
    if (copy.read > 0) std::memcpy(copy.destination, copy.source, static_cast<size_t>(copy.read));
  }
  thread.copies = std::move(later);
}

}  // namespace emulator
