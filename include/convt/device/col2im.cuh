// col2im: one matrix product per tile whose rows are (output channel, tap) and whose columns are input
// pixels, then every output gathers the products of its taps. 16-bit types, compute capability 9.0a.
//
//   products[(cout, tap)][pixel] = sum over channels of  w[channel][cout][tap] * x[channel][pixel]
//   y[cout][o]                   = bias[cout] + sum over taps k of o of  products[(cout, k)][input of k]
//
// The other kernels have one product for each phase, and stage the input so that it can be read once for each
// tap. Here every pixel of the input meets every tap once, so both operands are multiplied as they lie in
// memory: the weight, [channel][cout, tap], with its rows side by side, the input with its pixels (NCHW) or
// its channels (NHWC) side by side. Nothing is packed before and nothing turned. It is the better way where
// windows of pixels that share no output with others are small: images of few pixels, one-pixel-high ones,
// and filters that do not overlap (stride >= kernel), where every tap is a phase of its own.
//
// A thread block goes through pieces of work. Its warpgroups:
//
//   load        128 threads copy a chunk of 64 channels at a time into a ring of stages (cp.async)
//   multiply    two warpgroups, each 64 rows (whole output channels) x all pixels of the tile, in
//               registers; both use the same pixels. When all chunks are done, the products go to shared
//               memory, and each thread gathers the outputs of all the tile's output channels at two places.
//               Meanwhile the copies for the next tiles go on.
//
// Lines of 128 bytes of a stage have their eight 16-byte pieces swapped by the line's number, as wgmma's
// 128-byte swizzle has it: piece i of line j lies in place i ^ j % 8. Products have their columns swapped
// likewise (swapped), so that neither stores of fragments nor reads along a row of the output meet the
// same bank.
//
// Pixels outside the image are not multiplied by zeros: their products are not read.
#pragma once

#include <algorithm>

#include "convt/alignment.h"
#include "convt/col2im.h"
#include "convt/device/activation.cuh"
#include "convt/device/async_copy.cuh"
#include "convt/device/launch.cuh"
#include "convt/device/mma.cuh"
#include "convt/device/scalar.cuh"
#include "convt/device/wgmma.cuh"
#include "convt/divisor.h"
#include "convt/kernels.h"

namespace convt {
namespace col2im {

inline constexpr int kChunk = kCol2imChunk;
inline constexpr int kRows = kCol2imRows;
inline constexpr int kLine = 128;                        // bytes
inline constexpr int kWeightBytes = kRows * kChunk * 2;  // of a warpgroup's rows of a stage

// What the pieces of the kernel are compiled for.
template <int kIndex, bool kInputChannelsLast>
struct Config {
  static constexpr int kGroups = kCol2imConfigs[kIndex].groups, kPixels = kCol2imConfigs[kIndex].pixels;
  static constexpr int kLoaders = kCol2imLoaders;
  static constexpr int kMultipliers = 128 * kGroups, kThreads = kMultipliers + kLoaders;
  static constexpr bool kChannelsLast = kInputChannelsLast;
};

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
  AxisPhases<int> phases_h, phases_w;
  Divisor<int> shift_step_h, shift_step_w;
  int span_h, span_w;

  int works;
  Divisor<int> cout_tiles, tiles_w, tiles_h, image_tiles;  // of them, innermost first; then groups
  int couts, tile_couts;                                   // of a warpgroup, of all
  Divisor<int> taps, kernel_w, row_couts;
  Divisor<int> tile_vectors;  // of a tap of the weight

