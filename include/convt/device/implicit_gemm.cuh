// implicit_gemm: for each phase one matrix product whose rows are output channels, whose columns are output
// places of many images and whose depth is (tap, input channel). 16-bit types and float32, compute capability
// 9.0a.
//
//   y[cout][phase of place m] = bias[cout] + sum over taps k of the phase and channels c of
//                               w[c][cout][k] * x[c][m + shift of k]
//
// The input of a tap is a box of the input tensor, moved by the tap's shift: tensor copies (TMA) fetch it
// with zeros where it leaves the image, so no thread computes an address, and no halo is laid out. The price
// is that an input is read once for each tap, from L2; the blocks of a cluster share what they read.
//
// A thread block goes through pieces of work (convt/implicit_gemm.h). Its warpgroups:
//
//   load       one thread starts the copies of 128 bytes' worth of channels at a time, weight and input, into
//              a ring of stages
//   multiply   two warpgroups of 64 rows, sums in registers; then they lay the sums out in shared memory, a
//              slice at a time, and store whole lines. Or each takes a tile of its own, and one multiplies
//              while the other stores
//
// Of NCHW with stride 2 along W, both phases of a place are multiplied one after the other, and the first
// one's outputs wait in registers, rounded, to be stored beside the second's. Where all phases are rows of
// one product, outputs leave in boxes (convt/device/output_boxes.cuh).
//
// Where there are fewer tiles than multiprocessors, the blocks of a cluster divide channels between them, and
// each adds up a part of the sums, which the others write to its shared memory.
//
// Neighbouring phases of NCHW may be rows of one product (convt/implicit_gemm.h): sizes, strides of places
// and phases are then those of the folded problem.
//
// IEEE float32: turn_operands has split both operands into two numbers that TF32 has (convt/device/tf32.cuh),
// and a stage holds both parts of both. Tensor cores cut sums off where they add, so that many products of
// one sign drift: those of a stage are summed by themselves, and fp32 sums take them over. The smaller ones
// have sums of their own or, where no registers are left, come first.
//
// Zeros outside the image are multiplied by weights: a weight that is not finite makes NaN of the outputs
// that meet them.
#pragma once

#include <algorithm>
#include <type_traits>

#include "convt/alignment.h"
#include "convt/device/activation.cuh"
#include "convt/device/async_copy.cuh"
#include "convt/device/launch.cuh"
#include "convt/device/mma.cuh"
#include "convt/device/output_boxes.cuh"
#include "convt/device/scalar.cuh"
#include "convt/device/shared_words.cuh"
#include "convt/device/tensor_copy.cuh"
#include "convt/device/tf32.cuh"
#include "convt/device/wgmma.cuh"
#include "convt/divisor.h"
#include "convt/implicit_gemm.h"
#include "convt/kernels.h"

namespace convt {
namespace implicit_gemm {

inline constexpr int kLine = kImplicitGemmLine, kBlock = kImplicitGemmBlock;
inline constexpr int kGroups = kImplicitGemmGroups;
inline constexpr int kMultipliers = 128 * kGroups, kThreads = kMultipliers + 128;
inline constexpr int kLoadRegisters = 40, kMultiplyRegisters = 232;  // of a thread
static_assert(128 * kLoadRegisters + kMultipliers * kMultiplyRegisters <=
              kThreads * (65536 / kThreads / 8 * 8));
inline constexpr int kRows = 64, kWarpRows = kImplicitGemmWarpRows;  // of a warpgroup, of a warp
inline constexpr int kSteps = 4;                                     // products of a line, 32 bytes deep
inline constexpr int kTileBytes = kRows * kLine;                     // of 64 rows, or of 64 columns
inline constexpr int64_t kNowhere = -1;                              // a place that does not exist
inline constexpr int64_t kLastPhaseMissing = 1LL << 62;  // added to a place whose second phase is outside

static_assert(kImplicitGemmColumnStep == kWgmmaColumnStep);

// Narrow tiles have fewer columns, or blocks that divide channels. What they need besides costs full ones 2
// to 8% where works are short, in branches and in the way between instructions.
template <int kIndex, bool kBlocksOfPixels, int kOperandParts, bool kNarrowTiles>
struct Config {
  static constexpr int kTileRows = kImplicitGemmConfigs[kIndex].rows;
  static constexpr int kPixels = kImplicitGemmConfigs[kIndex].pixels;
  static constexpr int kColumns = kImplicitGemmConfigs[kIndex].columns();  // at most, of a warpgroup
  static constexpr bool kAlternates = kImplicitGemmConfigs[kIndex].alternates;
  static constexpr bool kDividesRows = !kAlternates && kTileRows > kRows;
  static constexpr bool kDividesPixels = !kAlternates && !kDividesRows;
  // A warpgroup's sums, those of 64 rows after the other.
  static constexpr int kRowTiles = kAlternates ? kTileRows / kRows : 1;
  static constexpr int kAllColumns = kRowTiles * kColumns;
  static constexpr bool kBlocks = kBlocksOfPixels;
  static constexpr bool kNarrow = kNarrowTiles, kSplits = kNarrow && !kAlternates;
  static constexpr bool kBoxes = !kAlternates;  // that the outputs may leave in
  // Columns of products that are compiled: those of full tiles, or all.
  static constexpr int kColumnStep = kNarrow ? kImplicitGemmColumnStep : kColumns;
  static constexpr int kParts = kOperandParts;
  static constexpr int kWeightLines = kTileRows;
  static constexpr int kBlockThreads = kThreads;
  static constexpr bool kHalos = false;
};

// The taps of a phase along an axis: `first` + i * axis.tap_step reads place m's input m + `shift` - i
// * axis.shift_step, 0 <= i < `count`.
struct PhaseTaps {
  int first, count, shift;
};

CONVT_HOST_DEVICE inline PhaseTaps find_taps(const AxisPhases<int>& axis, int padding, int phase) {
  const auto base = axis.stride.divide(phase + padding);
  const Phase<int> taps = phase_of(axis, base.remainder);
  return {taps.first_tap, taps.taps, base.quotient - taps.first_shift};
}

// Phases whose taps the host has found. A thread takes some 300 cycles for those of one, and nothing is
// copied or multiplied before that.
inline constexpr int kKnownPhases = 8;

template <typename T>
struct Params {
  const T* input;  // not read: its tensor map is
  const T* bias;
  T* output;
  ActivationStrides input_stride, output_stride;
  int64_t bias_stride;
  ActivationParams<float> activation;
  int batch, cin_per_group, cout_per_group;
  int input_h, input_w, output_h, output_w;

  CUtensorMap input_map, weight_map;

  int padding_h, padding_w;
  AxisPhases<int> phases_h, phases_w;
  PhaseTaps known_taps_h[kKnownPhases], known_taps_w[kKnownPhases];
  int phases_together;
  int clusters, works;                                            // of clusters
  Divisor<int> cout_groups, phases, phase_columns, pixel_groups;  // of works, innermost first; then groups
  Divisor<int> tiles_before_turn;  // tiles of places after which the phases are taken in another order
  int cluster_rows, cluster_pixels, splits;  // at most one of them is more than 1, and a power of two
  int log2_cluster;
  Divisor<int> tiles_w, tiles_h;  // of lines; blocks of a row, rows
  Divisor<int> cols, rows;        // of a tile of lines
  int images;
  Divisor<int> image_w, image_pixels;        // of flat tiles
  int flat_pixels;                           // of all images, of lines; 0 where tiles are not flat
  int share_images, share_rows, share_cols;  // of a tile of lines that a block of the cluster loads
  int groups;
  int chunks, stages;
  int columns, lines;  // of a warpgroup's products, of a stage
  unsigned expected_bytes;
  int store_elements;
  int log2_fold_h, log2_fold_w;
  int64_t fold_row;  // between neighbouring phases along H that are rows of a product
  bool output_channels_last, after_turning;
  ImplicitGemmShared shared;
  output_boxes::Boxes boxes;

  // Of halo_gemm (convt/device/halo_gemm.cuh).
  int halo_cols, halo_pitch, halo_rows, halo_stages;
  unsigned halo_bytes;     // that a stage of them waits for
  bool halo_flat;          // rows are parts of an image's pixels
  bool halo_stores_pairs;  // of outputs, from registers
  bool keeps_weight;
  unsigned run_pitch;          // of the outputs of a channel, in bytes; 0 where they do not leave in runs
  Divisor<int> runs_of_image;  // at most
  Divisor<int> run_images;     // of a tile
};

// A piece of work of this block.
struct Work {
  int group, cout, tile;  // first output channel; tile of places
  int phase_h, phase_w;   // the first of them along W
};

// This block's number in its cluster: along the tiles of output channels first. Splits have no others.
template <typename T>
__device__ inline int cluster_rank(const Params<T>& p) {
  return static_cast<int>(blockIdx.x) & (p.cluster_rows * p.cluster_pixels - 1);
}

// Of a warpgroup's products.
template <typename C, typename T>
__device__ inline int columns(const Params<T>& p) {
  return C::kNarrow ? p.columns : C::kColumns;
}

// The blocks that divide a tile's channels between them.
template <typename C, typename T>
__device__ inline int splits(const Params<T>& p) {
  return C::kSplits ? p.splits : 1;
}

// The first piece of work of this block's cluster.
template <typename C, typename T>
__device__ inline int first_work(const Params<T>& p) {
  return static_cast<int>(blockIdx.x) >> p.log2_cluster;
}

// This block's number among those that divide channels, and the chunks of them that it multiplies.
template <typename C>
struct Share {
  int split, first, end;

