// Boxes of the output that a warp puts together in shared memory, as they lie in the output, and that tensor
// copies write: the epilogue of implicit_gemm where all phases are rows of one product. Stores of threads
// write pieces of output rows, as long as their addresses allow, and the thread waits; here the lengths of
// rows do not matter, and the copies go on while the next products are summed.
//
// A warp has 16 rows of the products, [output channel][phase along H][phase along W], and a box of their
// columns is [image][output channel][row][column] of the output.
#pragma once

#include <cstdint>

#include "convt/device/activation.cuh"
#include "convt/device/async_copy.cuh"
#include "convt/device/output_slice.cuh"
#include "convt/device/scalar.cuh"
#include "convt/device/tensor_copy.cuh"
#include "convt/device/wgmma.cuh"
#include "convt/divisor.h"

namespace convt {
namespace output_boxes {

using output_slice::store_words;

inline constexpr int kNoColumn = -1;  // the offset of a column that no box holds

// Of one launch.
struct Boxes {
  CUtensorMap map;
  int count;  // of a warpgroup's columns, one after the other; 0 where there are none
  int images, couts;
  Divisor<int> places, rows, cols;  // of a box: columns of the products
  bool halves;                      // eight of a warp's rows are put together at a time
  int bytes, warp_bytes;            // of a box, of a warp
  int log2_fold_h, log2_fold_w;
  int map_rows;                              // of a box, where the map's rows are no image rows, else 0
  int second_image, second_row, second_col;  // where the second warpgroup's places begin in a tile of lines

  __device__ int row_pitch() const { return static_cast<int>(cols) << log2_fold_w; }
  __device__ int cout_pitch() const { return (static_cast<int>(rows) << log2_fold_h) * row_pitch(); }
};

// Writes where column `i` of the products lies in a warp's boxes, for its first row: in bytes.
template <typename T>
__device__ inline void write_offset(const Boxes& b, int i, int* offsets) {
  const auto by_box = b.places.divide(i);
  const auto by_row = b.cols.divide(by_box.remainder);
  const auto by_image = b.rows.divide(by_row.quotient);
  const int image = by_box.quotient * b.images + by_image.quotient;
  const int offset = image * b.couts * b.cout_pitch() +
                     (by_image.remainder << b.log2_fold_h) * b.row_pitch() +
                     (by_row.remainder << b.log2_fold_w);
  offsets[i] = by_box.quotient < b.count ? offset * static_cast<int>(sizeof(T)) : kNoColumn;
}

// Lays eight rows of the products out, those of half `half` of a warp's 16, from shared address `boxes` on.
// `word(block, half, k)` is the lane's part of such a row: two columns of a block of eight, as a word of two
// of 16 bits or as two words of float32. kTwoPhases says that there are two phases along W, not more.
//
// Neighbouring rows, which neighbours of four lanes hold, are neighbouring phases along W. Of two blocks of
// columns, such lanes exchange one, and have two rows of the other then. Several exchanges are under way at a
// time, without a branch between them: a scheduler has two warps here.
template <typename T, int kColumns, bool kTwoPhases, typename Word>
__device__ inline void lay_rows(const Boxes& b, unsigned boxes, const int* offsets, int half,
                                const Word& word) {
  constexpr int kSize = sizeof(T), kWords = kSize / 2, kBlocks = kColumns / 8;
  constexpr int kBytes = kTwoPhases ? 4 * kSize : 2 * kSize;  // of one store
  constexpr int kPairs = 4;                                   // of blocks, at a time
  const int lane = afresh(static_cast<int>(threadIdx.x)) % 32;
  const bool odd = lane / 4 % 2 != 0;
  const int row = lane / 4 / 2 * 2 + (b.halves ? 0 : half * 8), log2_fold = b.log2_fold_h + b.log2_fold_w;
  boxes += kSize * ((row >> log2_fold) * b.cout_pitch() +
                    ((row & ((1 << log2_fold) - 1)) >> b.log2_fold_w) * b.row_pitch() +
                    (row & ((1 << b.log2_fold_w) - 1)));
  offsets += (odd ? 8 : 0) + lane % 4 * 2;
  const unsigned step = static_cast<unsigned>(kSize) << b.log2_fold_w;  // between columns
  const unsigned lower_selector = odd ? 0x1054 : 0x5410, upper_selector = odd ? 0x3276 : 0x7632;
#pragma unroll
  for (int first = 0; first < kBlocks / 2; first += kPairs) {
    int at[kPairs];
    unsigned own[kPairs][kWords], other[kPairs][kWords];
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const int block = 2 * (first + i);
      if (block >= kBlocks) break;
      at[i] = offsets[8 * block];
#pragma unroll
      for (int k = 0; k < kWords; ++k) {
        const unsigned x = word(block, half, k), y = word(block + 1, half, k);
        own[i][k] = odd ? y : x;
        other[i][k] = __shfl_xor_sync(~0u, odd ? x : y, 4);
      }
    }
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      if (2 * (first + i) >= kBlocks) break;
      // Two columns of two rows.
      unsigned words[2][kWords];
      if constexpr (kSize == 2) {
        words[0][0] = __byte_perm(own[i][0], other[i][0], lower_selector);
        words[1][0] = __byte_perm(own[i][0], other[i][0], upper_selector);
      } else {
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          words[k][0] = odd ? other[i][k] : own[i][k];
          words[k][1] = odd ? own[i][k] : other[i][k];
        }
      }
      const unsigned to = boxes + static_cast<unsigned>(at[i]);
      const bool exists = at[i] != kNoColumn;
      if constexpr (kTwoPhases) {
        if (exists) store_words<kBytes, kBytes>(to, reinterpret_cast<unsigned (&)[2 * kWords]>(words));
      } else {
        if (exists) store_words<kBytes, kBytes>(to, words[0]);
        if (exists) store_words<kBytes, kBytes>(to + step, words[1]);
      }
    }
  }
}