  int row_cout, row_tap;
  int images;
  Divisor<int> window_h, window_w, align_w, image_pixels, image_w;
  Divisor<int> rows_out, cols_out;
  int pairs;               // of neighbours along W, of a tile's outputs
  Divisor<int> row_pairs;  // of a row; of flat tiles, of a pixel
  bool stores_pairs;
  int origin_h, origin_w;
  int flat_pixels;  // of all images; 0 where tiles are windows
  int chunks, stages;
  bool reuses_stages;
  int weight_bytes, input_bytes;
  int store_couts, most_terms;
  bool output_channels_last;
  Col2imShared shared;
};

struct Work {
  int group, first_cout;   // of the first warpgroup
  int image, first_pixel;  // the first pixel only of flat tiles
  int out_h, out_w;        // first output; may lie before the first of the image
  int window_h, window_w;  // first input
};

template <typename T>
__device__ inline Work locate(const Params<T>& p, int number) {
  int rest = number;
  const auto next = [&rest](const Divisor<int>& size) {
    const auto result = size.divide(rest);
    rest = result.quotient;
    return result.remainder;
  };
  Work work = {};
  work.first_cout = next(p.cout_tiles) * p.tile_couts;
  const int tile_w = next(p.tiles_w), tile_h = next(p.tiles_h);
  work.image = next(p.image_tiles) * p.images;
  work.group = rest;
  work.first_pixel = tile_w * p.images;
  if (p.flat_pixels > 0) return work;
  work.out_h = p.origin_h + tile_h * p.rows_out;
  work.out_w = p.origin_w + tile_w * p.cols_out;
  // A window reaches from the first input of the first output as far as the widest one, but not past the
  // image.
  const int first_h = p.phases_h.stride.divide(work.out_h + p.padding_h).quotient - p.span_h;
  const int first_w = p.phases_w.stride.divide(work.out_w + p.padding_w).quotient - p.span_w;
  work.window_h = min(max(first_h, 0), p.input_h - p.window_h);
  work.window_w = min(max(first_w, 0), p.input_w - p.window_w);
  work.window_w -= p.align_w.divide(work.window_w).remainder;
  return work;
}

// ---------------------------------------------------------------- load

// Where pixel `n` of the tile lies in the input, in elements, or -1.
template <typename T>
__device__ inline int64_t pixel_offset(const Params<T>& p, const Work& work, int n) {
  int image = 0, h = 0, w = 0;
  if (p.flat_pixels > 0) {
    const int pixel = work.first_pixel + n;
    if (pixel >= p.flat_pixels) return -1;
    const auto by_image = p.image_pixels.divide(pixel);
    const auto by_row = p.image_w.divide(by_image.remainder);
    image = by_image.quotient, h = by_row.quotient, w = by_row.remainder;
  } else {
    const auto by_row = p.window_w.divide(n);
    const auto by_image = p.window_h.divide(by_row.quotient);
    image = work.image + by_image.quotient;
    if (by_image.quotient >= p.images || image >= p.batch) return -1;
    h = work.window_h + by_image.remainder;
    w = work.window_w + by_row.remainder;
  }
  return image * p.input_stride.n + h * p.input_stride.h + w * p.input_stride.w;
}

// Rows before a warpgroup's first output channel: its part of the weight is copied from an aligned address
// on.
template <typename T>
__device__ inline int rows_before(const Params<T>& p, int first_cout) {
  return p.row_tap == 1 ? first_cout * p.taps % (p.weight_bytes / 2) : 0;
}

// Vector `number` of a channel's rows of the weight, of all warpgroups'. Neighbours lie side by side in
// memory.
template <typename T>
struct Rows {
  const T* at;   // of the group's first channel
  int elements;  // that exist; 0 or less: nothing is copied
  int row;       // of all warpgroups' rows
};

template <typename T>
__device__ inline Rows<T> locate_rows(const Params<T>& p, const Work& work, int number) {
  const int vector = p.weight_bytes / 2;
  const T* const group_weight = p.weight + work.group * int64_t{p.cin_per_group} * p.weight_stride.cin;
  int group, tap, cout, row, elements;
  if (p.row_tap == 1) {
    group = number * vector / kRows;
    row = number * vector % kRows;
    const int before = rows_before(p, work.first_cout + group * p.couts);
    const auto place = p.taps.divide(max(row - before, 0));
    tap = place.remainder;
    cout = place.quotient;
    const int couts = min(p.couts, p.cout_per_group - work.first_cout - group * p.couts);
    elements = couts > 0 ? couts * p.taps - (row - before) : 0;
    if (row < before) tap = row - before;  // the last taps of the output channel before
  } else {
    const auto place = p.tile_vectors.divide(number);
    tap = place.quotient;
    const auto by_group = p.row_couts.divide(place.remainder * vector);
    group = by_group.quotient;
    cout = by_group.remainder;
    row = tap * p.couts + cout;
    const int couts = min(p.couts, p.cout_per_group - work.first_cout - group * p.couts);
    elements = tap < p.taps ? couts - cout : 0;
  }
  const auto k = p.kernel_w.divide(max(tap, 0));
  const int64_t offset = (work.first_cout + group * p.couts + cout) * p.weight_stride.cout +
                         (tap < 0 ? tap : k.quotient * p.weight_stride.kh + k.remainder * p.weight_stride.kw);
  return {group_weight + offset, elements, group * kRows + row};
}

// Copies the first `elements` of kBytes / 2 elements, and zeros for the others.
template <int kBytes, typename T>
__device__ inline void copy(unsigned destination, const T* source, int elements) {
  const int bytes = 2 * min(max(elements, 0), kBytes / 2);
  if constexpr (kBytes >= kLeastCopyBytes) {
    copy_async_padded<kBytes>(destination, source, bytes);
  } else {
    const unsigned short x = bytes > 0 ? *reinterpret_cast<const unsigned short*>(source) : 0;
    asm volatile("st.shared.u16 [%0], %1;" ::"r"(destination), "h"(x) : "memory");
  }
}

// The address of byte `byte` of a line of a stage.
__device__ inline unsigned in_line(unsigned lines, int line, int byte) {
  return lines + line * kLine + ((byte / 16 ^ line % 8) * 16 | byte % 16);
}

// That of byte `byte` of line first + i * kStep; `start` is that of line `first`.
template <int kStep>
__device__ inline unsigned in_later_line(unsigned lines, unsigned start, int first, int i, int byte) {
  return kStep % 8 == 0 ? start + i * (kStep * kLine) : in_line(lines, first + i * kStep, byte);
}

// Channels of a chunk that are multiplied: whole steps, the last filled with zeros.
template <typename T>
__device__ inline int chunk_steps(const Params<T>& p, int chunk) {
  return min((p.cin_per_group - chunk * kChunk + 15) / 16, kChunk / 16);
}

// Copies kBytes of each of the chunk's channels first, first + kStep, ..., which are lines; past the last
// channel, zeros as far as they are multiplied.
template <int kBytes, int kStep, typename T>
__device__ inline void copy_channels(const Params<T>& p, unsigned lines, int first, int byte, const T* source,
                                     int64_t stride, int chunk, int elements) {
  const unsigned start = in_line(lines, first, byte);
  const int channels = p.cin_per_group - chunk * kChunk;
  source += (chunk * kChunk + first) * stride;
  stride *= kStep;
  static_assert(kChunk % kStep == 0);
  if (channels >= kChunk) {
#pragma unroll 8
    for (int i = 0; i < kChunk / kStep; ++i) {
      copy<kBytes>(in_later_line<kStep>(lines, start, first, i, byte), source, elements);
      source += stride;
    }
  } else {
#pragma unroll 1
    for (int i = 0; first + i * kStep < 16 * chunk_steps(p, chunk); ++i) {
      copy<kBytes>(in_later_line<kStep>(lines, start, first, i, byte), source,
                   first + i * kStep < channels ? elements : 0);
      source += stride;
    }
  }
}

// This thread's number among those that load.
template <typename C>
__device__ inline int loader() {
  return static_cast<int>(threadIdx.x) - C::kMultipliers;
}

template <int kBytes, typename C, typename T>
__device__ inline void load_weight(const Params<T>& p, const Rows<T>& rows, int chunk, unsigned stage) {
  constexpr int kVectors = C::kGroups * kRows / (kBytes / 2);
  static_assert(C::kLoaders % kVectors == 0, "each thread has one vector");
  if (rows.elements <= 0) return;
  copy_channels<kBytes, C::kLoaders / kVectors>(p, stage + rows.row / kRows * kWeightBytes,
                                                afresh(loader<C>()) / kVectors, rows.row % kRows * 2, rows.at,
                                                p.weight_stride.cin, chunk, rows.elements);
}

template <int kBytes, typename C, typename T>
__device__ inline void load_input(const Params<T>& p, const T* group_input, const int64_t* pixels, int chunk,
                                  unsigned lines) {
  constexpr int kVector = kBytes / 2, kPixels = C::kPixels, kLoaders = C::kLoaders;
  const int thread = afresh(loader<C>());
  if constexpr (C::kChannelsLast) {
    constexpr int kVectors = kChunk / kVector, kStep = kLoaders / kVectors;
    const int c = thread % kVectors * kVector, first = thread / kVectors;
    if (c >= 16 * chunk_steps(p, chunk)) return;
    const int elements = p.cin_per_group - chunk * kChunk - c;
    const unsigned start = in_line(lines, first, c * 2);
    const T* const source = group_input + (chunk * kChunk + c) * p.input_stride.c;
#pragma unroll 8
    for (int i = 0; i < kPixels / kStep; ++i) {
      const int64_t offset = pixels[first + i * kStep];
      if (offset >= 0) {
        copy<kBytes>(in_later_line<kStep>(lines, start, first, i, c * 2), source + offset, elements);
      }
    }
  } else {
    constexpr int kVectors = kPixels / kVector, kLanes = kVectors < 32 ? kVectors : 32;  // of a channel
    constexpr int kSharers = 32 / kLanes, kStep = kLoaders / 32 * kSharers;
    const int lane = thread % 32;
#pragma unroll 1
    for (int i = 0; i < kVectors; i += kLanes) {
      const int n = (i + lane % kLanes) * kVector;
      const int64_t offset = pixels[n];
      if (offset < 0) continue;
      copy_channels<kBytes, kStep>(p, lines + n / 64 * (kChunk * kLine),
                                   thread / 32 * kSharers + lane / kLanes, n % 64 * 2, group_input + offset,
                                   p.input_stride.c, chunk, kVector);
    }
  }
}

template <typename C, typename T>
__device__ inline void load_works(const Params<T>& p, unsigned stages, int64_t* pixels, unsigned full,
                                  unsigned empty, unsigned gathered) {
  constexpr int kLoaders = C::kLoaders, kGroups = C::kGroups, kPixels = C::kPixels;
  const int thread = loader<C>();
  const bool through_registers = min(p.weight_bytes, p.input_bytes) < kLeastCopyBytes;
  int stage = 0, round = 0, parity = 1;
  for (int number = static_cast<int>(blockIdx.x); number < p.works; number += static_cast<int>(gridDim.x)) {
    const Work work = locate(p, number);
    if (p.reuses_stages) {
      wait(gathered, parity);
      parity ^= 1;
    }
    sync_threads<kLoaders>(1);
    for (int n = thread; n < kPixels; n += kLoaders) pixels[n] = pixel_offset(p, work, n);
    sync_threads<kLoaders>(1);
    const Rows<T> rows = locate_rows(p, work, thread % (kGroups * kRows / (p.weight_bytes / 2)));
    const T* const group_input = p.input + work.group * int64_t{p.cin_per_group} * p.input_stride.c;
#pragma unroll 1
    for (int chunk = 0; chunk < p.chunks; ++chunk) {
      wait(empty + 8 * stage, round % 2 ^ 1);
      const unsigned to = stages + stage * static_cast<unsigned>(p.shared.stage_bytes);
      with_width(p.weight_bytes,
                 [&](auto width) { load_weight<decltype(width)::value, C>(p, rows, chunk, to); });
      with_width(p.input_bytes, [&](auto width) {
        load_input<decltype(width)::value, C>(p, group_input, pixels, chunk, to + kGroups * kWeightBytes);
      });
      // For what went through registers, and for what is on its way.
      if (through_registers) fence_for_wgmma();
      arrive(full + 8 * stage);
      arrive_after_copies(full + 8 * stage);
      if (++stage == p.stages) stage = 0, ++round;
    }
  }
  wait_for_copies();
}

// ---------------------------------------------------------------- multiply

template <int kPixels>
using Sums = float[kPixels / 8][4];

// Products lie in rows of kPixels floats, row tap * tile_couts + cout; their columns are swapped in eights.
// Neighbours among the rows that were multiplied are swapped differently.
template <typename T>
__device__ inline int swap_key(const Params<T>& p, int tap, int cout) {
  return cout * p.row_cout + tap * p.row_tap;
}

__device__ inline int swapped(int key) { return (key & 1) << 4 | (key & 2) << 2; }

template <int kPixels, typename T>
__device__ inline void write_products(const Params<T>& p, int first_cout, const Sums<kPixels>& sums,
                                      float* products) {
  const int thread = static_cast<int>(threadIdx.x) % 128, lane = thread % 32;
  const int group = static_cast<int>(threadIdx.x) / 128;
  const int before = rows_before(p, first_cout);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = thread / 32 * 16 + lane / 4 + half * 8 - before;
    const auto place = (p.row_tap == 1 ? p.taps : p.row_couts).divide(max(row, 0));
    const int cout = group * p.couts + (p.row_tap == 1 ? place.quotient : place.remainder);
    const int tap = p.row_tap == 1 ? place.remainder : place.quotient;
    if (row < 0 || row >= p.couts * p.taps) continue;
    float* const at = products + (tap * p.tile_couts + cout) * kPixels + lane % 4 * 2;
    const int swap = swapped(swap_key(p, tap, cout));
#pragma unroll
    for (int j = 0; j < kPixels / 8; ++j)
      *reinterpret_cast<float2*>(at + (8 * j ^ swap)) = make_float2(sums[j][2 * half], sums[j][2 * half + 1]);
  }
}

