// pixel_gemm: input images of one pixel, as one matrix product for each group.
//
// An input pixel at (0, 0) reaches output o of an axis through tap k where o + padding = k * dilation, so an
// output sees one tap at most, whatever the stride. With columns = the outputs of one image and group,
//
//   y[image][column] = bias + sum over channels of  x[image][channel] * w[channel][tap of column]
//
// Rows of the product are images, columns are numbered as outputs lie in memory. There is no phase, no halo
// and nothing to gather, and what is left is latency: one launch, nothing packed before, and a thread block
// begins to load all that it needs, up to kPixelGemmStages chunks of channels, before it waits for any.
//
//   Load      cp.async into a ring of stages. Where the taps lie in the order of the outputs (a contiguous
//             weight and NCHW, a channels_last one and NHWC; no padding, no dilation), columns are copied
//             as they lie, up to 16 bytes at once. Where they would but for the weight's layout (a
//             channels_last one and NCHW), a thread block's columns are output channels with 8 taps, or 4,
//             and neighbouring output channels of a tap are copied at once, into lines tap by tap. Else
//             columns are copied element by element, each thread its own.
//   Multiply  a warp has 16 * kBlocks rows x 32 columns, as four tiles of 8. A fragments come by ldmatrix.
//             Column n of tile j is the warp's column first_column(n) + j: a lane reads its columns of all
//             four tiles at once (one by one where lines are tap by tap), and of 16 bits pairs channels by
//             byte permutations.
//   Store     by that numbering a lane's sums of a row are whole pieces of 16 bytes of the output, and those
//             of four lanes lie side by side: they go from registers to memory.
//
// float32 is multiplied as TF32: rounded, one product for each term, or split into two parts in registers,
// three products, whose sums are added to float32 after each chunk (convt/device/tf32.cuh).
//
// Outputs that no tap reaches get the bias, not products by zeros: non-finite values land where the
// definition puts them (on tensor cores an infinite sum may show as NaN).
#pragma once

#include <cuda_runtime_api.h>

#include "convt/alignment.h"
#include "convt/device/activation.cuh"
#include "convt/device/async_copy.cuh"
#include "convt/device/launch.cuh"
#include "convt/device/mma.cuh"
#include "convt/device/scalar.cuh"
#include "convt/device/tf32.cuh"
#include "convt/divisor.h"
#include "convt/kernels.h"
#include "convt/pixel_gemm.h"

namespace convt {
namespace pixel_gemm {

// What the pieces of the kernel are compiled for.
template <typename T, int kIndex, int kOperandParts>
struct Config {
  static constexpr PixelGemmConfig kShape = kPixelGemmConfigs[kIndex];
  static constexpr PixelGemmShared kShared = pixel_gemm_shared(kShape, sizeof(T), kPixelGemmStages);
  static constexpr int kParts = kOperandParts;
  static constexpr int kBlocks = kShape.row_blocks;
  static constexpr int kRows = kShape.rows(), kColumns = kShape.columns(), kThreads = kShape.threads();
  static constexpr int kStepChannels = kPixelGemmStepBytes / static_cast<int>(sizeof(T));
  static constexpr int kChunkChannels = kPixelGemmChunkBytes / static_cast<int>(sizeof(T));
};

// Tiles of 8 columns of a warp, and a lane's columns of a row.
inline constexpr int kTiles = kPixelGemmWarpColumns / 8;
inline constexpr int kLaneColumns = 2 * kTiles;
// Bytes of a row's channels that a product of tensor cores takes.
inline constexpr int kProductBytes = 32;
inline constexpr int kStepProducts = kPixelGemmStepBytes / kProductBytes;

template <typename T>
struct Params {
  const T* input;
  const T* weight;
  const T* bias;
  T* output;
  ActivationStrides input_stride, output_stride;
  WeightStrides weight_stride;
  int64_t bias_stride;
  ActivationParams<float> activation;

  int batch, cin_per_group, cout_per_group;
  int input_h, input_w, output_h, output_w;
  int padding_h, padding_w;
  int kernel_h, kernel_w;
  Divisor<int> dilation_h, dilation_w;

