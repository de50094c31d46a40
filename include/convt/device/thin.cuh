// thin: few output channels per group, or few input channels. The products of all taps along W are rows of
// one matrix product, and outputs gather those of their taps.
//
// With the taps of a phase along H written as offsets from a point q (AxisTaps), rows m = (cout, phase along
// H, kw) and columns = input pixels of a row,
//
//   products[m][q][iw] = sum over offsets, channels of  w[channel][cout][kh][kw] * x[channel][q + offset][iw]
//   y[cout][o]         = bias[cout] + sum over taps of the phase of ow of  products[(cout, .., kw)][q][base -
//   shift]
//
// The other kernels have one product for each phase, whose rows are output channels and whose depth runs over
// all taps and channels: with few output channels its rows are mostly empty, and every pixel is read from
// shared memory once for each tap. Here 3 output channels of a 4 x 4 filter with a stride of 2 fill 24 rows,
// and a pixel is read twice, straight into the registers that the tensor cores read.
//
//   Multiply  a warp has 16 * kBlocks rows x 32 pixels of one input row. B fragments come from global memory
//             without shared memory in between: 4 neighbours along W of NCHW are column `group` of four
//             products, 16 bytes of channels of NHWC are depths of two steps. A fragments lie in shared
//             memory, put there once by the thread block from the weight as it is: nothing is packed before.
//   Gather    the products of a step lie in shared memory. Threads take output columns, add the products of
//             their taps in a fixed order and write whole lines of the output, all phases.
//   A thread block goes down a strip of columns. In one step it begins to read the next rows of the input,
//   gathers the outputs of the rows before, and multiplies.
//
// Rows and columns outside the image are left out, not multiplied as zeros: non-finite values land where the
// definition puts them (on tensor cores an infinite sum may show as NaN).
#pragma once

#include <algorithm>
#include <type_traits>

#include "convt/device/activation.cuh"
#include "convt/device/launch.cuh"
#include "convt/device/mma.cuh"
#include "convt/device/pixel_words.cuh"
#include "convt/device/scalar.cuh"
#include "convt/device/tf32.cuh"
#include "convt/divisor.h"
#include "convt/kernels.h"
#include "convt/thin.h"

namespace convt {
namespace thin {

using namespace pixel_words;  // NOLINT: its other user has the same names

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
  int padding_w;
  AxisTaps taps_h;
  AxisPhases<int> phases_w;
  Divisor<int> dilation_h;
  Divisor<int> set_phases, kernel_w;  // what rows of a product count: cout, phase, kw