// ---------------------------------------------------------------- gather

// The taps of one axis that carry an input to a place of the output: `tap` + i * tap_step sees input `input`
// - i * shift_step, 0 <= i < count.
struct AxisTerms {
  int tap, count, input;
};

// Along an axis whose phases lie in `phases`, of output `out`, counted from the padding on.
__device__ inline AxisTerms terms_of(const AxisPhases<int>& axis, const Divisor<int>& shift_step, int inputs,
                                     const int2* phases, int out) {
  const auto base = axis.stride.divide(max(out, 0));
  const int2 phase = phases[base.remainder];
  const int first_tap = phase.x & 0xff, taps = phase.x >> 8;
  const int input = base.quotient - phase.y;  // of the first tap; the others see inputs before it
  if (shift_step == 1) {
    const int skipped = max(input - inputs + 1, 0);
    return {first_tap + skipped * axis.tap_step, min(input + 1, taps) - skipped, input - skipped};
  }
  const int skipped = shift_step.divide(max(input - inputs, -1) + shift_step).quotient;
  const int end = min(shift_step.divide(max(input, 0)).quotient + 1, taps);
  return {first_tap + skipped * axis.tap_step, input < 0 ? 0 : end - skipped, input - skipped * shift_step};
}

// Two neighbours along W, or one.
template <typename T>
struct Places {
  bool exists[2];
  AxisTerms in_h, in_w[2];
  int first_pixel;  // column of the products that input 0, 0 of the image would have
  T* at;            // the first, of the first output channel
};