  Divisor<int> image_tiles, column_tiles, tap_tiles;  // innermost first; then groups
  int columns, chunks, steps;
  // A column is an output channel and one of `pixels` outputs, the last of them innermost in NCHW, and in
  // lines of row_pixels. By taps, the outputs are 1 << tap_bits of a tile, and lines are of the whole image.
  Divisor<int> couts, pixels, row_pixels;
  int tap_bits;
  bool output_channels_last;
  // Whether lines of the weight are copied tap by tap.
  bool tap_by_tap;
  // Columns that lie side by side: all, or those of one output pixel, or those of one output channel; from
  // one run to the next, and from one group.
  Divisor<int> run;
  int64_t run_step, group_step;
  int input_bytes, weight_bytes, store_bytes;
};

// The thread block's share of the problem.
struct Tile {
  int first_image, first_column, first_tap, group;
};

template <typename Config, typename T>
__device__ inline Tile locate(const Params<T>& p, int block) {
  const auto by_column = p.image_tiles.divide(block);
  const auto by_tap = p.column_tiles.divide(by_column.quotient);
  const auto by_group = p.tap_tiles.divide(by_tap.quotient);
  return {by_column.remainder * Config::kRows, by_tap.remainder * Config::kColumns,
          by_group.remainder * p.pixels, by_group.quotient};
}

// A column of a tile: its output channel, and where its tap lies in a channel of the weight, if it has one.
struct Column {
  int cout;
  bool reached;
  int64_t weight;
};

template <typename T>
__device__ inline Column find_column(const Params<T>& p, const Tile& tile, int own) {
  const int number = tile.first_column + own;
  const auto place = p.output_channels_last ? p.couts.divide(number) : p.pixels.divide(number);
  const int cout = p.output_channels_last ? place.remainder : place.quotient;
  const auto pixel =
      p.row_pixels.divide(tile.first_tap + (p.output_channels_last ? place.quotient : place.remainder));
  const auto tap_h = p.dilation_h.divide(pixel.quotient + p.padding_h);
  const auto tap_w = p.dilation_w.divide(pixel.remainder + p.padding_w);
  const bool on_grid = tap_h.remainder == 0 && tap_w.remainder == 0;
  return {cout, number < p.columns && on_grid && tap_h.quotient < p.kernel_h && tap_w.quotient < p.kernel_w,
          cout * p.weight_stride.cout + tap_h.quotient * p.weight_stride.kh +
              tap_w.quotient * p.weight_stride.kw};
}

// ---------------------------------------------------------------- load

// Lines of an operand: `count` of them exist, `step` elements apart; of each, elements below `elements`.
template <typename T>
struct Lines {
  const T* first;
  int64_t step;
  int count, elements;
};

// An element of each line: how far it lies from the line's first, if it exists.
struct Element {
  int64_t offset;
  bool exists;
};

// Neighbouring elements of each line: how far the first lies from the line's first, there and in shared
// memory, and how many exist.
struct Piece {
  int64_t offset;
  int place, elements;
};

// Copies a piece of this thread, number threadIdx.x % kVectors, of each of the first end_line lines, kBytes
// at once, elements that do not exist as zeros.
template <int kBytes, int kVectors, int kThreads, typename T>
__device__ inline void copy_pieces(const Lines<T>& lines, const Piece& piece, int end_line, int pitch,
                                   unsigned shared) {
  static_assert(kThreads % kVectors == 0);
  constexpr int kSize = static_cast<int>(sizeof(T));
  const int read = min(max(piece.elements, 0), kBytes / kSize) * kSize;
  int line = static_cast<int>(threadIdx.x) / kVectors;
  const T* source = lines.first + line * lines.step + piece.offset;
  unsigned destination = shared + line * pitch + piece.place * kSize;
#pragma unroll 4
  for (; line < end_line; line += kThreads / kVectors) {
    copy_async_padded<kBytes>(destination, source, line < lines.count ? read : 0);
    source += kThreads / kVectors * lines.step;
    destination += kThreads / kVectors * pitch;
  }
}

// Copies elements that lie side by side: the first end_element of each of the first end_line lines of
// kElements.
template <int kBytes, int kElements, int kThreads, typename T>
__device__ inline void copy_lines(const Lines<T>& lines, int end_line, int end_element, int pitch,
                                  unsigned shared) {
  constexpr int kVector = kBytes / static_cast<int>(sizeof(T)), kVectors = kElements / kVector;
  const int element = static_cast<int>(threadIdx.x) % kVectors * kVector;
  if (element >= end_element) return;
  copy_pieces<kBytes, kVectors, kThreads>(lines, {element, element, lines.elements - element}, end_line,
                                          pitch, shared);
}

// The same of elements anywhere: `element` is that of this thread, number threadIdx.x % kElements.
template <int kElements, int kThreads, typename T>
__device__ inline void copy_elements(const Lines<T>& lines, const Element& element, int end_line, int pitch,
                                     unsigned char* shared) {
  static_assert(kThreads % kElements == 0);
  constexpr int kAtOnce = 8, kLinesAtOnce = kThreads / kElements;
  const int thread = static_cast<int>(threadIdx.x);
  int line = thread / kElements;
  const T* source = lines.first + line * lines.step + element.offset;
  unsigned char* destination = shared + line * pitch + thread % kElements * static_cast<int>(sizeof(T));
#pragma unroll 1
  for (; line < end_line; line += kAtOnce * kLinesAtOnce) {
    [[maybe_unused]] T values[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const bool exists = element.exists && line + i * kLinesAtOnce < lines.count;
      const T* const at = source + i * kLinesAtOnce * lines.step;
      if constexpr (sizeof(T) >= kLeastCopyBytes) {
        if (line + i * kLinesAtOnce < end_line) {
          copy_async<sizeof(T)>(destination + i * kLinesAtOnce * pitch, at, exists);
        }
      } else {
        values[i] = exists ? *at : narrow<T>(0.0f);
      }
    }
    if constexpr (sizeof(T) < kLeastCopyBytes) {
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (line + i * kLinesAtOnce < end_line) {
          *reinterpret_cast<T*>(destination + i * kLinesAtOnce * pitch) = values[i];
        }
      }
    }
    source += kAtOnce * kLinesAtOnce * lines.step;
    destination += kAtOnce * kLinesAtOnce * pitch;
  }
}

// Lines that are copied tap by tap keep output channels side by side, and a lane's four columns, taps of one
// output channel, at distances that do not depend on how many taps a tile has: a place has number `tap` % 4,
// and `rest`, of the other taps and the output channel. So laid out, lanes of a warp meet the same bank at
// most twice, and in tiles of 64 columns with 8 taps never, for which lines of 256 bytes have an order of
// their own.
template <typename T, int kColumns>
__device__ constexpr int place_of(int tap, int rest) {
  if constexpr (kColumns * sizeof(T) == 256) {
    return tap / 2 * (kColumns / 2) + rest / 8 * 16 + tap % 2 * 8 + rest % 8;
  } else {
    return tap * (kColumns / 4) + rest;
  }
}

template <typename T, int kColumns>
__device__ inline int place_of(const Params<T>& p, int tap, int cout) {
  return place_of<T, kColumns>(tap % 4, tap / 4 * (kColumns >> p.tap_bits) + cout);
}

// Where the tile's column `own` lies in a line.
template <typename T, int kColumns>
__device__ inline int place_of_column(const Params<T>& p, int own) {
  if (!p.tap_by_tap) return own;
  return place_of<T, kColumns>(p, own & ((1 << p.tap_bits) - 1), own >> p.tap_bits);
}

// The piece of this thread: kVector output channels of a tap, or columns where the taps are in their order.
template <int kVector, int kColumns, typename T>
__device__ inline Piece find_piece(const Params<T>& p, const Tile& tile) {
  const int own = afresh(static_cast<int>(threadIdx.x)) % (kColumns / kVector) * kVector;
  if (!p.tap_by_tap) {
    const int column = tile.first_column + own;
    return {column, own, p.columns - column};
  }
  const int couts = kColumns >> p.tap_bits;
  const int tap = (own << p.tap_bits) / kColumns, cout = own & (couts - 1);
  const Column column = find_column(p, tile, cout << p.tap_bits | tap);
  return {column.weight, place_of<T, kColumns>(p, tap, cout), p.couts - column.cout};
}

// Starts to copy a chunk of both operands: as many channels as its steps have.
template <typename Config, typename T>
__device__ inline void stage_chunk(const Params<T>& p, const Tile& tile, int chunk, unsigned char* stage) {
  constexpr PixelGemmShared kShared = Config::kShared;
  constexpr int kThreads = Config::kThreads, kSize = static_cast<int>(sizeof(T));
  const int first_channel = chunk * Config::kChunkChannels, channels = p.cin_per_group - first_channel;
  const int steps = min(kPixelGemmChunkSteps, p.steps - chunk * kPixelGemmChunkSteps);
  const int end_channel = steps * Config::kStepChannels;
  const int64_t channel = static_cast<int64_t>(tile.group) * p.cin_per_group + first_channel;

  Lines<T> lines = {p.input + tile.first_image * p.input_stride.n + channel * p.input_stride.c,
                    p.input_stride.n, p.batch - tile.first_image, channels};
  with_width_from<kSize>(p.input_bytes, [&](auto width) {
    constexpr int kBytes = decltype(width)::value;
    if constexpr (kBytes > kSize) {
      copy_lines<kBytes, Config::kChunkChannels, kThreads>(lines, Config::kRows, end_channel,
                                                           kShared.input_pitch, shared_address(stage));
    } else {
      const int own = static_cast<int>(threadIdx.x) % Config::kChunkChannels;
      copy_elements<Config::kChunkChannels, kThreads>(lines, {own * p.input_stride.c, own < channels},
                                                      Config::kRows, kShared.input_pitch, stage);
    }
  });

  stage += kShared.weight_offset;
  lines = {p.weight + channel * p.weight_stride.cin, p.weight_stride.cin, channels,
           p.columns - tile.first_column};
  with_width_from<kSize>(p.weight_bytes, [&](auto width) {
    constexpr int kBytes = decltype(width)::value;
    if constexpr (kBytes > kSize) {
      constexpr int kVector = kBytes / kSize;
      copy_pieces<kBytes, Config::kColumns / kVector, kThreads>(
          lines, find_piece<kVector, Config::kColumns>(p, tile), end_channel, kShared.weight_pitch,
          shared_address(stage));
    } else {
      const int own = afresh(static_cast<int>(threadIdx.x)) % Config::kColumns;
      const Column column = find_column(p, tile, own);
      copy_elements<Config::kColumns, kThreads>(lines, {column.weight, column.reached}, end_channel,
                                                kShared.weight_pitch, stage);
    }
  });
}

// What the epilogue needs to know of a column.
struct ColumnEnd {
  float bias;
  int reached;
};

template <typename Config, typename T>
__device__ inline void describe_columns(const Params<T>& p, const Tile& tile, ColumnEnd* ends) {
  const int own = static_cast<int>(threadIdx.x);
  if (own >= Config::kColumns || tile.first_column + own >= p.columns) return;
  const Column column = find_column(p, tile, own);
  const int64_t cout = static_cast<int64_t>(tile.group) * p.cout_per_group + column.cout;
  ends[own] = {p.bias == nullptr ? 0.0f : widen(p.bias[cout * p.bias_stride]), column.reached};
}

// ---------------------------------------------------------------- multiply

// A lane's value v of a row is sum v / kTiles of tile v % kTiles, that of the warp's column
// run_column<T>(v): pieces of 16 bytes, each beside those of the other lanes of the row.
template <typename T>
__device__ inline int run_column(int member, int v) {
  constexpr int kRun = 16 / static_cast<int>(sizeof(T));
  return v / kRun * (4 * kRun) + member * kRun + v % kRun;
}

// The warp's column that column `n` of tile 0 stands for; that of tile j is j further on. A lane holds sums
// of columns 2 * member and 2 * member + 1 of each tile.
template <typename T>
__device__ inline int first_column(int n) {
  return run_column<T>(n / 2, n % 2 * kTiles);
}

// B fragments of a product: registers b[0], and b[1], of the four tiles. `weight` is the lane's first column
// in the product's first channel.
template <typename T>
__device__ inline void read_weight(const unsigned char* weight, int pitch, uint4 (&b)[2]) {
  const int member = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if constexpr (sizeof(T) == 4) {
      b[half] = *reinterpret_cast<const uint4*>(weight + (4 * half + member) * pitch);
    } else {
      // Four columns of two neighbouring channels, turned.
      const unsigned char* const at = weight + (8 * half + 2 * member) * pitch;
      const uint2 even = *reinterpret_cast<const uint2*>(at);
      const uint2 odd = *reinterpret_cast<const uint2*>(at + pitch);
      b[half] = make_uint4(__byte_perm(even.x, odd.x, 0x5410), __byte_perm(even.x, odd.x, 0x7632),
                           __byte_perm(even.y, odd.y, 0x5410), __byte_perm(even.y, odd.y, 0x7632));
    }
  }
}