  Divisor<int> cout_tiles, strips, segments, image_tiles;
  Divisor<int> couts;
  int images, chunks, stages;
  Divisor<int> cols, groups_w, warps_n;
  int rows, threads;
  Divisor<int> all_row_blocks, weight_shares;
  int first_base_w, end_base_w, grid_h;
  int origin_w, strip_step, strip_halo, segment_rows;
  Divisor<int> stride_h;
  // Threads side by side along the output, for shares of its channels, for lines.
  Divisor<int> gather_columns, cout_parts;
  int gather_lines;
  int part_couts;
  int most_taps;  // of a phase along W
  // Floats from row to row of products, from output channel to output channel, from phase to phase along H,
  // from point to point, and to the other half.
  int pitch, cout_floats, phase_floats, point_floats, half_floats;
  bool along_c, output_channels_last;
  // Of launches that walk: distances in bytes of products, among them that of the zero behind them, and of
  // the output.
  struct {
    int tap_bytes, phase_bytes, zero_bytes;
    int64_t line_bytes, cout_bytes;
  } walk;
  ThinShared shared;
};

using ChunkWords = Words<kChunkSteps>;
static_assert(kChunkSteps == kThinChunkSteps && kPixels == kThinPixels);

// The thread block's share of the problem.
struct Share {
  int group, first_cout, couts, first_out_cout;
  const float* bias;            // of its output channels
  int first_ow, image_columns;  // outputs of a line: the first, and how many of an image
  int image, images;
  int first_col;               // input column of the strip's first pixel
  int first_point, end_point;  // along H
};

template <typename T>
__device__ inline Share locate(const Params<T>& p, int work) {
  int rest = work;
  const auto next = [&rest](const Divisor<int>& size) {
    const auto result = size.divide(rest);
    rest = result.quotient;
    return result.remainder;
  };
  Share s;
  s.first_cout = next(p.cout_tiles) * static_cast<int>(p.couts);
  s.couts = min(static_cast<int>(p.couts), p.cout_per_group - s.first_cout);
  const int strip = next(p.strips);
  s.first_col = p.origin_w + strip * p.strip_step;
  const int base_w = strip == 0 ? p.first_base_w : s.first_col + p.strip_halo;
  const int end_base_w = strip + 1 == p.strips ? p.end_base_w : s.first_col + p.strip_step + p.strip_halo;
  s.first_ow = max(base_w * p.phases_w.stride - p.padding_w, 0);
  const int columns = min(end_base_w * p.phases_w.stride - p.padding_w, p.output_w) - s.first_ow;
  s.image_columns = p.output_channels_last ? columns * p.couts : columns;
  s.first_point = next(p.segments) * p.segment_rows;
  s.end_point = min(s.first_point + p.segment_rows, p.grid_h);
  s.image = next(p.image_tiles) * p.images;
  s.images = min(p.images, p.batch - s.image);
  s.group = rest;
  s.first_out_cout = s.group * p.cout_per_group + s.first_cout;
  return s;
}

// ---------------------------------------------------------------- multiply

// This lane's pixels of input row 0: neighbours 4 * group .. 4 * group + 3 of its warp's 32, of which only
// the first is used where they are read at once. Pixels outside the strip's images stand for some pixel
// inside: nobody reads their products.
template <typename T>
struct Pixels {
  const T* at[4];
};

template <typename T, bool kAlongW>
__device__ inline Pixels<T> locate_pixels(const Params<T>& p, const Share& share, int group_pixel) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const T* const first = p.input + share.image * p.input_stride.n +
                         static_cast<int64_t>(share.group) * p.cin_per_group * p.input_stride.c;
  Pixels<T> pixels;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const auto place = p.cols.divide(group_pixel + lane / 4 * 4 + j);
    const int image = min(place.quotient, share.images - 1);
    const int col = min(share.first_col + place.remainder, p.input_w - (kAlongW ? 4 : 1));
    pixels.at[j] = first + image * p.input_stride.n + col * p.input_stride.w;
  }
  return pixels;
}

// Reads the chunk of channels from first_channel on, `offset` elements after the pixels. Unless kWhole,
// channels past the group's last are zero.
template <typename T, bool kAlongW, bool kWhole>
__device__ inline void read_channels(const Params<T>& p, const Pixels<T>& pixels, int64_t offset,
                                     int first_channel, ChunkWords& words) {
  if constexpr (kAlongW) {
    read_along_w<T, kWhole>(pixels.at[0] + offset, p.input_stride.c, first_channel, p.cin_per_group, words);
  } else {
    const int member = static_cast<int>(threadIdx.x) % 4;
    unsigned (&w)[8 * kChunkSteps] = words.at;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const T* const pixel = pixels.at[j] + offset;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int channel = first_channel + half * (kChunkChannels<T> / 2) + member * 4 * kPair<T>;
        const int to = (j * 2 + half) * 4;
        if (p.along_c) {
          const bool exists = kWhole || channel < p.cin_per_group;
          const uint4 x = exists ? __ldg(reinterpret_cast<const uint4*>(pixel + channel)) : uint4{0, 0, 0, 0};
          w[to] = x.x, w[to + 1] = x.y, w[to + 2] = x.z, w[to + 3] = x.w;
        } else {
#pragma unroll
          for (int i = 0; i < 4 * kPair<T>; ++i) {
            const int c = channel + i;
            const unsigned x =
                kWhole || c < p.cin_per_group ? bits_of(__ldg(pixel + c * p.input_stride.c)) : 0;
            w[to + i / kPair<T>] = i % kPair<T> == 0 ? x : w[to + i / kPair<T>] | x << 16;
          }
        }
      }
    }
  }
}