// x += y where `does`.
__device__ inline void add_if(bool does, float& x, float y) {
  asm("{\n.reg .pred p;\nsetp.ne.b32 p, %2, 0;\n@p add.f32 %0, %0, %1;\n}"
      : "+f"(x)
      : "f"(y), "r"(int{does}));
}

// Adds a term to the sums of kCouts output channels from `first`, a multiple of 4, on. Where kAligned, they
// are swapped alike, and there is a multiple of kCouts of them; else those past the last count as the last.
template <int kPixels, int kCouts, bool kAligned, typename T>
__device__ inline void add_term(const Params<T>& p, const float* products, bool reached, int tap, int pixel,
                                int first, float (&y)[kCouts]) {
  // Some tap and pixel in place of those that do not exist.
  tap = reached ? tap : 0;
  pixel = reached ? pixel : 0;
  const float* const rows = products + tap * p.tile_couts * kPixels;
  if constexpr (kAligned) {
    const float* const at = rows + first * kPixels + (pixel ^ swapped(swap_key(p, tap, 0)));
#pragma unroll
    for (int c = 0; c < kCouts; ++c) add_if(reached, y[c], at[c * kPixels]);
  } else {
#pragma unroll
    for (int c = 0; c < kCouts; ++c) {
      const int cout = min(first + c, static_cast<int>(p.tile_couts) - 1);
      add_if(reached, y[c], rows[cout * kPixels + (pixel ^ swapped(swap_key(p, tap, cout)))]);
    }
  }
}