// The same of lines that were copied tap by tap.
template <typename T, int kColumns>
__device__ inline void read_weight_of_taps(const unsigned char* weight, int pitch, uint4 (&b)[2]) {
  const int member = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    unsigned words[kTiles];
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      const unsigned char* at = weight + place_of<T, kColumns>(j, 0) * static_cast<int>(sizeof(T));
      if constexpr (sizeof(T) == 4) {
        words[j] = *reinterpret_cast<const unsigned*>(at + (4 * half + member) * pitch);
      } else {
        at += (8 * half + 2 * member) * pitch;
        words[j] = __byte_perm(*reinterpret_cast<const unsigned short*>(at),
                               *reinterpret_cast<const unsigned short*>(at + pitch), 0x5410);
      }
    }
    b[half] = make_uint4(words[0], words[1], words[2], words[3]);
  }
}

// What a lane holds of both operands in one step.
template <typename Config>
struct Operands {
  uint4 a[kStepProducts][Config::kBlocks];
  uint4 b[kStepProducts][2];
};

// `input` is the lane's row of ldmatrix, `weight` as in read_weight.
template <typename Config, typename T>
__device__ inline Operands<Config> read_operands(unsigned input, const unsigned char* weight,
                                                 bool tap_by_tap) {
  constexpr PixelGemmShared kShared = Config::kShared;
  constexpr int kPitch = kShared.weight_pitch, kProductChannels = kProductBytes / static_cast<int>(sizeof(T));
  Operands<Config> operands;
  if (tap_by_tap) {
#pragma unroll
    for (int k = 0; k < kStepProducts; ++k) {
      read_weight_of_taps<T, Config::kColumns>(weight + k * kProductChannels * kPitch, kPitch, operands.b[k]);
    }
  } else {
#pragma unroll
    for (int k = 0; k < kStepProducts; ++k) {
      read_weight<T>(weight + k * kProductChannels * kPitch, kPitch, operands.b[k]);
    }
  }
#pragma unroll
  for (int k = 0; k < kStepProducts; ++k) {
#pragma unroll
    for (int i = 0; i < Config::kBlocks; ++i) {
      unsigned r[4];
      load_matrices(input + k * kProductBytes + 16 * i * kShared.input_pitch, r);
      operands.a[k][i] = make_uint4(r[0], r[1], r[2], r[3]);
    }
  }
  return operands;
}

