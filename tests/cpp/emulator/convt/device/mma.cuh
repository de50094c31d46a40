// Instructions of warps on fragments of matrices, emulated: those that move them.
#pragma once

#include "convt/device/scalar.cuh"
#include "convt/device/shared_words.cuh"

namespace convt {

// The rows that lanes load for each other: their addresses.
inline const uint4* exchange_rows(unsigned address, emulator::Where where) {
  emulator::loaded_shared_at(address, 16);
  return emulator::exchange({address, 0, 0, 0}, "ldmatrix", where);
}

// Lane i passes the address of row i % 8 of matrix i / 8, and receives word lane % 4 of row lane / 4 of each.
inline void load_matrices(unsigned address, unsigned (&r)[4],
                          emulator::Where where = emulator::Where::current()) {
  const uint4* const rows = exchange_rows(address, where);
  const unsigned lane = threadIdx.x % 32;
  for (unsigned i = 0; i < 4; ++i)
    std::memcpy(&r[i], emulator::shared_at(rows[8 * i + lane / 4].x, 16, 16) + lane % 4 * 4, sizeof(r[i]));
}

// The same, and receives elements 2 * (lane % 4), + 1 of column
// lane / 4 of each.
inline void load_transposed(unsigned address, unsigned (&r)[4],
                            emulator::Where where = emulator::Where::current()) {
  const uint4* const rows = exchange_rows(address, where);
  const unsigned lane = threadIdx.x % 32;
  for (unsigned i = 0; i < 4; ++i) {
    const auto element = [&](unsigned row) {
      unsigned short x;
      std::memcpy(&x, emulator::shared_at(rows[8 * i + row].x, 16, 16) + lane / 4 * 2, sizeof(x));
      return unsigned{x};
    };
    r[i] = element(lane % 4 * 2) | element(lane % 4 * 2 + 1) << 16;
  }
}

}  // namespace convt
