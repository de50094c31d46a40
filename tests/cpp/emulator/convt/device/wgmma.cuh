// Products of warpgroups and barriers in shared memory, emulated.
#pragma once

#include <type_traits>

#include "convt/device/mma.cuh"
#include "convt/device/wgmma_operands.cuh"
#include "emulator.h"

namespace convt {

inline void wgmma_fence() { emulator::fence_products(); }
inline void wgmma_commit() { emulator::commit_products(); }
template <int kPending>
inline void wgmma_wait(emulator::Where where = emulator::Where::current()) {
  emulator::wait_for_products(kPending, where);
}
template <int kBlocks>
inline void hold(float (&)[kBlocks][4]) {}

template <typename T, int kColumns, bool kTurned>
inline void multiply_lines(float (&c)[kColumns / 8][4], unsigned a, unsigned b, int adds,
                           emulator::Where where = emulator::Where::current()) {
  static_assert(kColumns % kWgmmaColumnStep == 0 && 0 < kColumns && kColumns <= kWgmmaMostColumns);
  constexpr bool kHalves = !std::is_same_v<T, float>;
  static_assert(kHalves || !kTurned);
  constexpr emulator::Operand kType = std::is_same_v<T, float>    ? emulator::Operand::kTf32
                                      : std::is_same_v<T, __half> ? emulator::Operand::kHalf
                                                                  : emulator::Operand::kBFloat16;
  emulator::start_product({kType, kColumns, a, b, kHalves, kTurned, false, adds != 0}, &c[0][0], nullptr,
                          where);
}

// c += a * b of TF32, or = a * b where `adds` is 0: `a` is the warp's 16 rows of eight channels in registers.
template <int kColumns>
inline void multiply_fragment(float (&c)[kColumns / 8][4], const unsigned (&a)[4], unsigned b, int adds,
                              emulator::Where where = emulator::Where::current()) {
  emulator::start_product({emulator::Operand::kTf32, kColumns, 0, b, false, false, true, adds != 0}, &c[0][0],
                          a, where);
}

// Lane i passes the address for column i % 8 of matrix i / 8, and of each matrix what the C fragment has.
inline void store_transposed(unsigned address, unsigned x0, unsigned x1, unsigned x2, unsigned x3,
                             emulator::Where where = emulator::Where::current()) {
  const unsigned lane = threadIdx.x % 32, own[4] = {x0, x1, x2, x3};
  const uint4* const columns = emulator::exchange({address, 0, 0, 0}, "stmatrix", where);
  for (unsigned i = 0; i < 4; ++i) {
    for (unsigned k = 0; k < 2; ++k) {
      const unsigned column = columns[8 * i + lane % 4 * 2 + k].x;
      if (column % 16 != 0) emulator::fail("stmatrix at %#x, no multiple of 16", column);
      emulated::store(column + lane / 4 * 2, static_cast<unsigned short>(own[i] >> 16 * k));
    }
  }
}

inline void fence_for_wgmma() { emulator::fence_for_copies(); }

template <int kRegisters>
inline void release_registers(emulator::Where where = emulator::Where::current()) {
  emulator::release_registers(kRegisters, where);
}
template <int kRegisters>
inline void claim_registers(emulator::Where where = emulator::Where::current()) {
  emulator::claim_registers(kRegisters, where);
}

inline bool elect_thread(emulator::Where where = emulator::Where::current()) {
  return emulator::elect(where) == static_cast<int>(threadIdx.x % 32);
}

inline void init_barrier(unsigned barrier, int count, emulator::Where where = emulator::Where::current()) {
  emulator::init_barrier(barrier, count, where);
}
inline void arrive(unsigned barrier, emulator::Where where = emulator::Where::current()) {
  emulator::arrive(barrier, -1, 0, where);
}
inline void arrive_and_expect(unsigned barrier, unsigned bytes,
                              emulator::Where where = emulator::Where::current()) {
  emulator::arrive(barrier, -1, bytes, where);
}
inline void fence_barriers() { emulator::fence_barriers(); }
inline void arrive_at(unsigned barrier, int rank, emulator::Where where = emulator::Where::current()) {
  emulator::arrive(barrier, rank, 0, where);
}
inline unsigned address_at(unsigned address, int rank) { return emulator::address_in_block(address, rank); }
inline void store_at(unsigned there, const float (&x)[4]) {
  std::memcpy(emulator::shared_at(there, 16, 16, true), x, 16);
}
inline void sync_cluster(emulator::Where where = emulator::Where::current()) {
  emulator::sync_cluster(where);
}
inline void wait(unsigned barrier, int parity, emulator::Where where = emulator::Where::current()) {
  emulator::wait(barrier, parity, where);
}
template <int kThreads>
inline void sync_threads(int number, emulator::Where where = emulator::Where::current()) {
  emulator::sync_named(number, kThreads, where);
}
template <int kThreads>
inline void arrive_at_threads(int number, emulator::Where where = emulator::Where::current()) {
  emulator::arrive_at_named(number, kThreads, where);
}

}  // namespace convt