  template <typename T>
  __device__ explicit Share(const Params<T>& p) {
    const int log2_splits = C::kSplits && p.splits > 1 ? p.log2_cluster : 0;
    split = static_cast<int>(blockIdx.x) & ((1 << log2_splits) - 1);
    first = split * p.chunks >> log2_splits;
    end = (split + 1) * p.chunks >> log2_splits;
  }
};

template <typename C, typename T>
__device__ inline Work locate(const Params<T>& p, int number) {
  const int rank = cluster_rank(p);
  const bool divides_rows = p.cluster_rows > 1;
  // A division takes some 50 cycles, and products and copies wait for the last one.
  const auto by_cout = p.cout_groups.divide(number);
  Work work = {};
  work.cout = (by_cout.remainder * p.cluster_rows + (divides_rows ? rank : 0)) * C::kTileRows;
  int tile = by_cout.quotient;
  if (p.phases > 1) {
    const auto by_phase = p.phases.divide(tile);
    // Phases have different numbers of taps: from one round to the next a block meets another one.
    const int turn = p.tiles_before_turn.divide(by_phase.quotient).quotient;
    const auto by_row = p.phase_columns.divide(p.phases.divide(by_phase.remainder + turn).remainder);
    work.phase_h = by_row.quotient;
    work.phase_w = by_row.remainder * p.phases_together;
    tile = by_phase.quotient;
  }
  if (p.groups > 1) {
    const auto by_group = p.pixel_groups.divide(tile);
    work.group = by_group.quotient;
    tile = by_group.remainder;
  }
  work.tile = tile * p.cluster_pixels + (divides_rows ? 0 : rank);
  return work;
}

template <typename T>
__device__ inline PhaseTaps taps_along_h(const Params<T>& p, int phase) {
  return phase < kKnownPhases ? p.known_taps_h[phase] : find_taps(p.phases_h, p.padding_h, phase);
}

template <typename T>
__device__ inline PhaseTaps taps_along_w(const Params<T>& p, int phase) {
  return phase < kKnownPhases ? p.known_taps_w[phase] : find_taps(p.phases_w, p.padding_w, phase);
}

// The steps of a piece of work: of a phase of it, `chunks` for each tap.
template <typename T>
__device__ inline int count_steps(const Params<T>& p, const Work& work, int phase, int chunks) {
  return taps_along_h(p, work.phase_h).count * taps_along_w(p, work.phase_w + phase).count * chunks;
}

// ---------------------------------------------------------------- load

// Where the input of a tile of places begins, without shift.
struct Origin {
  int image, h, w;
};

template <typename T>
__device__ inline Origin locate_lines(const Params<T>& p, int tile) {
  const auto by_col = p.tiles_w.divide(tile);
  if (p.flat_pixels > 0) return {0, 0, tile * p.cols};
  const auto by_row = p.tiles_h.divide(by_col.quotient);
  return {by_row.quotient * p.images, by_row.remainder * p.rows, by_col.remainder * p.cols};
}

template <typename T>
__device__ inline Origin locate_block(const Params<T>& p, int block) {
  const auto by_col = p.tiles_w.divide(block);
  const auto by_row = p.tiles_h.divide(by_col.quotient);
  return {by_row.quotient, by_row.remainder, by_col.remainder * kBlock};
}

// A place of a block by its row and column, which those of flat blocks have in one number.
template <typename T>
__device__ inline Origin place_in_image(const Params<T>& p, const Origin& at) {
  if (p.flat_pixels == 0) return at;
  const auto by_row = p.image_w.divide(at.w);
  return {at.image, by_row.quotient, by_row.remainder};
}

// Goes on to the next block: of a row, of the next row, of the next image.
template <typename T>
__device__ inline void next_block(const Params<T>& p, Origin& at) {
  if ((at.w += kBlock) < p.tiles_w * kBlock) return;
  at.w = 0;
  if (++at.h < p.tiles_h) return;
  at.h = 0;
  ++at.image;
}

// What this block copies: its shares of what it has in common with the other block of its cluster.
template <typename C, typename T>
struct Loader {
  static constexpr int kChunk = kLine / sizeof(T);
  static constexpr int kTileBlocks = C::kPixels / kBlock;

  const Params<T>& p;
  // The bits of the blocks that take the same places, and of those that take the same output channels.
  const bool shares_input = p.cluster_rows > 1, shares_weight = p.cluster_pixels > 1;
  const unsigned same_pixels = shares_input ? 3 : 1, same_rows = shares_weight ? 3 : 1;
  const int rank = cluster_rank(p), row = shares_input ? rank : 0;
  const int first_weight_line = shares_weight ? rank * ((sizeof(T) == 4 ? C::kTileRows : kChunk) / 2) : 0;
  // One side of a tile of lines is divided.
  const int first_line = row * p.share_images * p.share_rows * p.share_cols;
  const int first_image = p.share_images < p.images ? row * p.share_images : 0;
  const int first_row = p.share_rows < p.rows ? row * p.share_rows : 0;
  const int first_col = p.share_cols < p.cols ? row * p.share_cols : 0;
  const int first_block = row * (kTileBlocks / 2), blocks = shares_input ? kTileBlocks / 2 : kTileBlocks;

  __device__ void copy(unsigned to_blocks, bool shared, unsigned destination, const CUtensorMap& map,
                       const BoxPlace& place, unsigned barrier) const {
    if (shared) {
      copy_box_to(to_blocks, destination, map, place, barrier);
    } else {
      copy_box(destination, map, place, barrier);
    }
  }

  // Where the input of this block's share of a tile begins, without shift.
  __device__ Origin locate(const Work& work) const {
    if constexpr (C::kBlocks) return locate_block(p, work.tile * kTileBlocks + first_block);
    const Origin origin = locate_lines(p, work.tile);
    return {origin.image + first_image, origin.h + first_row, origin.w + first_col};
  }

  // The weight of a tap.
  __device__ void weight(const Work& work, int tap_h, int tap_w, int channel, unsigned to,
                         unsigned barrier) const {
    to += first_weight_line * kLine;
    if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (int part = 0; part < C::kParts; ++part) {
        copy(same_rows, shares_weight, to + part * C::kWeightLines * kLine, p.weight_map,
             {channel, work.cout + first_weight_line, tap_w, tap_h, part * p.groups + work.group}, barrier);
      }
    } else {
#pragma unroll
      for (int i = 0; i < C::kTileRows / kRows; ++i) {
        copy(same_rows, shares_weight, to + i * kTileBytes, p.weight_map,
             {work.cout + i * kRows, channel + first_weight_line, tap_w, tap_h, work.group}, barrier);
      }
    }
  }

  // The input, moved by a shift.
  __device__ void input(const Work& work, Origin at, int shift_h, int shift_w, int channel, unsigned to,
                        unsigned barrier) const {
    if constexpr (C::kBlocks) {
      to += first_block * kTileBytes;
#pragma unroll 1
      for (int i = 0; i < blocks; ++i, to += kTileBytes) {
        copy(same_pixels, shares_input, to, p.input_map,
             {at.w + shift_w, channel, at.h + shift_h, at.image, work.group}, barrier);
        next_block(p, at);
      }
    } else {
      to += first_line * kLine;
#pragma unroll
      for (int part = 0; part < C::kParts; ++part) {
        copy(same_pixels, shares_input, to + part * p.lines * kLine, p.input_map,
             {channel, at.w + shift_w + part * p.flat_pixels, at.h + shift_h,
              at.image + (p.flat_pixels > 0 ? 0 : part * p.batch), work.group},
             barrier);
      }
    }
  }
};

template <typename C, typename T>
__device__ inline void load_works(const Params<T>& p, unsigned stages, unsigned full, unsigned empty) {
  const Loader<C, T> loader{p};
  prefetch_map(p.weight_map);
  prefetch_map(p.input_map);
  const Share<C> share(p);
  int stage = 0, parity = 1;
  for (int number = first_work<C>(p); number < p.works; number += p.clusters) {
    const Work work = locate<C>(p, number);
    const Origin origin = loader.locate(work);
    const PhaseTaps h = taps_along_h(p, work.phase_h);
    // For what turn_operands writes, once the first work has been found.
    if (p.after_turning && number == first_work<C>(p)) wait_for_previous_kernel();
#pragma unroll 1
    for (int phase = 0; phase < p.phases_together; ++phase) {
      const PhaseTaps w = taps_along_w(p, work.phase_w + phase);
#pragma unroll 1
      for (int i = 0; i < h.count; ++i) {
#pragma unroll 1
        for (int j = 0; j < w.count; ++j) {
#pragma unroll 1
          for (int chunk = share.first; chunk < share.end; ++chunk) {
            wait(empty + 8 * stage, parity);
            const unsigned to = stages + stage * static_cast<unsigned>(p.shared.stage_bytes);
            const int channel = chunk * Loader<C, T>::kChunk;
            arrive_and_expect(full + 8 * stage, p.expected_bytes);
            loader.weight(work, h.first + i * p.phases_h.tap_step, w.first + j * p.phases_w.tap_step, channel,
                          to, full + 8 * stage);
            loader.input(work, origin, h.shift - i * p.phases_h.shift_step,
                         w.shift - j * p.phases_w.shift_step, channel,
                         to + static_cast<unsigned>(p.shared.weight_bytes), full + 8 * stage);
            if (++stage == p.stages) stage = 0, parity ^= 1;
          }
        }
      }
    }
  }
}

// ---------------------------------------------------------------- multiply

template <int kColumns>
using Sums = float[kColumns / 8][4];

// A place in the ring of stages, and the barriers of it.
struct Ring {
  unsigned stages, full, empty;
  int stage = 0, parity = 0;