// Whether all numbers of a warp are ordinary.
template <typename Config>
__device__ inline bool are_ordinary(const Operands<Config>& operands) {
  OrdinaryTest ordinary;
#pragma unroll
  for (int k = 0; k < kStepProducts; ++k) {
    ordinary.add(operands.b[k][0]);
    ordinary.add(operands.b[k][1]);
#pragma unroll
    for (int i = 0; i < Config::kBlocks; ++i) ordinary.add(operands.a[k][i]);
  }
  return ordinary.passes();
}

template <typename Config>
using Sums = float[Config::kBlocks][kTiles][4];

template <typename Config, typename Operation>
__device__ inline void for_each_sum(const Operation& operation) {
#pragma unroll
  for (int i = 0; i < Config::kBlocks; ++i) {
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
#pragma unroll
      for (int k = 0; k < 4; ++k) operation(i, j, k);
    }
  }
}

template <typename Config>
__device__ inline void clear(Sums<Config>& sums) {
  for_each_sum<Config>([&sums](int i, int j, int k) { sums[i][j][k] = 0.0f; });
}

// sums += a * b for one block of rows and all tiles.
template <typename T>
__device__ inline void multiply_tiles(const FragmentA& a, const uint4& b0, const uint4& b1,
                                      float (&sums)[kTiles][4]) {
  multiply_add<T>(sums[0], a, b0.x, b1.x);
  multiply_add<T>(sums[1], a, b0.y, b1.y);
  multiply_add<T>(sums[2], a, b0.z, b1.z);
  multiply_add<T>(sums[3], a, b0.w, b1.w);
}