// Stores the sums of output channels `first` on, at one place or two, of NCHW.
template <int kCouts, typename T>
__device__ inline void store_rows(const Params<T>& p, const Places<T>& places, int first, int couts,
                                  const float (&y)[2][kCouts]) {
  T* to = places.at + first * p.output_stride.c;
  if (places.exists[0] && places.exists[1] && p.stores_pairs && first + kCouts <= couts) {
#pragma unroll
    for (int c = 0; c < kCouts; ++c) {
      *reinterpret_cast<unsigned*>(to) = pack_pair<T>(y[0][c], y[1][c]);
      to += p.output_stride.c;
    }
    return;
  }
#pragma unroll
  for (int c = 0; c < kCouts; ++c) {
    if (first + c < couts && places.exists[0]) to[0] = narrow<T>(y[0][c]);
    if (first + c < couts && places.exists[1]) to[1] = narrow<T>(y[1][c]);
    to += p.output_stride.c;
  }
}

// The same of NHWC: in pieces of 16 or 8 bytes, or one by one.
template <int kCouts, typename T>
__device__ inline void store_channels(const Params<T>& p, const Places<T>& places, int first, int couts,
                                      const float (&y)[2][kCouts]) {
#pragma unroll
  for (int place = 0; place < 2; ++place) {
    if (!places.exists[place]) continue;
    T* const to = places.at + place * p.output_stride.w + first;
    const float (&x)[kCouts] = y[place];
    if (kCouts == 8 && p.store_couts == 8) {
      constexpr int kHalf = kCouts / 2;
      if (first < couts)
        *reinterpret_cast<uint4*>(to) =
            make_uint4(pack_pair<T>(x[0], x[1]), pack_pair<T>(x[2], x[3]),
                       pack_pair<T>(x[kHalf], x[kHalf + 1]), pack_pair<T>(x[kHalf + 2], x[kHalf + 3]));
    } else if (p.store_couts >= 4) {
#pragma unroll
      for (int c = 0; c < kCouts; c += 4)
        if (first + c < couts)
          *reinterpret_cast<uint2*>(to + c) =
              make_uint2(pack_pair<T>(x[c], x[c + 1]), pack_pair<T>(x[c + 2], x[c + 3]));
    } else {
#pragma unroll
      for (int c = 0; c < kCouts; ++c)
        if (first + c < couts) to[c] = narrow<T>(x[c]);
    }
  }
}