  // Passes over stages that others read.
  __device__ void skip(int steps, int count) {
    stage += steps;
    const int rounds = stage / count;
    stage -= rounds * count;
    parity ^= rounds & 1;
  }
};

// Says to every block that loads for this one that a stage has been read.
template <typename T>
__device__ inline void give_back(const Params<T>& p, unsigned barrier) {
  const int blocks = p.cluster_rows * p.cluster_pixels, lane = static_cast<int>(threadIdx.x) % 32;
  if (blocks == 1) {
    if (lane == 0) arrive(barrier);
  } else if (lane < blocks) {
    arrive_at(barrier, lane);
  }
}

// The descriptors of this warpgroup's operands.
struct Operands {
  unsigned a, b;
};

// Waits until the ring's stage is there.
template <typename C, typename T>
__device__ inline Operands wait_for_stage(const Params<T>& p, const Ring& ring) {
  const int group = static_cast<int>(threadIdx.x) / 128;
  wait(ring.full + 8 * ring.stage, ring.parity);
  const unsigned weight = ring.stages + ring.stage * static_cast<unsigned>(p.shared.stage_bytes);
  const unsigned input = weight + static_cast<unsigned>(p.shared.weight_bytes);
  return {wgmma_swizzled_descriptor(weight + (C::kDividesRows ? group * kTileBytes : 0), 0),
          wgmma_swizzled_descriptor(input + (C::kDividesPixels ? group * columns<C>(p) * kLine : 0),
                                    kBlock * kLine)};
}

// Calls `visit` with the columns of products, which are of kLeast to kMost steps.
template <typename C, int kLeast = 1, int kMost = C::kColumns / C::kColumnStep, typename T, typename Visit>
__device__ inline void with_columns(const Params<T>& p, const Visit& visit) {
  if constexpr (kLeast == kMost) {
    visit(std::integral_constant<int, kMost * C::kColumnStep>{});
  } else {
    constexpr int kMiddle = (kLeast + kMost) / 2;
    if (columns<C>(p) > kMiddle * C::kColumnStep) return with_columns<C, kMiddle + 1, kMost>(p, visit);
    with_columns<C, kLeast, kMiddle>(p, visit);
  }
}

template <int kBlocks>
__device__ inline void clear(float (&sums)[kBlocks][4]) {
#pragma unroll
  for (auto& block : sums) {
#pragma unroll
    for (float& sum : block) sum = 0;
  }
}

// `meanwhile` is called once, after the first products have been started, and `started` after the last ones.
template <typename C, typename T, typename Meanwhile, typename Started>
__device__ inline void multiply(const Params<T>& p, int steps, Ring& ring, Sums<C::kAllColumns>& sums,
                                const Meanwhile& meanwhile, const Started& started) {
  constexpr unsigned kWeightStep = sizeof(T) == 4 ? 2 : 16 * kLine / 16;  // in 16 bytes
  constexpr unsigned kInputStep = C::kBlocks ? 16 * kLine / 16 : 2;
  clear(sums);
  unsigned previous = 0;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    const auto [a, b] = wait_for_stage<C>(p, ring);
    with_columns<C>(p, [&](auto columns) {
      constexpr int kColumns = decltype(columns)::value;
      wgmma_fence();
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
#pragma unroll
        for (int tile = 0; tile < C::kRowTiles; ++tile) {
          auto& own = reinterpret_cast<Sums<kColumns>&>(sums[tile * C::kColumns / 8]);
          multiply_lines<T, kColumns, C::kBlocks>(own, a + tile * (kTileBytes / 16) + i * kWeightStep,
                                                  b + i * kInputStep, 1);
        }
      }
      // Here, not behind the branches: there the compiler would commit each branch's products before that,
      // and wait for them where it should wait for the ones before.
      wgmma_commit();
    });
    // These products go on while the ones before them are known to be done.
    wgmma_wait<1>();
    if (step > 0) give_back(p, previous);
    previous = ring.empty + 8 * ring.stage;
    if (++ring.stage == p.stages) ring.stage = 0, ring.parity ^= 1;
    if (step == 0) meanwhile();
  }
  if (steps == 0) meanwhile();
  started();
  wgmma_wait<0>();
  hold(sums);
  if (steps > 0) give_back(p, previous);
}

template <int kBlocks, typename Operation>
__device__ inline void for_each(float (&few)[kBlocks][4], float (&sums)[kBlocks][4],
                                const Operation& operation) {
#pragma unroll
  for (int j = 0; j < kBlocks; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) operation(few[j][i], sums[j][i]);
  }
}

inline constexpr int kLineStep = 32 / 16;  // of one product along lines of channels, in 16 bytes

// Starts the products of a first and a second part.
template <typename C, int kColumns, typename T>
__device__ inline void multiply_small(Sums<kColumns>& sums, unsigned a, unsigned b, int adds) {
  constexpr unsigned kWeightPart = C::kTileRows * kLine / 16;
  constexpr unsigned kInputPart = C::kPixels / C::kColumns * kColumns * kLine / 16;
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    const unsigned ai = a + i * kLineStep, bi = b + i * kLineStep;
    multiply_lines<T, kColumns, false>(sums, ai + kWeightPart, bi, i > 0 ? 1 : adds);
    multiply_lines<T, kColumns, false>(sums, ai, bi + kInputPart, 1);
  }
}

// The same of split operands. With kSmallSums, products of a first and a second part have sums of their own
// for as long as what is cut off them is below 2^-23 of the sum of all magnitudes: eight additions a stage,
// each cutting off less than 2^-23 of what is less than 2^-10 of that.
template <bool kSmallSums, typename C, int kColumns, typename T>
__device__ inline void multiply_split(const Params<T>& p, int steps, Ring& ring, Sums<kColumns>& sums) {
  constexpr int kSmallStages = 128;
#pragma unroll 1
  for (int step = 0; step < steps;) {
    Sums<kColumns> small;
    if constexpr (kSmallSums) clear(small);
#pragma unroll 1
    for (const int end = kSmallSums ? min(step + kSmallStages, steps) : steps; step < end; ++step) {
      const auto [a, b] = wait_for_stage<C>(p, ring);
      Sums<kColumns> few;
      wgmma_fence();
      if constexpr (!kSmallSums) {
        multiply_small<C, kColumns, T>(few, a, b, 0);
        wgmma_commit();
        wgmma_wait<0>();
        hold(few);
        for_each(few, sums, [](float& sum, float&) { sum *= 1 / kSecondPartScale; });
        wgmma_fence();
      }
#pragma unroll
      for (int i = 0; i < kSteps; ++i)
        multiply_lines<T, kColumns, false>(few, a + i * kLineStep, b + i * kLineStep, !kSmallSums || i > 0);
      if constexpr (kSmallSums) multiply_small<C, kColumns, T>(small, a, b, 1);
      wgmma_commit();
      wgmma_wait<0>();
      hold(few);
      if constexpr (kSmallSums) hold(small);
      give_back(p, ring.empty + 8 * ring.stage);
      for_each(few, sums, [](float& sum, float& total) { total += sum; });
      if (++ring.stage == p.stages) ring.stage = 0, ring.parity ^= 1;
    }
    if constexpr (kSmallSums)
      for_each(small, sums, [](float& sum, float& total) { total += sum * (1 / kSecondPartScale); });
  }
}

// `alone` says that no other sums are in registers.
template <typename C, typename T, typename Meanwhile, typename Started>
__device__ inline void sum_products(const Params<T>& p, int steps, Ring& ring, Sums<C::kAllColumns>& sums,
                                    bool alone, const Meanwhile& meanwhile, const Started& started) {
  if constexpr (C::kParts == 1) {
    multiply<C>(p, steps, ring, sums, meanwhile, started);
  } else {
    static_assert(!C::kAlternates);
    meanwhile();
    clear(sums);
    with_columns<C>(p, [&](auto columns) {
      auto& own = reinterpret_cast<Sums<decltype(columns)::value>&>(sums);
      if (alone) {
        multiply_split<true, C, decltype(columns)::value>(p, steps, ring, own);
      } else {
        multiply_split<false, C, decltype(columns)::value>(p, steps, ring, own);
      }
    });
  }
}

// ---------------------------------------------------------------- store

// Where place `n` of a tile lies in the output, for its first output channel, if it `exists`.
template <typename C, typename T>
__device__ inline int64_t find_place(const Params<T>& p, const Work& work, int n, bool exists) {
  Origin at;
  if constexpr (C::kBlocks) {
    at = locate_block(p, work.tile * (C::kPixels / kBlock) + n / kBlock);
    at.w += n % kBlock;
    at = place_in_image(p, at);
  } else if (p.flat_pixels > 0) {
    const int pixel = work.tile * p.cols + n;
    exists = exists && pixel < p.flat_pixels && n < p.cols;
    const auto by_image = p.image_pixels.divide(pixel);
    const auto by_row = p.image_w.divide(by_image.remainder);
    at = {by_image.quotient, by_row.quotient, by_row.remainder};
  } else {
    at = locate_lines(p, work.tile);
    const auto by_row = p.cols.divide(n);
    const auto by_image = p.rows.divide(by_row.quotient);
    exists = exists && by_image.quotient < p.images;
    at.image += by_image.quotient;
    at.h += by_image.remainder;
    at.w += by_row.remainder;
    if constexpr (C::kHalos) {
      if (p.halo_flat) {
        const auto by_width = p.image_w.divide(at.h * p.halo_pitch + at.w);
        at = {at.image, by_width.quotient, by_width.remainder};
      }
    }
  }
  const int h = at.h * p.phases_h.stride + work.phase_h, w = at.w * p.phases_w.stride + work.phase_w;
  exists = exists && at.image < p.batch && h < p.output_h && w < p.output_w;
  int64_t place = at.image * p.output_stride.n + h * p.output_stride.h + w * p.output_stride.w;
  if (w + p.phases_together > p.output_w) place += kLastPhaseMissing;
  return exists ? place : kNowhere;
}