// Products of a first and a second part go to `mixed`, which has kSecondPartScale times their sums.
template <typename Config, typename T, bool kOrdinary>
__device__ inline void multiply_operands(const Operands<Config>& operands, Sums<Config>& sums,
                                         [[maybe_unused]] Sums<Config>& mixed) {
  constexpr int kParts = Config::kParts;
#pragma unroll
  for (int k = 0; k < kStepProducts; ++k) {
    uint4 b0[kParts] = {operands.b[k][0]}, b1[kParts] = {operands.b[k][1]};
    if constexpr (sizeof(T) == 4) {
      split_words<kOrdinary>(operands.b[k][0], b0);
      split_words<kOrdinary>(operands.b[k][1], b1);
    }
#pragma unroll
    for (int i = 0; i < Config::kBlocks; ++i) {
      FragmentA a[kParts] = {operands.a[k][i]};
      if constexpr (sizeof(T) == 4) split_words<kOrdinary>(operands.a[k][i], a);
      multiply_tiles<T>(a[0], b0[0], b1[0], sums[i]);
      if constexpr (kParts == 2) {
        multiply_tiles<T>(a[0], b0[1], b1[1], mixed[i]);
        multiply_tiles<T>(a[1], b0[0], b1[0], mixed[i]);
      }
    }
  }
}