template <int kPixels, int kMostTerms, int kCouts, bool kAligned, typename T>
__device__ inline void gather_places(const Params<T>& p, const float* products, const float* bias, int couts,
                                     const Places<T>& places) {
  const AxisTerms& in_h = places.in_h;
#pragma unroll 1
  for (int first = 0; first < couts; first += kCouts) {
    float y[2][kCouts];
#pragma unroll
    for (int c = 0; c < kCouts; c += 4) {
      const float4 b = *reinterpret_cast<const float4*>(bias + first + c);
      y[0][c] = b.x, y[0][c + 1] = b.y, y[0][c + 2] = b.z, y[0][c + 3] = b.w;
#pragma unroll
      for (int i = c; i < c + 4; ++i) y[1][i] = y[0][i];
    }
#pragma unroll
    for (int place = 0; place < 2; ++place) {
      const AxisTerms& in_w = places.in_w[place];
      const auto add = [&](int i, int j) {
        const int tap =
            (in_h.tap + i * p.phases_h.tap_step) * p.kernel_w + in_w.tap + j * p.phases_w.tap_step;
        const int pixel = places.first_pixel + (in_h.input - i * p.shift_step_h) * p.window_w + in_w.input -
                          j * p.shift_step_w;
        add_term<kPixels, kCouts, kAligned>(p, products, i < in_h.count && j < in_w.count, tap, pixel, first,
                                            y[place]);
      };
      if constexpr (kMostTerms > 0) {
#pragma unroll
        for (int i = 0; i < kMostTerms * kMostTerms; ++i) add(i / kMostTerms, i % kMostTerms);
      } else {
        for (int i = 0; i < in_h.count; ++i) {
          for (int j = 0; j < in_w.count; ++j) add(i, j);
        }
      }
    }
    if (!p.activation.is_identity())
      activate_sums<T, 1>(p.activation, reinterpret_cast<float (&)[2 * kCouts]>(y));
    if (p.output_channels_last) {
      store_channels(p, places, first, couts, y);
    } else {
      store_rows(p, places, first, couts, y);
    }
  }
}

template <typename C, int kMostTerms, int kCouts, bool kAligned, typename T>
__device__ inline void gather(const Params<T>& p, const Work& work, const float* products,
                              const int2* phases_h, const float* bias) {
  constexpr int kPixels = C::kPixels;
  const int couts = min(static_cast<int>(p.tile_couts), p.cout_per_group - work.first_cout);
  const int stride_h = p.phases_h.stride, stride_w = p.phases_w.stride;
  const int2* const phases_w = phases_h + stride_h;
  T* const output = p.output + (work.group * int64_t{p.cout_per_group} + work.first_cout) * p.output_stride.c;
  for (int pair = static_cast<int>(threadIdx.x); pair < p.pairs; pair += C::kMultipliers) {
    Places<T> places;
    int image, h, w;                      // of the first
    int first_w = 0, end_w = p.output_w;  // columns that are this tile's
    if (p.flat_pixels > 0) {
      const auto by_phase = p.row_pairs.divide(pair);
      const int n = by_phase.quotient % kPixels, phase_h = by_phase.quotient / kPixels;
      if (work.first_pixel + n >= p.flat_pixels) continue;
      const auto by_image = p.image_pixels.divide(work.first_pixel + n);
      const auto by_row = p.image_w.divide(by_image.remainder);
      image = by_image.quotient;
      h = by_row.quotient * stride_h + phase_h - p.padding_h;
      w = by_row.remainder * stride_w + 2 * by_phase.remainder - p.padding_w;
      places.first_pixel = n - (by_row.quotient * p.window_w + by_row.remainder);
    } else {
      const auto by_row = p.row_pairs.divide(pair);
      const auto by_image = p.rows_out.divide(by_row.quotient);
      image = work.image + by_image.quotient;
      if (image >= p.batch) continue;
      h = work.out_h + by_image.remainder;
      w = (work.out_w & ~1) + 2 * by_row.remainder;
      first_w = max(work.out_w, 0);
      end_w = min(work.out_w + p.cols_out, p.output_w);
      places.first_pixel = (by_image.quotient * p.window_h - work.window_h) * p.window_w - work.window_w;
    }
    if (static_cast<unsigned>(h) >= static_cast<unsigned>(p.output_h)) continue;
    places.in_h = terms_of(p.phases_h, p.shift_step_h, p.input_h, phases_h, h + p.padding_h);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      places.exists[i] = w + i >= first_w && w + i < end_w;
      places.in_w[i] = terms_of(p.phases_w, p.shift_step_w, p.input_w, phases_w, w + i + p.padding_w);
    }
    if (!places.exists[0] && !places.exists[1]) continue;
    places.at = output + image * p.output_stride.n + h * p.output_stride.h + w * p.output_stride.w;
    gather_places<kPixels, kMostTerms, kCouts, kAligned>(p, products, bias, couts, places);
  }
}

template <typename C, typename T>
__device__ inline void gather_any(const Params<T>& p, const Work& work, const float* products,
                                  const int2* phases, const float* bias) {
  using std::integral_constant;
  const auto with = [&](auto most, auto couts, auto aligned) {
    gather<C, decltype(most)::value, decltype(couts)::value, decltype(aligned)::value>(p, work, products,
                                                                                       phases, bias);
  };
  const auto with_couts = [&](auto most, auto aligned) {
    if (p.tile_couts % 8 == 0) return with(most, integral_constant<int, 8>{}, aligned);
    with(most, integral_constant<int, 4>{}, aligned);
  };
  const auto with_aligned = [&](auto most) {
    if (p.row_cout % 4 == 0 && p.tile_couts % 4 == 0) return with_couts(most, std::true_type{});
    with_couts(most, std::false_type{});
  };
  if (p.most_terms == 1) return with_aligned(integral_constant<int, 1>{});
  if (p.most_terms == 2) return with_aligned(integral_constant<int, 2>{});
  with(integral_constant<int, 0>{}, integral_constant<int, 4>{}, std::false_type{});
}