template <typename T, bool kAlongW>
__device__ inline void read_chunk(const Params<T>& p, const Pixels<T>& pixels, int64_t offset, int chunk,
                                  ChunkWords& words) {
  const int first_channel = chunk * kChunkChannels<T>;
  if (first_channel + kChunkChannels<T> <= p.cin_per_group) {
    read_channels<T, kAlongW, true>(p, pixels, offset, first_channel, words);
  } else {
    read_channels<T, kAlongW, false>(p, pixels, offset, first_channel, words);
  }
}

template <typename T, int kParts, int kBlocks, bool kAlongW>
__device__ inline void multiply_chunk(const ChunkWords& words, const FragmentA* weight, int part,
                                      Sums<kBlocks>& sums) {
  if constexpr (sizeof(T) == 4) {
    if (!are_ordinary(words)) {
      return multiply_words<T, kParts, kBlocks, kAlongW, false>(words, weight, part, sums);
    }
  }
  multiply_words<T, kParts, kBlocks, kAlongW, true>(words, weight, part, sums);
}

// Writes a warp's sums to shared memory. A lane has 8 neighbouring pixels of two rows of each block, four of
// them in c[0] and c[2], four in c[1] and c[3].
template <int kBlocks>
__device__ inline void keep_products(const Sums<kBlocks>& sums, float* products, int pitch, int first_row,
                                     int end_row) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int first = first_row + lane / 4;
  float* at = products + lane % 4 * 8 + first * pitch;
  const auto keep = [&](auto may_swap) {
    // Where rows begin 16 banks apart, or in the same, every other row writes its second half first.
    const bool swap = decltype(may_swap)::value && (lane / 4 & 1) != 0;
    const int first_half = swap ? 4 : 0, second_half = 4 - first_half, step = 8 * pitch;
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const bool exists = first + 16 * i + 8 * half < end_row;
        const float (&c)[4][4] = sums[i];
        const int k = 2 * half;
        const float4 low = make_float4(c[0][k], c[1][k], c[2][k], c[3][k]);
        const float4 high = make_float4(c[0][k + 1], c[1][k + 1], c[2][k + 1], c[3][k + 1]);
        if (exists) *reinterpret_cast<float4*>(at + first_half) = swap ? high : low;
        if (exists) *reinterpret_cast<float4*>(at + second_half) = swap ? low : high;
        at += step;
      }
    }
  };
  if ((pitch & 7) == 0) {
    keep(std::true_type{});
  } else {
    keep(std::false_type{});
  }
}

// Lays the weight of the share's output channels out as A fragments.
template <typename T, int kParts, bool kAlongW>
__device__ inline void stage_weight(const Params<T>& p, const Share& share, FragmentA* staged) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const T* const first = p.weight +
                         static_cast<int64_t>(share.group) * p.cin_per_group * p.weight_stride.cin +
                         share.first_cout * p.weight_stride.cout;
  const int steps = p.chunks * kChunkSteps;
  // A warp takes a block of 16 rows at an offset, and every weight_shares-th of its channel steps.
  int number = static_cast<int>(threadIdx.x) / 32;
  for (int set = 0; set < p.taps_h.sets; ++set) {
    const int end = p.taps_h.begin[set + 1] * p.all_row_blocks * p.weight_shares;
    for (; number < end; number += p.threads / 32) {
      const auto by_share = p.weight_shares.divide(number);
      const auto place = p.all_row_blocks.divide(by_share.quotient);
      const int offset = p.taps_h.offset[place.quotient];
      const T* of_row[2];
      bool exists[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const auto tap = p.kernel_w.divide(16 * place.remainder + 8 * half + lane / 4);
        const auto cout = p.set_phases.divide(tap.quotient);
        const int kh = p.taps_h.tap(set * p.set_phases + cout.remainder, offset, p.dilation_h);
        exists[half] = cout.quotient < share.couts && kh >= 0;
        of_row[half] = first + cout.quotient * p.weight_stride.cout + kh * p.weight_stride.kh +
                       tap.remainder * p.weight_stride.kw;
      }
#pragma unroll 2
      for (int step = by_share.remainder; step < steps; step += p.weight_shares) {
        const int first_channel = step / kChunkSteps * kChunkChannels<T> +
                                  channel_of<T, kAlongW>(step % kChunkSteps, lane % 4 * kPair<T>);
        unsigned a[4] = {0, 0, 0, 0};
#pragma unroll
        for (int i = 0; i < 2 * kPair<T>; ++i) {
          const int channel =
              first_channel + channel_of<T, kAlongW>(0, i / kPair<T> * 4 * kPair<T>) + i % kPair<T>;
          const int64_t at = channel * p.weight_stride.cin;
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            if (exists[half] && channel < p.cin_per_group) {
              a[i / kPair<T> * 2 + half] |= bits_of(__ldg(of_row[half] + at)) << (16 * (i % kPair<T>));
            }
          }
        }
        FragmentA parts[kParts] = {make_uint4(a[0], a[1], a[2], a[3])};
        if constexpr (sizeof(T) == 4) split_tf32(make_uint4(a[0], a[1], a[2], a[3]), parts);
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
          staged[(((place.quotient * steps + step) * kParts + part) * p.all_row_blocks + place.remainder) *
                     32 +
                 lane] = parts[part];
        }
      }
    }
  }
}