template <typename Config, typename T>
__device__ inline void multiply_steps(int steps, unsigned input, const unsigned char* weight, bool tap_by_tap,
                                      Sums<Config>& sums, Sums<Config>& mixed) {
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    const Operands<Config> operands = read_operands<Config, T>(input, weight, tap_by_tap);
    if (sizeof(T) == 4 && !are_ordinary(operands)) {
      multiply_operands<Config, T, false>(operands, sums, mixed);
    } else {
      multiply_operands<Config, T, true>(operands, sums, mixed);
    }
    input += kPixelGemmStepBytes;
    weight += Config::kStepChannels * Config::kShared.weight_pitch;
  }
}

// A chunk of a warp.
template <typename Config, typename T>
__device__ inline void multiply_chunk(int steps, unsigned input, const unsigned char* weight, bool tap_by_tap,
                                      Sums<Config>& sums) {
  if constexpr (Config::kParts == 1) {
    multiply_steps<Config, T>(steps, input, weight, tap_by_tap, sums, sums);
  } else {
    // Tensor cores cut sums off where they add: the sums of a chunk begin at zero and are added to the others
    // in float32.
    Sums<Config> few, mixed;
    clear<Config>(few);
    clear<Config>(mixed);
    multiply_steps<Config, T>(steps, input, weight, tap_by_tap, few, mixed);
    for_each_sum<Config>([&](int i, int j, int k) {
      sums[i][j][k] += few[i][j][k] + mixed[i][j][k] * (1 / kSecondPartScale);
    });
  }
}

// ---------------------------------------------------------------- store

// Writes neighbouring outputs at once.
template <int kBytes, typename T>
__device__ inline void store_values(T* place, const float* values) {
  if constexpr (kBytes < 4) {
    *place = narrow<T>(values[0]);
  } else {
    constexpr int kWords = kBytes / 4;
    unsigned words[kWords];
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      if constexpr (sizeof(T) == 4) {
        words[i] = __float_as_uint(values[i]);
      } else {
        words[i] = pack_pair<T>(values[2 * i], values[2 * i + 1]);
      }
    }
    if constexpr (kWords == 1) {
      *reinterpret_cast<unsigned*>(place) = words[0];
    } else if constexpr (kWords == 2) {
      *reinterpret_cast<uint2*>(place) = make_uint2(words[0], words[1]);
    } else {
      *reinterpret_cast<uint4*>(place) = make_uint4(words[0], words[1], words[2], words[3]);
    }
  }
}