template <typename C, typename T>
__device__ inline void multiply_works(const Params<T>& p, unsigned stages, float* products,
                                      const int2* phases, float* bias, unsigned full, unsigned empty,
                                      unsigned gathered) {
  constexpr int kGroups = C::kGroups, kPixels = C::kPixels;
  constexpr bool kChannelsLast = C::kChannelsLast;
  const int thread = static_cast<int>(threadIdx.x), group = thread / 128;
  constexpr unsigned kLineStep = 16 * kLine / 16;  // of 16 lines, in 16 bytes
  Sums<kPixels> sums;
  int stage = 0, round = 0;
  for (int number = static_cast<int>(blockIdx.x); number < p.works; number += static_cast<int>(gridDim.x)) {
#pragma unroll 1
    for (int chunk = 0; chunk < p.chunks; ++chunk) {
      wait(full + 8 * stage, round % 2);
      fence_for_wgmma();
      const unsigned from = stages + stage * static_cast<unsigned>(p.shared.stage_bytes);
      const unsigned a = wgmma_swizzled_descriptor(from + group * kWeightBytes, 0);
      const unsigned b = wgmma_swizzled_descriptor(from + kGroups * kWeightBytes, kChunk * kLine);
      const auto multiply_step = [&](int step) {
        multiply_lines<T, kPixels, !kChannelsLast>(sums, a + step * kLineStep,
                                                   b + step * (kChannelsLast ? 2u : kLineStep), chunk + step);
      };
      const int steps = chunk_steps(p, chunk);
      wgmma_fence();
      if (steps == kChunk / 16) {
#pragma unroll
        for (int step = 0; step < kChunk / 16; ++step) multiply_step(step);
      } else {
#pragma unroll 1
        for (int step = 0; step < steps; ++step) multiply_step(step);
      }
      wgmma_commit();
      // The other warpgroups keep the tensor cores busy meanwhile.
      wgmma_wait<0>();
      hold(sums);
      if (thread % 32 == 0) arrive(empty + 8 * stage);
      if (++stage == p.stages) stage = 0, ++round;
    }

    const Work work = locate(p, number);
    // Nobody gathers from the products before any more.
    sync_threads<C::kMultipliers>(2);
    if (thread < kGroups * kRows) {
      const int cout = work.first_cout + thread;
      const bool exists = p.bias != nullptr && thread < p.tile_couts && cout < p.cout_per_group;
      bias[thread] =
          exists ? widen(p.bias[(work.group * int64_t{p.cout_per_group} + cout) * p.bias_stride]) : 0.0f;
    }
    write_products<kPixels>(p, work.first_cout + group * p.couts, sums, products);
    sync_threads<C::kMultipliers>(2);
    gather_any<C>(p, work, products, phases, bias);
    if (p.reuses_stages) {
      __syncwarp();
      if (thread % 32 == 0) arrive(gathered);
    }
  }
}

template <typename C, typename T>
__global__ void __launch_bounds__(C::kThreads, 1) col2im_kernel(const __grid_constant__ Params<T> p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  constexpr int kGroups = C::kGroups, kLoaders = C::kLoaders;
  extern __shared__ __align__(1024) unsigned char shared[];
  float* const products = reinterpret_cast<float*>(shared + p.shared.products);
  int64_t* const pixels = reinterpret_cast<int64_t*>(shared + p.shared.pixels);
  int2* const phases = reinterpret_cast<int2*>(shared + p.shared.phases);
  float* const bias = reinterpret_cast<float*>(shared + p.shared.bias);
  const unsigned stages = shared_address(shared);
  const unsigned full = stages + static_cast<unsigned>(p.shared.barriers), empty = full + 8 * p.stages;
  const unsigned gathered = empty + 8 * p.stages;
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    for (int i = 0; i < p.stages; ++i) {
      init_barrier(full + 8 * i, 2 * kLoaders);
      init_barrier(empty + 8 * i, kGroups * 4);
    }
    init_barrier(gathered, kGroups * 4);
  }
  for (int i = thread; i < p.phases_h.stride + p.phases_w.stride; i += C::kThreads) {
    const bool along_h = i < p.phases_h.stride;
    const Phase<int> phase =
        along_h ? phase_of(p.phases_h, i) : phase_of(p.phases_w, i - static_cast<int>(p.phases_h.stride));
    phases[i] = make_int2(phase.taps << 8 | phase.first_tap, phase.first_shift);
  }
  __syncthreads();
  // Together no more than the block begins with: else those that multiply would wait forever.
  constexpr int kLoadRegisters = 56, kMultiplyRegisters = 224;
  static_assert(kLoaders * kLoadRegisters + C::kMultipliers * kMultiplyRegisters <=
                C::kThreads * (65536 / C::kThreads / 8 * 8));
  if (thread < C::kMultipliers) {
    claim_registers<kMultiplyRegisters>();
    multiply_works<C>(p, stages, products, phases, bias, full, empty, gathered);
  } else {
    release_registers<kLoadRegisters>();
    load_works<C>(p, stages, pixels, full, empty, gathered);
  }