// ---------------------------------------------------------------- gather

// Taps first, first + 1, ... of a phase whose inputs lie inside the image. `input` is what the first reads.
struct InsideTaps {
  int first, count, input;
};

__device__ inline InsideTaps clip_taps(int taps, int first_input, int shift_step, int inputs) {
  InsideTaps inside = {0, taps, first_input};
  while (inside.count > 0 && inside.input >= inputs) {
    ++inside.first;
    --inside.count;
    inside.input -= shift_step;
  }
  while (inside.count > 0 && inside.input - (inside.count - 1) * shift_step < 0) --inside.count;
  return inside;
}

// An output column of a thread.
struct Column {
  int products;  // of its first tap, in the first row of the products
  int taps;
  int cout;        // for channels_last, whose lines hold all output channels
  int64_t output;  // of the first output channel of the tensor, in the first line
};

template <typename T>
__device__ inline Column make_column(const Params<T>& p, const Share& share, int image, int index) {
  Column column;
  int ow = index;
  column.cout = 0;
  if (p.output_channels_last) {
    const auto by_cout = p.couts.divide(index);
    ow = by_cout.quotient;
    column.cout = by_cout.remainder;
  }
  ow += share.first_ow;
  const auto at = p.phases_w.stride.divide(ow + p.padding_w);
  const Phase<int> phase = phase_of(p.phases_w, at.remainder);
  const InsideTaps inside =
      clip_taps(phase.taps, at.quotient - phase.first_shift, p.phases_w.shift_step, p.input_w);
  column.taps = inside.count;
  column.products = (phase.first_tap + inside.first * p.phases_w.tap_step) * p.pitch + image * p.cols +
                    inside.input - share.first_col;
  column.output = (share.image + image) * p.output_stride.n + ow * p.output_stride.w;
  return column;
}

// The sum of the products of `taps` taps, at most kTaps, or any number where that is 0.
template <int kTaps>
__device__ inline float add_products(const float* first, int taps, int tap_floats) {
  float sum = 0.0f;
  if constexpr (kTaps > 0) {
#pragma unroll
    for (int j = 0; j < kTaps; ++j) {
      if (j < taps) sum += first[j * tap_floats];
    }
  } else {
#pragma unroll 4
    for (int j = 0; j < taps; ++j) {
      sum += *first;
      first += tap_floats;
    }
  }
  return sum;
}