// Writes where the warpgroup's places lie.
template <typename C, typename T>
__device__ inline void write_places(const Params<T>& p, const Work& work, int64_t* places) {
  const int thread = static_cast<int>(threadIdx.x) % 128, group = static_cast<int>(threadIdx.x) / 128;
#pragma unroll
  for (int i = thread; i < C::kColumns; i += 128) {
    const int n = i + (C::kDividesPixels ? group * columns<C>(p) : 0);
    places[i] = find_place<C>(p, work, n, i < columns<C>(p));
  }
}

// 2 to 16 bytes.
template <int kBytes>
struct Piece {
  static constexpr int kWords = kBytes < 4 ? 1 : kBytes / 4;
  unsigned words[kWords];

  __device__ static Piece load(unsigned from) {
    Piece piece;
    if constexpr (kBytes == 16) {
      const uint4 x = load_words(from);
      piece = {{x.x, x.y, x.z, x.w}};
    } else if constexpr (kBytes == 8) {
      const uint2 x = load_two_words(from);
      piece = {{x.x, x.y}};
    } else if constexpr (kBytes == 4) {
      piece.words[0] = load_word(from);
    } else {
      piece.words[0] = load_half_word(from);
    }
    return piece;
  }

  __device__ void store(void* to) const {
    if constexpr (kBytes == 16) {
      *static_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
    } else if constexpr (kBytes == 8) {
      *static_cast<uint2*>(to) = make_uint2(words[0], words[1]);
    } else if constexpr (kBytes == 4) {
      *static_cast<unsigned*>(to) = words[0];
    } else {
      *static_cast<unsigned short*>(to) = static_cast<unsigned short>(words[0]);
    }
  }
};

// The sums of a row, rounded: words of two of 16 bits, or of one of float32.
template <typename C, typename T>
struct RoundedSums {
  unsigned words[C::kAllColumns / 8][2];

  __device__ explicit RoundedSums(const Sums<C::kAllColumns>& sums) {
#pragma unroll
    for (int j = 0; j < C::kAllColumns / 8; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half)
        words[j][half] = pack_pair<T>(sums[j][2 * half], sums[j][2 * half + 1]);
    }
  }
  __device__ unsigned word(int j, int half, int) const { return words[j][half]; }
};

template <typename C>
struct RoundedSums<C, float> {
  const Sums<C::kAllColumns>& sums;

  __device__ explicit RoundedSums(const Sums<C::kAllColumns>& rounded) : sums(rounded) {}
  __device__ unsigned word(int j, int half, int k) const { return __float_as_uint(sums[j][2 * half + k]); }
};

// Adds up the sums of the blocks of a cluster that divide channels between them. Block `rank` takes every
// splits-th slice of the outputs, and what others have of those; its stages are free by then.
template <typename C, typename T>
__device__ inline void add_splits(const Params<T>& p, int rank, unsigned stages, Sums<C::kAllColumns>& sums) {
  constexpr int kBlocks = kLine / static_cast<int>(sizeof(T)) / 8, kSlices = C::kColumns / 8 / kBlocks;
  const int slices = implicit_gemm_slices(columns<C>(p), sizeof(T));
  const int most_own = (slices + p.splits - 1) / p.splits;
  constexpr unsigned kBytes = 16 * kMultipliers;  // of four sums of every thread
  // Where the sums of sender `slot` for the receiver's slice `own` lie, in the receiver.
  const auto place = [&](int slot, int own) {
    return stages + static_cast<unsigned>(slot * most_own + own) * kBlocks * kBytes + 16 * threadIdx.x;
  };
  sync_cluster();  // everybody has read its stages
  for (int owner = 0, own = 0, slice = 0; slice < slices; ++slice) {
    if (owner != rank) {
      const unsigned to = address_at(place(rank - (rank > owner ? 1 : 0), own), owner);
      with_constant<kSlices>(slice, [&](int i) {
#pragma unroll
        for (int j = 0; j < kBlocks; ++j) store_at(to + j * kBytes, sums[i * kBlocks + j]);
      });
    }
    if (++owner == p.splits) owner = 0, ++own;
  }
  sync_cluster();
  for (int own = 0, slice = rank; slice < slices; slice += p.splits, ++own) {
    with_constant<kSlices>(slice, [&](int i) {
#pragma unroll 1
      for (int slot = 0; slot < p.splits - 1; ++slot) {
#pragma unroll
        for (int j = 0; j < kBlocks; ++j) {
          const uint4 x = load_words(place(slot, own) + j * kBytes);
          float (&sum)[4] = sums[i * kBlocks + j];
          sum[0] += __uint_as_float(x.x), sum[1] += __uint_as_float(x.y);
          sum[2] += __uint_as_float(x.z), sum[3] += __uint_as_float(x.w);
        }
      }
    });
  }
}

// A lane's output channels are two of each 64 rows.
template <typename C>
__device__ inline void add_bias(const float (&bias)[C::kRowTiles][2], Sums<C::kAllColumns>& sums) {
#pragma unroll
  for (int j = 0; j < C::kAllColumns / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[j][i] += bias[j / (C::kColumns / 8)][i / 2];
  }
}

// Applies the activation to `bytes` of what has been laid out, and to what lies between lines, which nobody
// reads; `thread` is one of kThreads that call it.
template <int kThreads, typename T>
__device__ inline void activate_lines(const Params<T>& p, unsigned lines, int bytes, int thread) {
  auto* const values = static_cast<T*>(__cvta_shared_to_generic(static_cast<size_t>(lines)));
  activate_bytes<kThreads>(p.activation, values, bytes, thread);
}

// NHWC: a line is the warpgroup's output channels at a place.
template <typename T>
struct ChannelLines {
  static constexpr int kSize = sizeof(T);
  static constexpr int kPlaces = 128 / kSize;  // at a time
  static constexpr unsigned kPitch = kRows * kSize + 16;
  static_assert(kPlaces * kPitch <= kImplicitGemmOutputBytes);
};

template <int kPlaces, typename C, typename T>
__device__ inline void lay_channels(unsigned lines, int slice, const RoundedSums<C, T>& sums) {
  using Lines = ChannelLines<T>;
  const int thread = afresh(static_cast<int>(threadIdx.x)) % 128, warp = thread / 32, lane = thread % 32;
#pragma unroll
  for (int j = 0; j < kPlaces / 8; j += 2) {
    const int first = slice * (kPlaces / 8) + j;
    if constexpr (sizeof(T) == 2) {
      const int place = 8 * (j + lane / 16) + lane % 8, row = warp * kWarpRows + lane / 8 % 2 * 8;
      store_transposed(lines + place * Lines::kPitch + row * 2, sums.word(first, 0, 0),
                       sums.word(first, 1, 0), sums.word(first + 1, 0, 0), sums.word(first + 1, 1, 0));
    } else {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const int place = 8 * (j + k / 2) + lane % 4 * 2 + k % 2;
          const int row = warp * kWarpRows + half * 8 + lane / 4;
          store_shared(lines + place * Lines::kPitch + row * 4, sums.word(first + k / 2, half, k % 2));
        }
      }
    }
  }
}

// Copies of several pieces are interleaved, and skip none by a branch: a scheduler has two warps here.
inline constexpr int kPiecesAtOnce = 4;

template <int kBytes, typename T>
__device__ inline void copy_channels(unsigned lines, const int64_t* places, T* output, int couts) {
  using Lines = ChannelLines<T>;
  constexpr int kElements = kBytes / Lines::kSize, kVectors = kRows / kElements, kStep = 128 / kVectors;
  static_assert(Lines::kPlaces % (kStep * kPiecesAtOnce) == 0);
  const int thread = afresh(static_cast<int>(threadIdx.x)) % 128, first = thread / kVectors;
  const int cout = thread % kVectors * kElements;
  output += cout;
  lines += first * Lines::kPitch + thread % kVectors * kBytes;
#pragma unroll 1
  for (int place = 0; place < Lines::kPlaces; place += kStep * kPiecesAtOnce) {
    int64_t at[kPiecesAtOnce];
    Piece<kBytes> pieces[kPiecesAtOnce];
#pragma unroll
    for (int i = 0; i < kPiecesAtOnce; ++i) {
      at[i] = places[first + place + i * kStep];
      pieces[i] = Piece<kBytes>::load(lines + (place + i * kStep) * Lines::kPitch);
    }
#pragma unroll
    for (int i = 0; i < kPiecesAtOnce; ++i) {
      if (at[i] != kNowhere && cout < couts) pieces[i].store(output + at[i]);
    }
  }
}