#endif
}

// ---------------------------------------------------------------- launch

template <typename T>
Params<T> make_params(const Problem& problem, const Col2imLaunch& launch) {
  Params<T> p = {};
  set_problem(p, problem);
  p.weight = static_cast<const T*>(problem.weight);
  p.weight_stride = problem.weight_stride;
  p.padding_h = static_cast<int>(problem.h.padding);
  p.padding_w = static_cast<int>(problem.w.padding);
  p.phases_h = launch.phases_h;
  p.phases_w = launch.phases_w;
  p.shift_step_h = launch.phases_h.shift_step;
  p.shift_step_w = launch.phases_w.shift_step;
  p.span_h = largest_shift(launch.phases_h);
  p.span_w = largest_shift(launch.phases_w);
  p.works = static_cast<int>(launch.works());
  p.cout_tiles = static_cast<int>(launch.cout_tiles);
  p.tiles_w = static_cast<int>(launch.tiles_w);
  p.tiles_h = static_cast<int>(launch.tiles_h);
  p.image_tiles = static_cast<int>(launch.image_tiles);
  p.couts = launch.couts;
  p.tile_couts = launch.couts * launch.warpgroups();
  p.kernel_w = launch.phases_w.kernel;
  p.taps = launch.phases_h.kernel * launch.phases_w.kernel;
  p.row_couts = launch.couts;
  p.row_cout = launch.row_cout;
  p.row_tap = launch.row_tap;
  p.images = launch.flat ? launch.pixels() : launch.images;
  p.window_h = launch.window_h;
  p.window_w = launch.window_w;
  p.align_w = launch.align_w;
  p.image_w = static_cast<int>(problem.w.input);
  p.image_pixels = launch.flat ? static_cast<int>(problem.h.input * problem.w.input) : 1;
  p.flat_pixels = launch.flat ? static_cast<int>(problem.batch) * p.image_pixels : 0;
  p.rows_out = launch.rows_out;
  p.cols_out = launch.cols_out;
  // Pairs begin at even columns; a tile may begin and end with half of one.
  p.row_pairs = launch.flat ? launch.phases_w.stride / 2 : launch.cols_out / 2 + 1;
  p.pairs = p.row_pairs *
            (launch.flat ? launch.pixels() * launch.phases_h.stride : launch.images * launch.rows_out);
  p.stores_pairs = p.output_w % 2 == 0 && !(launch.flat && p.padding_w % 2 == 1);
  p.origin_h = launch.origin_h;
  p.origin_w = launch.origin_w;
  p.chunks = launch.chunks;
  p.stages = launch.stages;
  p.reuses_stages = launch.reuses_stages;
  // The plan knows sizes and strides; an address may allow less.
  p.weight_bytes = aligned_bytes(problem.weight, launch.weight_bytes);
  p.input_bytes = aligned_bytes(problem.input, launch.input_bytes);
  p.tile_vectors = std::max(p.tile_couts / (p.weight_bytes / 2), 1);
  p.store_couts = problem.output_channels_last ? launch.store_couts : 1;
  p.most_terms = launch.most_terms;
  p.output_channels_last = problem.output_channels_last;
  p.shared = col2im_shared(launch);
  return p;
}

template <typename C, typename T>
cudaError_t launch_config(const Problem& problem, const Col2imLaunch& launch, cudaStream_t stream) {
  auto* kernel = col2im_kernel<C, T>;
  const cudaError_t error = allow_shared_memory(kernel, launch.shared_limit);
  if (error != cudaSuccess) return error;
  kernel<<<launch.grid, C::kThreads, launch.shared_bytes, stream>>>(make_params<T>(problem, launch));
  return cudaGetLastError();
}

// Calls the instantiation for launch.config.
template <typename T, int kIndex = 0>
cudaError_t launch_for(const Problem& problem, const Col2imLaunch& launch, cudaStream_t stream) {
  if constexpr (kIndex < kCol2imConfigCount) {
    if (launch.config != kIndex) return launch_for<T, kIndex + 1>(problem, launch, stream);
    return launch.input_channels_last ? launch_config<Config<kIndex, true>, T>(problem, launch, stream)
                                      : launch_config<Config<kIndex, false>, T>(problem, launch, stream);
  } else {
    return cudaErrorInvalidValue;
  }
}

}  // namespace col2im
}  // namespace convt