// Puts a warp's rows together, from shared address `boxes` on, and starts the copies. `rows` are the rows
// that exist; places() makes what says where the warp's boxes begin in the map: its value and, after ++, the
// next.
template <typename T, int kColumns, typename Word, typename Places>
__device__ inline void store_rows(const Boxes& b, const ActivationParams<float>& activation, unsigned boxes,
                                  const int* offsets, int rows, const Word& word, const Places& places) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (half == 0 || b.halves) {
      wait_for_bulk_reads();  // by the thread that started the copies
      __syncwarp();
    }
    if (b.log2_fold_w == 1) {
      lay_rows<T, kColumns, true>(b, boxes, offsets, half, word);
    } else {
      lay_rows<T, kColumns, false>(b, boxes, offsets, half, word);
    }
    if (half == 0 && !b.halves) continue;
    if (!activation.is_identity()) {
      __syncwarp();
      activate_bytes<32>(activation, static_cast<T*>(__cvta_shared_to_generic(static_cast<size_t>(boxes))),
                         b.count * b.bytes, afresh(static_cast<int>(threadIdx.x)) % 32);
    }
    fence_for_bulk_copies();
    __syncwarp();
    const int first = b.halves ? half * 8 : 0;
    // Where the compiler knows that there is one thread, the copies' numbers are the warp's; of float32 there
    // are no registers to bring them there.
    const bool starts = sizeof(T) == 2 ? elect_thread() : afresh(static_cast<int>(threadIdx.x)) % 32 == 0;
    if (starts && first < rows) {
      auto place = places();
#pragma unroll 1
      for (int i = 0; i < b.count; ++i, ++place) {
        BoxPlace at = place();
        at.at[2] += first >> (b.log2_fold_h + b.log2_fold_w);
        store_box(b.map, at, boxes + static_cast<unsigned>(i * b.bytes));
      }
      commit_bulk_copies();
    }
    __syncwarp();
  }
}

}  // namespace output_boxes
}  // namespace convt