// Copies the outputs of kPlaces places of folded phases: kPhases neighbours along W of each place, laid out
// one after the other, of as many rows as are neighbours along W.
template <int kBytes, int kPhases, int kPlaces, typename T>
__device__ inline void copy_folded(const Params<T>& p, unsigned lines, const int64_t* places, T* output,
                                   int rows) {
  using Lines = ChannelLines<T>;
  constexpr int kSize = Lines::kSize, kElements = kBytes / kSize, kWord = 4 / kSize;
  // 64 bytes are written side by side, for whole sectors; the other threads of a warp read other banks.
  constexpr int kNeighbours = 64 / kBytes;
  constexpr int kVectors = kRows * kPlaces * kPhases * kSize / kBytes / 128;  // of a thread
  static_assert(kVectors % kPiecesAtOnce == 0 && kBytes >= 4 && (kPhases == 1 || kPhases == 2));
  const int thread = afresh(static_cast<int>(threadIdx.x)) % 128, log2_fold = p.log2_fold_w;
  const int log2_run = log2_fold + kPhases - 1, run = 1 << log2_run;  // elements of a place
  const int log2_rows = 6 - log2_fold;
  static_assert(kRows == 1 << 6);
  const auto row_of = [&](int n) { return n / kNeighbours & ((1 << log2_rows) - 1); };
  const auto element_of = [&](int n) {
    return ((n / kNeighbours >> log2_rows) * kNeighbours + n % kNeighbours) * kElements;
  };
#pragma unroll 1
  for (int n = thread; n < 128 * kVectors; n += 128 * kPiecesAtOnce) {
    Piece<kBytes> pieces[kPiecesAtOnce];
    int64_t place[kPiecesAtOnce];
#pragma unroll
    for (int i = 0; i < kPiecesAtOnce; ++i) {
      const int row = row_of(n + 128 * i) << log2_fold, first = element_of(n + 128 * i);
      place[i] = places[first >> log2_run];
#pragma unroll
      for (int j = 0; j < kBytes / 4; ++j) {
        const int e = first + j * kWord, phase = (e & (run - 1)) >> log2_fold;
        const int line = (e >> log2_run) + phase * kPlaces;
        pieces[i].words[j] =
            load_word(lines + line * Lines::kPitch + (row + (e & ((1 << log2_fold) - 1))) * kSize);
      }
    }
#pragma unroll
    for (int i = 0; i < kPiecesAtOnce; ++i) {
      const int row = row_of(n + 128 * i), element = element_of(n + 128 * i) & (run - 1);
      const bool exists = place[i] != kNowhere && row << log2_fold < rows &&
                          !(element >> log2_fold > 0 && (place[i] & kLastPhaseMissing) != 0);
      T* const to = output + (place[i] & ~kLastPhaseMissing) + (row >> p.log2_fold_h) * p.output_stride.c +
                    (row & ((1 << p.log2_fold_h) - 1)) * p.fold_row + element;
      if (exists) pieces[i].store(to);
    }
  }
}

// NCHW: a line is a piece of a warp's output channel; of two phases, places alternate between them.
template <int kPhases, typename C, typename T>
__device__ inline void lay_rows(unsigned lines, int slice, const RoundedSums<C, T>& first,
                                const RoundedSums<C, T>& second) {
  constexpr int kSize = sizeof(T), kPlaces = kLine / kSize / kPhases;
  const int lane = afresh(static_cast<int>(threadIdx.x)) % 32;
#pragma unroll
  for (int j = 0; j < kPlaces / 8; ++j) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int block = slice * (kPlaces / 8) + j;
      const unsigned x0 = first.word(block, half, 0), x1 = first.word(block, half, 1);
      const unsigned y0 = second.word(block, half, 0), y1 = second.word(block, half, 1);
      const unsigned to = lines + (half * 8 + lane / 4) * static_cast<unsigned>(kImplicitGemmOutputPitch) +
                          (8 * j + lane % 4 * 2) * kPhases * kSize;
      if constexpr (kPhases == 1 && kSize == 2) {
        store_shared(to, x0);
      } else if constexpr (kPhases == 1) {
        store_shared(to, x0, x1);
      } else if constexpr (kSize == 2) {
        store_shared(to, __byte_perm(x0, y0, 0x5410), __byte_perm(x0, y0, 0x7632));
      } else {
        store_shared(to, x0, y0, x1, y1);
      }
    }
  }
}

template <int kBytes, int kPhases, typename T>
__device__ inline void copy_rows(unsigned lines, const int64_t* places, T* output, int64_t stride,
                                 int couts) {
  constexpr int kElements = kBytes / static_cast<int>(sizeof(T)), kVectors = kLine / kBytes;
  constexpr int kAcross = kVectors < 32 ? kVectors : 32, kStep = 32 / kAcross;  // lanes, rows
  constexpr unsigned kPitch = static_cast<unsigned>(kImplicitGemmOutputPitch);
  const int lane = afresh(static_cast<int>(threadIdx.x)) % 32, first_row = lane / kAcross;
#pragma unroll 1
  for (int vector = lane % kAcross; vector < kVectors; vector += 32) {
    const int element = vector * kElements;
    const int64_t place = places[element / kPhases];
    const bool exists = place != kNowhere && !(element % kPhases == 1 && (place & kLastPhaseMissing) != 0);
    T* to = output + (place & ~kLastPhaseMissing) + element % kPhases + first_row * stride;
    const unsigned from = lines + first_row * kPitch + vector * kBytes;
#pragma unroll 1
    for (int row = 0; row < kWarpRows; row += kStep * kPiecesAtOnce) {
      Piece<kBytes> pieces[kPiecesAtOnce];
#pragma unroll
      for (int i = 0; i < kPiecesAtOnce; ++i)
        pieces[i] = Piece<kBytes>::load(from + (row + i * kStep) * kPitch);
#pragma unroll
      for (int i = 0; i < kPiecesAtOnce; ++i) {
        if (exists && first_row + row + i * kStep < couts) pieces[i].store(to);
        to += kStep * stride;
      }
    }
  }
}

// The same of 16-bit outputs whose rows begin at any element: words wherever two outputs lie side by side. A
// lane takes two successive outputs of a line: both phases of a place, or two places. Where the first one
// lies at a multiple of 4 bytes they are a word; else the second one is a word with the next lane's first.
// Outputs without such a neighbour, at ends of rows and of the slice, are stored by themselves.
template <int kPhases, typename T>
__device__ inline void copy_pairs(unsigned lines, const int64_t* places, T* output, int64_t stride,
                                  int couts) {
  static_assert(sizeof(T) == 2 && (kPhases == 1 || kPhases == 2));
  constexpr int kPlaces = 2 / kPhases;  // of a lane
  constexpr unsigned kPitch = static_cast<unsigned>(kImplicitGemmOutputPitch), kAll = ~0u;
  const int lane = afresh(static_cast<int>(threadIdx.x)) % 32;
  const int64_t place = places[lane * kPlaces], first = place & ~kLastPhaseMissing;
  const int64_t next = places[min(lane + 1, 31) * kPlaces] & ~kLastPhaseMissing;  // of lane 31, its own
  const int64_t second = kPhases == 1 ? places[2 * lane + 1] : first + 1;
  const bool exists = place != kNowhere;
  const bool whole = kPhases == 1 ? exists && second == first + 1 : (place & kLastPhaseMissing) == 0;
  const bool follows = whole && next == first + 2;  // the next lane's first one
  const bool preceded = (__ballot_sync(kAll, follows) & 1u << lane >> 1) != 0;

  // In rows where the first output lies at a multiple of 4 bytes, and in others: whether there is a word, and
  // whether one of the lane's outputs is single, as numbers of rows; where the word lies, seen from the first
  // output. The single one lies before that. (Chosen among numbers: predicates are few.)
  const int even_words = afresh(whole ? couts : 0), odd_words = afresh(follows ? couts : 0);
  const int even_singles = afresh(exists && !whole ? couts : 0);
  const int odd_singles = afresh((preceded ? whole && !follows : exists) ? couts : 0);
  const int even_offset = afresh(whole ? 0 : 1), odd_offset = afresh(preceded && !follows ? 2 : 1);
  const auto is_odd = [](T* at) { return (static_cast<unsigned>(reinterpret_cast<size_t>(at)) & 2) != 0; };
  // Every second row lies alike.
  T* to = output + first;
  int words[2], singles[2], offset[2];
  unsigned selector[2], shift[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const bool odd = is_odd(to + i * stride);
    words[i] = odd ? odd_words : even_words;
    singles[i] = odd ? odd_singles : even_singles;
    offset[i] = odd ? odd_offset : even_offset;
    selector[i] = odd ? 0x5432 : 0x3210;
    shift[i] = offset[i] == 2 ? 16 : 0;
  }
  const int64_t steps[2] = {stride + (offset[1] - offset[0]), stride - (offset[1] - offset[0])};
  const unsigned from = lines + lane * 4;
  to += offset[0];
#pragma unroll 1
  for (int row = 0; row < kWarpRows; row += kPiecesAtOnce) {
    unsigned own[kPiecesAtOnce], others[kPiecesAtOnce];
#pragma unroll
    for (int i = 0; i < kPiecesAtOnce; ++i) {
      own[i] = load_word(from + (row + i) * kPitch);
      others[i] = load_word(from + (row + i) * kPitch + 4);  // of lane 31, what lies between lines
    }
#pragma unroll
    for (int i = 0; i < kPiecesAtOnce; ++i) {
      const Piece<4> word = {{__byte_perm(own[i], others[i], selector[i % 2])}};
      const Piece<2> single = {{own[i] >> shift[i % 2]}};
      if (row + i < words[i % 2]) word.store(to);
      if (row + i < singles[i % 2]) single.store(to - 1);
      to += steps[i % 2];
    }
  }
  // In few slices both outputs of a lane are single, or its two places no neighbours.
  const bool apart = kPhases == 1 && second != kNowhere && !whole, alone = whole && !follows && !preceded;
  if (!__any_sync(kAll, apart || alone)) return;
  to = output + second;
#pragma unroll 1
  for (int row = 0; row < min(couts, kWarpRows); ++row) {
    const auto single = Piece<2>::load(from + row * kPitch + 2);
    if (apart || (alone && !is_odd(to))) single.store(to);
    to += stride;
  }
}