// Writes the outputs of the points [begin, end) along H. `first_column` is the thread's first. kTaps is the
// most taps of a phase along W, or 0 for any number. With the activation, which is applied to one output
// after the other, all numbers share code: the first three taps, and any others.
template <int kTaps, bool kActivates, typename T>
__device__ inline void gather(const Params<T>& p, const Share& share, const float* products,
                              const Column& first_column, int begin, int end) {
  const auto by_column = p.gather_columns.divide(static_cast<int>(threadIdx.x));
  const auto by_part = p.cout_parts.divide(by_column.quotient);
  if (by_part.quotient >= p.gather_lines) return;
  // Lines above the output's first are skipped, and those below its last.
  const int first_oh = begin * p.stride_h - p.taps_h.crop;
  const int first_line = max(-first_oh, 0) + by_part.quotient;
  const int end_line = min((end - begin) * p.stride_h, p.output_h - first_oh);
  const auto at_line = p.stride_h.divide(first_line);
  const int tap_floats = static_cast<int>(p.phases_w.tap_step) * p.pitch - p.phases_w.shift_step;
  const int64_t cout_step = p.output_stride.c, line_step = p.gather_lines * p.output_stride.h;

  Column column = first_column;
  int image = 0, index = by_column.remainder;
  while (true) {
    while (index >= share.image_columns) {
      index -= share.image_columns;
      ++image;
    }
    if (image >= share.images) break;
    if (index != by_column.remainder || image > 0) column = make_column(p, share, image, index);
    int first_cout = column.cout, end_cout = column.cout + 1;
    if (!p.output_channels_last) {
      first_cout = by_part.remainder * p.part_couts;
      end_cout = first_cout + p.part_couts;
    }
    end_cout = min(end_cout, share.couts);
    if (first_cout < end_cout) {
      T* of_line = p.output + column.output + (share.first_out_cout + first_cout) * cout_step +
                   (first_oh + first_line) * p.output_stride.h;
      const float* const of_column = products + column.products + first_cout * p.cout_floats;
      int point = at_line.quotient, phase = at_line.remainder;
      for (int line = first_line; line < end_line; line += p.gather_lines) {
        const float* of_cout = of_column + point * p.point_floats + phase * p.phase_floats;
        T* out = of_line;
        int cout = first_cout;
        if constexpr (kActivates) {
#pragma unroll 1
          for (; cout < end_cout; ++cout) {
            float sum = add_products<3>(of_cout, column.taps, tap_floats);
#pragma unroll 1
            for (int j = 3; j < column.taps; ++j) sum += of_cout[j * tap_floats];
            *out = narrow<T>(activate(p.activation, widen(narrow<T>(sum + share.bias[cout]))));
            of_cout += p.cout_floats;
            out += cout_step;
          }
        }
        // Four output channels at once, so that their reads overlap.
        for (; !kActivates && cout + 4 <= end_cout; cout += 4) {
          float sum[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            sum[i] = add_products<kTaps>(of_cout, column.taps, tap_floats) + share.bias[cout + i];
            of_cout += p.cout_floats;
          }
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            *out = narrow<T>(sum[i]);
            out += cout_step;
          }
        }
#pragma unroll 1
        for (; !kActivates && cout < end_cout; ++cout) {
          *out = narrow<T>(add_products<kTaps>(of_cout, column.taps, tap_floats) + share.bias[cout]);
          of_cout += p.cout_floats;
          out += cout_step;
        }
        of_line += line_step;
        phase += p.gather_lines;
        while (phase >= p.stride_h) {
          phase -= p.stride_h;
          ++point;
        }
      }
    }
    index += p.gather_columns;
  }
}

// ---------------------------------------------------------------- kernel

// Where a warp is in the depth of a product: an offset of the set, and a chunk of channels.
struct Depth {
  int offset, end_offset, chunk;

  __device__ bool exists() const { return offset < end_offset; }
};

// The depth of a set for point `point`, whose offsets that leave the image are left out.
template <typename T>
__device__ inline Depth first_depth(const Params<T>& p, int set, int point) {
  Depth depth = {p.taps_h.begin[set], p.taps_h.begin[set + 1], 0};
  while (depth.exists() && point + p.taps_h.offset[depth.offset] < 0) ++depth.offset;
  while (depth.exists() && point + p.taps_h.offset[depth.end_offset - 1] >= p.input_h) --depth.end_offset;
  return depth;
}

template <typename T>
__device__ inline void advance(const Params<T>& p, Depth& depth) {
  if (++depth.chunk < p.chunks) return;
  depth.chunk = 0;
  ++depth.offset;
}

template <typename T, bool kAlongW>
__device__ inline void read_depth(const Params<T>& p, const Pixels<T>& pixels, int point, const Depth& depth,
                                  ChunkWords& words) {
  const int64_t row = point + p.taps_h.offset[depth.offset];
  read_chunk<T, kAlongW>(p, pixels, row * p.input_stride.h, depth.chunk, words);
}

#if defined(__CUDA_ARCH__)
inline constexpr int kComputeCapability = __CUDA_ARCH__ / 10;
#else
inline constexpr int kComputeCapability = 0;
#endif