// Bias, activation, rounding and stores of a warp's sums. `ends` are those of its columns.
template <typename Config, typename T>
__device__ inline void store_sums(const Params<T>& p, const Tile& tile, int warp_row, int warp_column,
                                  const ColumnEnd* ends, const Sums<Config>& sums) {
  constexpr int kSize = static_cast<int>(sizeof(T)), kLaneRows = 2 * Config::kBlocks;
  const int group = static_cast<int>(threadIdx.x) % 32 / 4, member = static_cast<int>(threadIdx.x) % 4;
  float values[kLaneRows * kLaneColumns];
#pragma unroll
  for (int v = 0; v < kLaneColumns; ++v) {
    const ColumnEnd end = ends[run_column<T>(member, v)];
#pragma unroll
    for (int row = 0; row < kLaneRows; ++row) {
      const float sum = sums[row / 2][v % kTiles][row % 2 * 2 + v / kTiles];
      values[row * kLaneColumns + v] = (end.reached != 0 ? sum : 0.0f) + end.bias;
    }
  }
  if (!p.activation.is_identity()) activate_sums<T, 1>(p.activation, values);

  const int image = tile.first_image + warp_row + group, column = tile.first_column + warp_column;
  T* const of_image = p.output + image * p.output_stride.n + tile.group * p.group_step + tile.first_tap;
  with_width_from<kSize>(p.store_bytes, [&](auto width) {
    constexpr int kBytes = decltype(width)::value, kVector = kBytes / kSize;
#pragma unroll
    for (int v = 0; v < kLaneColumns; v += kVector) {
      const int number = column + run_column<T>(member, v);
      if (number >= p.columns) continue;
      const auto place = p.run.divide(number);
      T* const of_column = of_image + place.quotient * p.run_step + place.remainder;
#pragma unroll
      for (int row = 0; row < kLaneRows; ++row) {
        if (image + 8 * row >= p.batch) continue;
        store_values<kBytes>(of_column + 8 * row * p.output_stride.n, values + row * kLaneColumns + v);
      }
    }
  });
}

// ---------------------------------------------------------------- kernel

// Waits until at most kPending of the groups of copies are unfinished, in all threads of the block.
template <int kPending>
__device__ inline void await_copies() {
  wait_for_copies_but<kPending>();
  __syncthreads();
}

// Blocks that an SM must have registers for; 0 leaves that to the compiler, which for compute capability 10.0
// takes fewer than it needs.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
inline constexpr int kMinBlocks = 1;
#else
inline constexpr int kMinBlocks = 0;
#endif

template <typename T, typename Config>
__global__ void __launch_bounds__(Config::kThreads, kMinBlocks)
    pixel_gemm_kernel(const __grid_constant__ Params<T> p, int columns_offset) {
  extern __shared__ __align__(16) unsigned char shared[];
  ColumnEnd* const ends = reinterpret_cast<ColumnEnd*>(shared + columns_offset);
  constexpr PixelGemmShared kShared = Config::kShared;
  const Tile tile = locate<Config>(p, static_cast<int>(blockIdx.x));
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int warp_row = warp / Config::kShape.warps_n * (16 * Config::kBlocks);
  const int warp_column = warp % Config::kShape.warps_n * kPixelGemmWarpColumns;
  const int input_offset = (warp_row + lane % 16) * kShared.input_pitch + lane / 16 * 16;
  const int weight_place = place_of_column<T, Config::kColumns>(p, warp_column + first_column<T>(lane / 4));
  const int weight_offset = kShared.weight_offset + weight_place * static_cast<int>(sizeof(T));
  const auto stage_of = [](int chunk) {
    return static_cast<unsigned>(chunk) % kPixelGemmStages * Config::kShared.stage_bytes;
  };

  Sums<Config> sums;
  clear<Config>(sums);
  // Each turn starts to copy a chunk, and multiplies the one of kPixelGemmStages - 1 turns before.
#pragma unroll 1
  for (int chunk = 1 - kPixelGemmStages; chunk < p.chunks; ++chunk) {
    // The chunk is here, and nobody multiplies the one before any more, whose stage is filled next.
    if (chunk > 0) await_copies<kPixelGemmStages - 2>();
    const int next = chunk + kPixelGemmStages - 1;
    if (next < p.chunks) stage_chunk<Config>(p, tile, next, shared + stage_of(next));
    commit_copies();
    if (chunk < 0) continue;
    if (chunk == 0) {
      // All stages are empty at first, so the first chunk waits for nothing but itself.
      describe_columns<Config>(p, tile, ends);
      await_copies<kPixelGemmStages - 1>();
    }
    const unsigned char* const stage = shared + stage_of(chunk);
    multiply_chunk<Config, T>(min(kPixelGemmChunkSteps, p.steps - chunk * kPixelGemmChunkSteps),
                              shared_address(stage + input_offset), stage + weight_offset, p.tap_by_tap,
                              sums);
  }
  store_sums<Config>(p, tile, warp_row, warp_column, ends + warp_column, sums);
}