// Where outputs of 64 rows go.
template <typename T>
struct Destination {
  T* output;
  int couts;
  const int64_t* places;
};

// Outputs are stored a slice at a time: 128 bytes of places of each row, those of all phases together.
template <typename C, typename T, int kPhases>
inline constexpr int kSlices = C::kColumns * kPhases * static_cast<int>(sizeof(T)) / kLine;  // of 64 rows

// Calls `visit` with whether a warp stores what it lays out by itself: of NCHW, rows that are not folded.
template <typename T, typename Visit>
__device__ inline void with_own_rows(const Params<T>& p, const Visit& visit) {
  if (!p.output_channels_last && p.log2_fold_h + p.log2_fold_w == 0) {
    visit(std::true_type{});
  } else {
    visit(std::false_type{});
  }
}

template <bool kOwnRows>
__device__ inline void sync_lines() {
  if constexpr (kOwnRows) {
    __syncwarp();
  } else {
    sync_threads<128>(1 + static_cast<int>(threadIdx.x) / 128);
  }
}

// Of the warp, in lines of the warpgroup.
__device__ inline int first_own_row() { return afresh(static_cast<int>(threadIdx.x)) % 128 / 32 * kWarpRows; }

template <int kPhases, bool kOwnRows, typename C, typename T>
__device__ inline void lay_slice(unsigned lines, int slice, const RoundedSums<C, T>& first,
                                 const RoundedSums<C, T>& second) {
  constexpr int kPlaces = kLine / sizeof(T) / kPhases;
  static_assert(kPlaces * kPhases == ChannelLines<T>::kPlaces);
  if constexpr (kOwnRows) {
    lay_rows<kPhases, C, T>(lines + first_own_row() * static_cast<unsigned>(kImplicitGemmOutputPitch), slice,
                            first, second);
  } else {
    lay_channels<kPlaces, C, T>(lines, slice, first);
    if constexpr (kPhases == 2)
      lay_channels<kPlaces, C, T>(lines + kPlaces * ChannelLines<T>::kPitch, slice, second);
  }
}

// Copies what has been laid out, all warps' of a warpgroup unless they store their own rows.
template <int kPhases, bool kOwnRows, typename T>
__device__ inline void copy_slice(const Params<T>& p, unsigned lines, int slice, const Destination<T>& to) {
  constexpr int kSize = sizeof(T), kPlaces = kLine / kSize / kPhases;
  const int64_t* const places = to.places + slice * kPlaces;
  if constexpr (kOwnRows) {
    const int row = first_own_row();
    const unsigned own = lines + row * static_cast<unsigned>(kImplicitGemmOutputPitch);
    if (!p.activation.is_identity()) {
      activate_lines<32>(p, own, kImplicitGemmOutputBytes / 4, static_cast<int>(threadIdx.x) % 32);
      __syncwarp();
    }
    T* const output = to.output + row * p.output_stride.c;
    with_width_from<kSize>(p.store_elements * kSize, [&](auto width) {
      constexpr int kBytes = decltype(width)::value;
      if constexpr (kBytes == 2) {
        if (kPhases == 2 || p.phases_w.stride == 1)
          return copy_pairs<kPhases>(own, places, output, p.output_stride.c, to.couts - row);
      }
      if constexpr (kBytes > 2 || kPhases == 1)
        copy_rows<kBytes, kPhases>(own, places, output, p.output_stride.c, to.couts - row);
    });
  } else {
    if (!p.activation.is_identity()) {
      activate_lines<128>(p, lines, kImplicitGemmOutputBytes, static_cast<int>(threadIdx.x) % 128);
      sync_lines<kOwnRows>();
    }
    if (!p.output_channels_last) {
      with_width_from<4>(p.store_elements * kSize, [&](auto width) {
        copy_folded<decltype(width)::value, kPhases, kPlaces>(p, lines, places, to.output, to.couts);
      });
    } else if constexpr (kPhases == 1) {
      with_width_from<kSize>(p.store_elements * kSize, [&](auto width) {
        copy_channels<decltype(width)::value>(lines, places, to.output, to.couts);
      });
    }
  }
}

template <int kPhases, typename C, typename T>
__device__ inline void store_slices(const Params<T>& p, const Work& work, int split, int first_cout,
                                    unsigned lines, const int64_t* places, const RoundedSums<C, T>& first,
                                    const RoundedSums<C, T>& second) {
  constexpr int kOfTile = kSlices<C, T, kPhases>;
  const int slices = implicit_gemm_slices(columns<C>(p), sizeof(T), kPhases);
  const int log2_fold = p.log2_fold_h + p.log2_fold_w;
  with_own_rows(p, [&](auto own_rows) {
    constexpr bool kOwnRows = decltype(own_rows)::value;
#pragma unroll 1
    for (int tile = 0; tile < C::kRowTiles; ++tile) {
      const int cout = first_cout + tile * kRows;
      const Destination<T> to = {
          p.output + ((int64_t{work.group} * p.cout_per_group + cout) >> log2_fold) * p.output_stride.c,
          p.cout_per_group - cout, places};
#pragma unroll 1
      for (int slice = split; slice < slices; slice += splits<C>(p)) {
        sync_lines<kOwnRows>();  // what was laid out before has been copied
        with_constant<C::kRowTiles * kOfTile>(
            tile * kOfTile + slice, [&](int i) { lay_slice<kPhases, kOwnRows, C>(lines, i, first, second); });
        sync_lines<kOwnRows>();
        copy_slice<kPhases, kOwnRows>(p, lines, slice, to);
      }
    }
  });
}

// Where the boxes of this warpgroup's outputs begin.
template <typename C, typename T>
struct BoxPlaces {
  const Params<T>& p;
  int channel;
  Origin at;

  // Of output channel `cout` of the group.
  __device__ BoxPlaces(const Params<T>& params, const Work& work, int cout)
      : p(params), channel((work.group * p.cout_per_group + cout) >> (p.log2_fold_h + p.log2_fold_w)) {
    const bool second = C::kDividesPixels && threadIdx.x / 128 > 0;
    if constexpr (C::kBlocks) {
      at = locate_block(p, (work.tile * C::kPixels + (second ? C::kColumns : 0)) / kBlock);
    } else {
      at = locate_lines(p, work.tile);
      const output_boxes::Boxes& b = p.boxes;
      if (second) at = {at.image + b.second_image, at.h + b.second_row, at.w + b.second_col};
    }
  }

  __device__ BoxPlace operator()() const {
    const output_boxes::Boxes& b = p.boxes;
    const Origin place = C::kBlocks ? place_in_image(p, at) : at;
    const int row = b.map_rows > 0 ? b.rows.divide(place.h).quotient * b.map_rows : place.h << p.log2_fold_h;
    return {place.w << p.log2_fold_w, row, channel, place.image, 0};
  }
  __device__ void operator++() {
    if constexpr (C::kBlocks) next_block(p, at);
  }
};

// Stores the warp's sums in boxes.
template <typename C, typename T>
__device__ inline void store_boxes(const Params<T>& p, const Work& work, int first_cout, unsigned boxes,
                                   const int* offsets, const RoundedSums<C, T>& sums) {
  const int warp = afresh(static_cast<int>(threadIdx.x)) % 128 / 32;
  const int cout = first_cout + warp * kWarpRows;
  output_boxes::store_rows<T, C::kColumns>(
      p.boxes, p.activation, boxes + static_cast<unsigned>(warp * p.boxes.warp_bytes), offsets,
      p.cout_per_group - cout, [&](int block, int half, int k) { return sums.word(block, half, k); },
      [&] { return BoxPlaces<C, T>(p, work, cout); });
}

// The barrier at which a warpgroup waits until the other one has started the last products of its work.
__device__ inline int order_barrier(int group) { return 1 + kGroups + group; }