template <typename T, int kParts, int kBlocks, bool kAlongW>
__global__ void __launch_bounds__(thin_threads(kParts, kComputeCapability))
    thin_kernel(const __grid_constant__ Params<T> p) {
  extern __shared__ __align__(16) unsigned char shared[];
  FragmentA* const weight = reinterpret_cast<FragmentA*>(shared);
  float* products = reinterpret_cast<float*>(shared + p.shared.products_offset);
  float* const bias = reinterpret_cast<float*>(shared + p.shared.bias_offset);
  Share share = locate(p, static_cast<int>(blockIdx.x));
  share.bias = bias;
  const auto by_pixels = p.warps_n.divide(static_cast<int>(threadIdx.x) / 32);
  const auto by_row = p.groups_w.divide(by_pixels.remainder);
  const int first_block = by_pixels.quotient * kBlocks;
  const int set_rows = share.couts * p.set_phases * p.kernel_w;
  // Warps past the last pixel, or past the last row of the products, only gather.
  const int group_pixel = by_row.remainder * kThinPixels;
  const bool has_pixels = p.images > 1 ? group_pixel < share.images * p.cols
                                       : group_pixel < p.cols && share.first_col + group_pixel < p.input_w;
  const bool multiplies = has_pixels && 16 * first_block < set_rows;
  const Pixels<T> pixels = locate_pixels<T, kAlongW>(p, share, group_pixel);
  const Column column =
      make_column(p, share, 0, p.gather_columns.divide(static_cast<int>(threadIdx.x)).remainder);
  const int part = p.all_row_blocks * 32;
  const FragmentA* const own_weight = weight + first_block * 32 + threadIdx.x % 32;
  int half = 0;

  ChunkWords words;
  for (int first_point = share.first_point;; first_point += p.rows) {
    const int point = first_point + by_row.quotient;
    const bool active = multiplies && point < share.end_point;
    Depth depth = {0, 0, 0};
    if (active) depth = first_depth(p, 0, point);
    if (depth.exists()) read_depth<T, kAlongW>(p, pixels, point, depth, words);
    if (first_point == share.first_point) {
      stage_weight<T, kParts, kAlongW>(p, share, weight);
      for (int c = static_cast<int>(threadIdx.x); c < share.couts; c += p.threads) {
        bias[c] = p.bias == nullptr ? 0.0f : widen(p.bias[(share.first_out_cout + c) * p.bias_stride]);
      }
      __syncthreads();
    } else {
      const float* const last = products + (half ^ 1) * p.half_floats;
      const int begin = first_point - p.rows, end = min(first_point, share.end_point);
      switch (p.activation.is_identity() ? p.most_taps : -1) {
        case -1:
          gather<0, true>(p, share, last, column, begin, end);
          break;
        case 1:
          gather<1, false>(p, share, last, column, begin, end);
          break;
        case 2:
          gather<2, false>(p, share, last, column, begin, end);
          break;
        case 3:
          gather<3, false>(p, share, last, column, begin, end);
          break;
        default:
          gather<0, false>(p, share, last, column, begin, end);
      }
    }
    if (first_point >= share.end_point) return;
    if (active) {
      float* of_set = products + half * p.half_floats + by_row.quotient * p.point_floats + group_pixel;
      for (int set = 0; set < p.taps_h.sets; ++set) {
        if (set > 0) {
          depth = first_depth(p, set, point);
          if (depth.exists()) read_depth<T, kAlongW>(p, pixels, point, depth, words);
        }
        Sums<kBlocks> sums;
        clear<kBlocks>(sums);
        while (depth.exists()) {
          multiply_chunk<T, kParts, kBlocks, kAlongW>(
              words, own_weight + (depth.offset * p.chunks + depth.chunk) * (kChunkSteps * kParts) * part,
              part, sums);
          advance(p, depth);
          if (depth.exists()) read_depth<T, kAlongW>(p, pixels, point, depth, words);
        }
        keep_products<kBlocks>(sums, of_set, p.pitch, 16 * first_block, set_rows);
        of_set += p.couts * p.set_phases * p.kernel_w * p.pitch;
      }
    }
    half ^= 1;
    __syncthreads();
  }
}

}  // namespace thin
}  // namespace convt