// ---------------------------------------------------------------- launch

template <typename T>
Params<T> make_params(const Problem& problem, const PixelGemmLaunch& launch) {
  Params<T> p;
  set_problem(p, problem);
  p.weight = static_cast<const T*>(problem.weight);
  p.weight_stride = problem.weight_stride;
  p.padding_h = static_cast<int>(problem.h.padding);
  p.padding_w = static_cast<int>(problem.w.padding);
  p.kernel_h = static_cast<int>(problem.h.kernel);
  p.kernel_w = static_cast<int>(problem.w.kernel);
  p.dilation_h = static_cast<int>(problem.h.dilation);
  p.dilation_w = static_cast<int>(problem.w.dilation);
  p.image_tiles = static_cast<int>(launch.image_tiles);
  p.column_tiles = static_cast<int>(launch.column_tiles);
  const bool by_taps = launch.taps != 0;
  p.tap_tiles = static_cast<int>(launch.tap_tiles);
  p.columns = by_taps ? p.cout_per_group * launch.taps : launch.columns;
  p.chunks = launch.chunks;
  constexpr int kStepChannels = kPixelGemmStepBytes / static_cast<int>(sizeof(T));
  p.steps = (p.cin_per_group + kStepChannels - 1) / kStepChannels;
  p.couts = p.cout_per_group;
  p.pixels = by_taps ? launch.taps : p.output_h * p.output_w;
  p.tap_bits = launch.taps == 8 ? 3 : 2;
  p.row_pixels = p.output_w;
  p.output_channels_last = problem.output_channels_last;
  const bool in_runs = problem.output_channels_last && problem.groups > 1;
  p.run = in_runs ? p.cout_per_group : by_taps ? launch.taps : p.columns;
  p.run_step = in_runs ? problem.cout() : p.output_h * p.output_w;
  p.group_step = in_runs ? p.cout_per_group : launch.columns;
  // The plan knows sizes and strides; the addresses may allow less.
  p.input_bytes = aligned_bytes(p.input, launch.input_bytes);
  p.weight_bytes = aligned_bytes(p.weight, launch.weight_bytes);
  p.tap_by_tap = by_taps && p.weight_bytes > static_cast<int>(sizeof(T));
  p.store_bytes = aligned_bytes(p.output, launch.store_bytes);
  return p;
}

template <typename T, typename Config>
cudaError_t launch_config(const Problem& problem, const PixelGemmLaunch& launch, cudaStream_t stream) {
  auto* kernel = pixel_gemm_kernel<T, Config>;
  const cudaError_t error = allow_shared_memory(kernel, launch.shared_limit);
  if (error != cudaSuccess) return error;
  const PixelGemmShared shared = pixel_gemm_shared(Config::kShape, sizeof(T), launch.chunks);
  kernel<<<static_cast<unsigned>(launch.blocks()), Config::kThreads, launch.shared_bytes, stream>>>(
      make_params<T>(problem, launch), static_cast<int>(shared.columns_offset));
  return cudaGetLastError();
}

// Calls the instantiation for launch.config.
template <typename T, int kParts = 1, int kIndex = 0>
cudaError_t launch_for(const Problem& problem, const PixelGemmLaunch& launch, cudaStream_t stream) {
  if constexpr (kIndex < kPixelGemmConfigCount) {
    if (launch.config == kIndex) {
      return launch_config<T, Config<T, kIndex, kParts>>(problem, launch, stream);
    }
    return launch_for<T, kParts, kIndex + 1>(problem, launch, stream);
  } else {
    return cudaErrorInvalidValue;
  }
}

}  // namespace pixel_gemm
}  // namespace convt