template <typename C, typename T>
__device__ __forceinline__ void multiply_works(const Params<T>& p, unsigned stages, unsigned output,
                                               int64_t* places, unsigned full, unsigned empty) {
  const int thread = static_cast<int>(threadIdx.x) % 128, group = static_cast<int>(threadIdx.x) / 128;
  Ring ring = {stages, full, empty};
  const unsigned lines = output + group * static_cast<unsigned>(p.shared.output_bytes);
  const int log2_fold = p.log2_fold_h + p.log2_fold_w;
  places += group * C::kColumns;
  int* const offsets = reinterpret_cast<int*>(places);
  const bool boxed = C::kBoxes && p.boxes.count > 0;
  if (boxed) {
    for (int i = thread; i < C::kColumns; i += 128) output_boxes::write_offset<T>(p.boxes, i, offsets);
  }
  const Share<C> share(p);
  int works_of_other = group;  // before the next own one
  // The next piece of work and its steps take some hundred cycles to find: while products of the one before
  // it are summed. (Of float32, not all configurations have registers for that.)
  constexpr bool kLooksAhead = C::kParts == 1 && (sizeof(T) == 2 || !C::kNarrow || C::kAllColumns == 128);
  Work next = {};
  int next_steps[2] = {};
  const auto look_at = [&](int number) {
    next = locate<C>(p, number);
    next_steps[0] = count_steps(p, next, 0, share.end - share.first);
    next_steps[1] = p.phases_together == 1 ? 0 : count_steps(p, next, 1, share.end - share.first);
  };
  if constexpr (kLooksAhead) look_at(first_work<C>(p));
  for (int number = first_work<C>(p); number < p.works; number += p.clusters) {
    const Work work = kLooksAhead ? next : locate<C>(p, number);
    const int first_steps = next_steps[0], second_steps = next_steps[1];
    const auto steps = [&](int phase) {
      if constexpr (kLooksAhead) return phase == 0 ? first_steps : second_steps;
      return count_steps(p, work, phase, share.end - share.first);
    };
    const auto look_ahead = [&] {
      if (kLooksAhead && number + p.clusters < p.works) look_at(number + p.clusters);
    };
    const int first_cout = work.cout + (C::kDividesRows ? group * kRows : 0);
    if constexpr (C::kAlternates) {
      if (works_of_other > 0) {
        ring.skip(p.phases_together == 1 ? steps(0) : steps(0) + steps(1), p.stages);
        works_of_other = 0;
        look_ahead();
        continue;
      }
      works_of_other = 1;
      // Barriers of stages tell apart one round of the ring from the next only.
      if (number >= p.clusters) sync_threads<kMultipliers>(order_barrier(group));
    }
    const auto let_other_multiply = [&](int phase) {
      if (C::kAlternates && phase == p.phases_together - 1 && number + p.clusters < p.works)
        arrive_at_threads<kMultipliers>(order_barrier(1 - group));
    };
    float bias[C::kRowTiles][2] = {};
    // What is not needed before the stores is done while tensor cores multiply.
    const auto meanwhile = [&] {
      sync_threads<128>(1 + group);  // nobody reads the last work's any more
      if (!boxed) write_places<C>(p, work, places);
#pragma unroll
      for (int i = 0; i < 2 * C::kRowTiles; ++i) {
        const int cout = first_cout + i / 2 * kRows + thread / 32 * kWarpRows + i % 2 * 8 + thread % 32 / 4;
        if (p.bias != nullptr && cout < p.cout_per_group)
          bias[i / 2][i % 2] =
              widen(p.bias[((int64_t{work.group} * p.cout_per_group + cout) >> log2_fold) * p.bias_stride]);
      }
    };
    Sums<C::kAllColumns> sums;
    sum_products<C>(p, steps(0), ring, sums, true, meanwhile, [&] {
      let_other_multiply(0);
      look_ahead();
    });
    if constexpr (C::kSplits) {
      if (p.splits > 1) add_splits<C>(p, share.split, stages, sums);
    }
    sync_threads<128>(1 + group);
    add_bias<C>(bias, sums);
    const RoundedSums<C, T> first(sums);
    if constexpr (C::kBoxes) {
      if (boxed) {
        store_boxes<C>(p, work, first_cout, lines, offsets, first);
        continue;
      }
    }
    if (p.phases_together == 1) {
      store_slices<1, C>(p, work, share.split, first_cout, lines, places, first, first);
    } else if constexpr (sizeof(T) == 2) {
      sum_products<C>(p, steps(1), ring, sums, true, [] {}, [&] { let_other_multiply(1); });
      add_bias<C>(bias, sums);
      store_slices<2, C>(p, work, share.split, first_cout, lines, places, first, RoundedSums<C, T>(sums));
    } else if constexpr (C::kAllColumns == 128) {
      Sums<C::kAllColumns> others;
      sum_products<C>(p, steps(1), ring, others, false, [] {}, [&] { let_other_multiply(1); });
      add_bias<C>(bias, others);
      store_slices<2, C>(p, work, share.split, first_cout, lines, places, first, RoundedSums<C, T>(others));
    }
  }
  if (boxed) wait_for_bulk_reads();
}

template <typename C, typename T>
__global__ void __launch_bounds__(kThreads, 1) implicit_gemm_kernel(const __grid_constant__ Params<T> p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) unsigned char shared[];
  const unsigned stages = shared_address(shared);
  const unsigned full = stages + static_cast<unsigned>(p.shared.barriers), empty = full + 8 * p.stages;
  const int thread = static_cast<int>(threadIdx.x), blocks = p.cluster_rows * p.cluster_pixels;
  if (thread == 0) {
    for (int i = 0; i < p.stages; ++i) {
      init_barrier(full + 8 * i, 1);
      init_barrier(empty + 8 * i, 4 * (C::kAlternates ? 1 : kGroups) * blocks);
    }
    fence_barriers();
  }
  __syncthreads();
  // The barriers of all blocks are there before one of them is used, and their shared memory is as long as
  // another block may write to it.
  if (blocks > 1) sync_cluster();
  if (thread < kMultipliers) {
    claim_registers<kMultiplyRegisters>();
    multiply_works<C>(p, stages, stages + static_cast<unsigned>(p.shared.output),
                      reinterpret_cast<int64_t*>(shared + p.shared.places), full, empty);
  } else {
    release_registers<kLoadRegisters>();
    // One thread, which the compiler knows to be one: numbers of the copies are the warp's, then.
    if (thread / 32 == kMultipliers / 32 && elect_thread()) load_works<C>(p, stages, full, empty);
    __syncwarp();
    if (splits<C>(p) > 1) {
      sync_cluster();
      sync_cluster();
    }
  }
  if (blocks > 1) sync_cluster();
#endif
}

// ---------------------------------------------------------------- launch

template <typename T>
constexpr CUtensorMapDataType kTensorType = CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
template <>
inline constexpr CUtensorMapDataType kTensorType<__nv_bfloat16> = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
// Copies round to nearest.
template <>
inline constexpr CUtensorMapDataType kTensorType<float> = CU_TENSOR_MAP_DATA_TYPE_TFLOAT32;

template <typename T>
constexpr CUtensorMapDataType kOutputType =
    std::is_same_v<T, float> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32 : kTensorType<T>;

template <typename T>
cudaError_t make_input_map(const Problem& problem, const ImplicitGemmLaunch& t, const void* workspace,
                           Params<T>& p) {
  constexpr int64_t kSize = sizeof(T);
  ActivationStrides in = problem.input_stride;
  int64_t group = problem.cin_per_group * in.c;
  if (t.turns_input) {
    group = t.padded_cin;
    in.c = 1;
    in.w = problem.groups * group;
    in.h = problem.w.input * in.w;
    in.n = problem.h.input * in.h;
  }
  const int64_t w = problem.w.input, h = problem.h.input;
  const int64_t n = t.halos ? problem.batch : problem.batch * t.parts;
  const void* const address = t.turns_input ? workspace : problem.input;
  // Halos are split by those who read them.
  const auto type = t.halos && t.parts > 1 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32 : kTensorType<T>;
  TensorBox box = {type, address, {}, {}, {}, !t.halos || t.halo_lines};
  const auto set = [&box](int i, int64_t side, int64_t pitch, int part) {
    box.sides[i] = side;
    if (i > 0) box.pitches[i - 1] = pitch * kSize;
    box.box[i] = part;
  };
  // Of taps together, a copy brings a row that warpgroups share.
  const bool single_rows = t.sizes().row_taps > 1;
  const int halo_rows = single_rows ? 1 : t.rows, halo_images = single_rows ? 1 : t.images;
  if (t.halo_lines) {
    set(0, problem.cin_per_group, 1, t.chunk());
    set(1, w, in.w, t.halo_cols);
    set(2, h, in.h, halo_rows);
    set(3, n, in.n, halo_images);
  } else if (t.halos) {
    const bool long_rows = t.halo_pitch > 0;
    set(0, long_rows ? w * h : w, 1, t.halo_cols);
    set(1, problem.cin_per_group, in.c, t.chunk());
    set(2, long_rows ? 1 : h, in.h, long_rows ? 1 : halo_rows);
    set(3, n, in.n, halo_images);
  } else if (t.blocks) {
    set(0, t.flat ? w * h : w, 1, kBlock);
    set(1, problem.cin_per_group, in.c, t.chunk());
    set(2, t.flat ? 1 : h, in.h, 1);
    set(3, n, in.n, 1);
  } else {
    set(0, problem.cin_per_group, 1, t.chunk());
    set(1, t.flat ? w * h * n : w, in.w, p.share_cols);
    set(2, t.flat ? 1 : h, in.h, p.share_rows);
    set(3, t.flat ? 1 : n, in.n, p.share_images);
  }
  set(4, problem.groups, group, 1);
  return make_tensor_map(box, &p.input_map);
}

template <typename T>
cudaError_t make_weight_map(const Problem& problem, const ImplicitGemmLaunch& t, const void* workspace,
                            Params<T>& p) {
  const int64_t cin = problem.cin_per_group, cout = problem.cout_per_group;
  const int64_t kw = problem.w.kernel, kh = problem.h.kernel;
  WeightStrides weight = problem.weight_stride;
  int64_t group = cin * weight.cin;
  const void* address = problem.weight;
  constexpr bool kAlongCin = sizeof(T) == 4;
  if (t.turns_weight) {
    address = static_cast<const unsigned char*>(workspace) + t.weight_offset;
    weight.cin = kAlongCin ? 1 : t.padded_cout;
    weight.cout = kAlongCin ? t.padded_cin : 1;
    weight.kw = kAlongCin ? cout * t.padded_cin : cin * t.padded_cout;
    weight.kh = kw * weight.kw;
    group = kh * weight.kh;
  }
  constexpr int64_t kSize = sizeof(T);
  TensorBox box = {kTensorType<T>, address, {}, {}, {}};
  const int along = kAlongCin ? 0 : 1;  // the place of cin among the sides
  box.sides[along] = cin;
  box.sides[1 - along] = cout;
  box.sides[2] = kw;
  box.sides[3] = kh;
  box.sides[4] = problem.groups * t.parts;
  box.pitches[0] = kSize * (kAlongCin ? weight.cout : weight.cin);
  box.pitches[1] = kSize * weight.kw;
  box.pitches[2] = kSize * weight.kh;
  box.pitches[3] = kSize * group;
  box.box[0] = kAlongCin ? t.chunk() : kRows;
  box.box[1] = (kAlongCin ? t.sizes().rows : t.chunk()) / t.cluster_pixels;
  box.box[2] = t.sizes().row_taps;
  box.box[3] = box.box[4] = 1;
  return make_tensor_map(box, &p.weight_map);
}

template <typename T>
cudaError_t make_boxes(const Problem& folded, const ImplicitGemmLaunch& t, Params<T>& p) {
  constexpr int kSize = sizeof(T);
  const ImplicitGemmBox& of = t.box;
  output_boxes::Boxes& b = p.boxes;
  b.count = of.count;
  b.images = of.images;
  b.couts = of.product_rows() / t.fold();
  b.places = of.places();
  b.rows = of.rows;
  b.cols = of.cols;
  b.halves = of.halves;
  b.bytes = of.product_rows() * of.places() * kSize;
  b.warp_bytes = static_cast<int>(implicit_gemm_box_bytes(t));
  b.log2_fold_h = p.log2_fold_h;
  b.log2_fold_w = p.log2_fold_w;
  const int rows = of.rows * of.cols * t.fold() / of.side;  // of a box
  b.map_rows = of.whole_rows ? rows : 0;
  // The second warpgroup has the second half of the tile along its outermost side.
  b.second_image = of.images < t.images ? of.images : 0;
  b.second_row = of.rows < t.rows ? of.rows : 0;
  b.second_col = of.cols < t.cols ? of.cols : 0;
  const int64_t plane = folded.h.output * folded.w.output * t.fold(), couts = folded.cout() / t.fold();
  const int64_t row = of.whole_rows ? of.side : folded.w.output * t.fold_w;
  const int64_t plane_bytes = plane * kSize;
  const TensorBox box = {kOutputType<T>,
                         folded.output,
                         {row, plane / row, couts, folded.batch, 1},
                         {row * kSize, plane_bytes, couts * plane_bytes, kTensorAlignment},
                         {of.side, rows, b.couts, of.images, 1},
                         false};
  return make_tensor_map(box, &b.map);
}

template <typename C, typename T>
cudaError_t launch_kernel(void (*kernel)(Params<T>), const Problem& unfolded, const ImplicitGemmLaunch& t,
                          const void* workspace, cudaStream_t stream) {
  const auto log2 = [](int power) {
    int log = 0;
    while (1 << log < power) ++log;
    return log;
  };
  const Problem problem = folded(unfolded, t.fold_h, t.fold_w);
  Params<T> p = {};
  set_problem(p, problem);
  p.output_stride = dense_output_strides(unfolded);
  p.fold_row = p.output_stride.h;
  p.output_stride.h *= t.fold_h;
  p.output_stride.w *= t.fold_w;
  p.log2_fold_h = log2(t.fold_h);
  p.log2_fold_w = log2(t.fold_w);
  p.padding_h = static_cast<int>(problem.h.padding);
  p.padding_w = static_cast<int>(problem.w.padding);
  p.phases_h = t.phases_h;
  p.phases_w = t.phases_w;
  for (int phase = 0; phase < kKnownPhases; ++phase) {
    p.known_taps_h[phase] = find_taps(p.phases_h, p.padding_h, phase);
    p.known_taps_w[phase] = find_taps(p.phases_w, p.padding_w, phase);
  }
  p.phases_together = t.phases_together;
  p.clusters = t.grid / t.cluster();
  p.works = static_cast<int>(t.works());
  p.cout_groups = static_cast<int>(t.cout_groups());
  p.phases = static_cast<int>(t.phases());
  p.phase_columns = t.phases_w.stride / t.phases_together;
  p.pixel_groups = static_cast<int>(t.pixel_groups());
  p.tiles_before_turn = std::max(p.clusters / (p.cout_groups * p.phases), 1);
  p.cluster_rows = t.cluster_rows;
  p.cluster_pixels = t.cluster_pixels;
  p.splits = t.splits;
  p.log2_cluster = log2(t.cluster());
  p.tiles_w = static_cast<int>(t.tiles_w);
  p.tiles_h = static_cast<int>(t.tiles_h);
  p.cols = t.cols;
  p.rows = t.rows;
  p.images = t.images;
  p.image_w = static_cast<int>(problem.w.input);
  p.image_pixels = t.flat ? static_cast<int>(problem.h.input * problem.w.input) : 1;
  p.flat_pixels = t.flat && !t.halos ? static_cast<int>(problem.batch) * p.image_pixels : 0;
  p.share_images = t.images;
  p.share_rows = t.rows;
  p.share_cols = t.cols;
  for (int* side : {&p.share_images, &p.share_rows, &p.share_cols}) {
    if (*side % t.cluster_rows != 0) continue;
    *side /= t.cluster_rows;
    break;
  }
  p.chunks = t.chunks;
  p.stages = t.stages;
  p.columns = t.columns();
  p.lines = t.lines();
  p.shared = implicit_gemm_shared(t);
  p.groups = static_cast<int>(problem.groups);
  const int copied = t.halos ? 0 : t.blocks ? C::kPixels : t.images * t.rows * t.cols;
  p.halo_cols = t.halo_cols;
  p.halo_pitch = t.halo_pitch;
  p.halo_rows = t.halo_rows;
  p.halo_stages = t.halo_stages;
  p.halo_flat = t.flat;
  p.keeps_weight = t.keeps_weight;
  p.halo_bytes = static_cast<unsigned>(t.halo_bytes());
  p.expected_bytes =
      static_cast<unsigned>(p.shared.weight_bytes) + static_cast<unsigned>(C::kParts * copied * kLine);
  constexpr int kSize = sizeof(T);
  p.store_elements = aligned_bytes(problem.output, t.store_elements * kSize) / kSize;
  p.output_channels_last = problem.output_channels_last;
  p.halo_stores_pairs =
      p.store_elements >= 2 &&
      (t.sizes().row_taps > 1 ||
       (p.activation.is_identity() && (problem.output_channels_last || t.fold_w * t.phases_together >= 2)));
  const bool runs = t.halo_runs && is_aligned(problem.output, kTensorAlignment);
  p.run_pitch = runs ? static_cast<unsigned>(halo_gemm_run_pitch(t)) : 0;
  p.runs_of_image = 2 * t.fold_h + 1;
  p.run_images = t.images;
  p.after_turning = t.turns_input || t.turns_weight;
  cudaError_t error = make_input_map(problem, t, workspace, p);
  if (error == cudaSuccess) error = make_weight_map(problem, t, workspace, p);
  const bool boxed = t.box.count > 0 && is_aligned(problem.output, kTensorAlignment);
  if (error == cudaSuccess && boxed) error = make_boxes(problem, t, p);
  if (error == cudaSuccess) error = allow_shared_memory(kernel, t.shared_limit);
  if (error != cudaSuccess) return error;
  return launch_early(kernel, t.grid, C::kBlockThreads, t.shared_bytes, stream, p, t.cluster(),
                      p.after_turning);
}

template <typename C, typename T>
cudaError_t launch_config(const Problem& problem, const ImplicitGemmLaunch& launch, const void* workspace,
                          cudaStream_t stream) {
  return launch_kernel<C>(implicit_gemm_kernel<C, T>, problem, launch, workspace, stream);
}

// Calls the instantiation for launch.config.
template <typename T, int kParts = 1, int kIndex = 0>
cudaError_t launch_for(const Problem& problem, const ImplicitGemmLaunch& launch, const void* workspace,
                       cudaStream_t stream) {
  if constexpr (kIndex < kImplicitGemmConfigCount) {
    if (launch.config != kIndex || launch.parts != kParts)
      return launch_for<T, kParts, kIndex + 1>(problem, launch, workspace, stream);
    constexpr ImplicitGemmConfig kSizes = kImplicitGemmConfigs[kIndex];
    const bool narrow = launch.columns() < kSizes.columns() || launch.splits > 1;
    if constexpr (sizeof(T) == 2 && !kSizes.alternates) {
      if (launch.blocks && !narrow)
        return launch_config<Config<kIndex, true, 1, false>, T>(problem, launch, workspace, stream);
    }
    if (launch.blocks) return cudaErrorInvalidValue;
    // The sums of split operands are there twice.
    if constexpr (kParts == 1 || (kSizes.columns() == 128 && !kSizes.alternates)) {
      return narrow
                 ? launch_config<Config<kIndex, false, kParts, true>, T>(problem, launch, workspace, stream)
                 : launch_config<Config<kIndex, false, kParts, false>, T>(problem, launch, workspace, stream);
    } else {
      return cudaErrorInvalidValue;
    }
  } else {
    return cudaErrorInvalidValue;
  }
}

}  // namespace implicit_gemm
}  // namespace convt
