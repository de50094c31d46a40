// tile_simt: tiles of the input and of the weights in shared memory, products on the FMA units, fp32
// accumulation.
//
// A block computes, for one group, a tile of couts x (images x rows x cols) bases, and for it every W-phase
// and `row_phases` of the H-phases (see convt/phases.h). It goes through steps; a step is a phase, a chunk of
// input channels and a chunk of the phase's taps:
//
//   Loader     stages the input pixels under the tile (tile plus halo, zeros outside the image) and the
//   weights of the
//              step's taps. When one chunk holds all channels, the input is read once for all phases. fp32 is
//              copied asynchronously into the other of two buffers while the current one is being used; fp16
//              and bf16 are widened on the way, so that the inner loop converts nothing.
//   MainLoop   thread (warp, lane) owns couts_per_thread output channels and pixels_per_thread bases:
//                acc[i][j] += weight[tap][channel][cout i] * input[channel][base j - shift of the tap]
//              A tap is one address offset for the whole tile.
//   Epilogue   NHWC: a thread holds neighbouring channels of a pixel and stores them directly.
//              NCHW: the W-phases of an output row are interleaved in shared memory, then whole rows are
//              written.
//
// Shared memory is laid out by TileSimtShared. Lanes: lane = lane_pixel * lanes_cout + lane_cout, so that a
// warp reads lanes_pixel neighbouring pixels (16 bytes each) and lanes_cout * 4 neighbouring weights at a
// time.
//
// Sums of one step are added to the running total as one term (see `total`): the rounding error grows with
// the number of products in a step instead of all of them. Padding is multiplied by weights: a non-finite
// weight gives NaN in the outputs that it would reach if the image continued with zeros.
#pragma once

#include <type_traits>

#include "convt/alignment.h"
#include "convt/device/activation.cuh"
#include "convt/device/async_copy.cuh"
#include "convt/device/launch.cuh"
#include "convt/device/scalar.cuh"
#include "convt/device/tap_order.cuh"
#include "convt/kernels.h"
#include "convt/phases.h"
#include "convt/tile_simt.h"

namespace convt {
namespace tile_simt {

template <typename T>
struct Params {
  const T* input;
  const T* weight;
  const float* packed_weight;  // as pack_weights lays it out, or null to read `weight`
  const T* bias;
  T* output;
  ActivationStrides input_stride, output_stride;
  WeightStrides weight_stride;
  int64_t bias_stride;
  ActivationParams<float> activation;

  int batch, cin_per_group, cout_per_group;
  int input_h, input_w, output_h, output_w, padding_h, padding_w;
  AxisPhases<int> phases_h, phases_w;
  int first_base_h, first_base_w;

  Divisor<int> tiles_cout, tiles_w, tiles_h, tiles_n,
      row_phase_splits;  // of the grid, innermost first; then groups
  int images;
  Divisor<int> rows, cols;              // the tile in bases
  Divisor<int> input_rows, input_cols;  // the tile with its halo
  Divisor<int> filter_cols;
  int channel_chunk, channel_chunks, tap_chunk, row_phases;
  PackedWeights packed;  // sides of packed_weight
  int lanes_per_row;     // lanes that write one output row, NCHW
  bool vector_input;     // channels of the input are read four at a time
  bool vector_output;    // channels of the output are written four at a time
  bool channels_last;    // layout of the output
  TileSimtShared shared;
};

// Where a block's tile lies.
struct Tile {
  int group, cout, image, base_h, base_w, first_row_phase, end_row_phase;
};

template <typename T>
__device__ inline Tile locate_tile(const Params<T>& p, int couts) {
  int rest = static_cast<int>(blockIdx.x);
  const auto next = [&rest](const Divisor<int>& size) {
    const auto result = size.divide(rest);
    rest = result.quotient;
    return result.remainder;
  };
  Tile tile;
  tile.cout = next(p.tiles_cout) * couts;
  tile.base_w = p.first_base_w + next(p.tiles_w) * p.cols;
  tile.base_h = p.first_base_h + next(p.tiles_h) * p.rows;
  tile.image = next(p.tiles_n) * p.images;
  tile.first_row_phase = next(p.row_phase_splits) * p.row_phases;
  tile.end_row_phase = min(tile.first_row_phase + p.row_phases, static_cast<int>(p.phases_h.stride));
  tile.group = rest;
  return tile;
}

// One tap of the filter; the table lists them in the order of convt/device/tap_order.cuh.
struct Tap {
  unsigned short kh, kw;
  int shift;  // pixels back in the staged input
};

template <typename T>
__device__ inline void fill_tap_table(const Params<T>& p, Tap* table, int thread, int threads) {
  const int taps = p.phases_h.kernel * p.phases_w.kernel;
  for (int index = thread; index < taps; index += threads) {
    const auto tap = p.filter_cols.divide(index);
    const TapPlace place = place_of_tap(p.phases_h, p.phases_w, tap.quotient, tap.remainder);
    table[place.position] = {static_cast<unsigned short>(tap.quotient),
                             static_cast<unsigned short>(tap.remainder),
                             place.shift_h * p.input_cols + place.shift_w};
  }
}

// What a block does between two barriers.
struct Step {
  int row_phase, col_phase;
  int phase_begin, phase_taps;  // the phase's taps in the table
  int channel;                  // first input channel of the chunk
  int tap, taps;                // taps of this step, counted from phase_begin

  __device__ bool starts_chunk() const { return tap == 0; }
};

template <typename T>
__device__ inline void enter_phase(const Params<T>& p, Step& step) {
  step.phase_taps = phase_of(p.phases_h, step.row_phase).taps * phase_of(p.phases_w, step.col_phase).taps;
  step.channel = 0;
  step.tap = 0;
  step.taps = min(step.phase_taps, p.tap_chunk);
}

template <typename T>
__device__ inline Step first_step(const Params<T>& p, const Tile& tile) {
  Step step;
  step.row_phase = tile.first_row_phase;
  step.col_phase = 0;
  step.phase_begin = taps_before(p.phases_h, step.row_phase) * p.phases_w.kernel;
  enter_phase(p, step);
  return step;
}

template <typename T>
__device__ inline bool ends_phase(const Params<T>& p, const Step& step) {
  return step.tap + step.taps == step.phase_taps &&
         (step.phase_taps == 0 || step.channel + p.channel_chunk >= p.cin_per_group);
}

// Goes to the next step: next taps, then next channels, then next phase. A phase without taps is one empty
// step.
template <typename T>
__device__ inline void advance(const Params<T>& p, Step& step) {
  if (step.tap + step.taps < step.phase_taps) {
    step.tap += step.taps;
    step.taps = min(step.phase_taps - step.tap, p.tap_chunk);
  } else if (!ends_phase(p, step)) {
    step.channel += p.channel_chunk;
    step.tap = 0;
    step.taps = min(step.phase_taps, p.tap_chunk);
  } else {
    step.phase_begin += step.phase_taps;
    if (++step.col_phase == p.phases_w.stride) {
      step.col_phase = 0;
      ++step.row_phase;
    }
    enter_phase(p, step);
  }
}

// ---------------------------------------------------------------- Loader

// kCount channels of one pixel.
template <int kCount>
struct alignas(kCount * sizeof(float)) Channels {
  float value[kCount];
};

// Stages the kVector channels of one pixel at a time, from elements of type T `stride` apart. fp32 is copied
// asynchronously. 16-bit elements pass through registers, where they are widened: several vectors are read
// before the first is used, so that their latencies overlap.
template <int kVector, typename T>
__device__ inline void stage_channels(const T* source, int64_t stride, bool valid, int channels,
                                      float* planes, int plane) {
  if constexpr (std::is_same_v<T, float>) {
    for (int first = 0; first < channels; first += kVector) {
#pragma unroll
      for (int c = 0; c < kVector; ++c) {
        const bool present = valid && first + c < channels;
        copy_async<4>(planes + c, present ? source + c * stride : source, present);
      }
      source += kVector * stride;
      planes += plane * kVector;
    }
  } else {
    constexpr int kBatch = 16 / kVector;
    for (int first = 0; first < channels; first += kBatch * kVector) {
      T elements[kBatch * kVector];
#pragma unroll
      for (int i = 0; i < kBatch * kVector; ++i) {
        elements[i] = valid && first + i < channels ? source[i * stride] : T(0.0f);
      }
#pragma unroll
      for (int v = 0; v < kBatch; ++v) {
        if (first + v * kVector < channels) {
          Channels<kVector> widened;
#pragma unroll
          for (int c = 0; c < kVector; ++c) widened.value[c] = widen(elements[v * kVector + c]);
          reinterpret_cast<Channels<kVector>*>(planes)[v * plane] = widened;
        }
      }
      source += kBatch * kVector * stride;
      planes += kBatch * plane * kVector;
    }
  }
}

// Stages four neighbouring channels read at once.
template <typename T>
__device__ inline void stage_vector(const T* source, bool valid, float* destination) {
  if constexpr (std::is_same_v<T, float>) {
    copy_async<16>(destination, source, valid);
  } else {
    uint2 bits = make_uint2(0, 0);
    if (valid) bits = *reinterpret_cast<const uint2*>(source);
    T elements[4];
    memcpy(elements, &bits, sizeof(bits));
    *reinterpret_cast<float4*>(destination) =
        make_float4(widen(elements[0]), widen(elements[1]), widen(elements[2]), widen(elements[3]));
  }
}

// The pixel of the image that lies under a pixel of the staged tile.
template <typename T>
__device__ inline const T* staged_source(const Params<T>& p, const Tile& tile, const T* group_input,
                                         int pixel, bool* valid) {
  const auto by_row = p.input_cols.divide(pixel);
  const auto by_image = p.input_rows.divide(by_row.quotient);
  const int n = tile.image + by_image.quotient;
  const int h = tile.base_h - p.shared.halo_h + by_image.remainder;
  const int w = tile.base_w - p.shared.halo_w + by_row.remainder;
  *valid = n < p.batch && h >= 0 && h < p.input_h && w >= 0 && w < p.input_w;
  return *valid ? group_input + n * p.input_stride.n + h * p.input_stride.h + w * p.input_stride.w
                : group_input;
}

// Layout of `planes`: [channel / V][pixel][V], V = channel_vector. Pixels outside the image are zeros.
template <typename Config, typename T>
__device__ inline void stage_input(const Params<T>& p, const Tile& tile, const T* group_input, int channel,
                                   float* planes) {
  constexpr int kVector = Config::kChannelVector;
  const int pixels = p.images * p.input_rows * p.input_cols;
  const int channels = min(p.channel_chunk, p.cin_per_group - channel);
  if (kVector == 4 && p.vector_input) {
    // NHWC: neighbouring threads read neighbouring channels. channel_chunk is a power of two.
    const int vectors = p.channel_chunk / kVector;
    const int log2_vectors = __ffs(vectors) - 1;
#pragma unroll 4
    for (int index = threadIdx.x; index < pixels * vectors; index += Config::kThreads) {
      const int vector = index & (vectors - 1);
      const int pixel = index >> log2_vectors;
      const bool present = vector * kVector < channels;
      bool valid;
      const T* source = staged_source(p, tile, group_input, pixel, &valid);
      source += valid && present ? channel + vector * kVector : 0;
      stage_vector(source, valid && present, planes + (vector * p.shared.plane + pixel) * kVector);
    }
  } else {
    // NCHW and everything else: neighbouring threads read neighbouring pixels of one channel.
    for (int pixel = threadIdx.x; pixel < pixels; pixel += Config::kThreads) {
      bool valid;
      const T* source = staged_source(p, tile, group_input, pixel, &valid);
      source += valid ? channel * p.input_stride.c : 0;
      stage_channels<kVector>(source, p.input_stride.c, valid, channels, planes + pixel * kVector,
                              p.shared.plane);
    }
  }
}

// Layout of `weights`: [tap of the step][channel of the chunk][cout of the tile]. Missing channels are zeros.
template <typename Config, typename T>
__device__ inline void stage_weights(const Params<T>& p, const Tile& tile, const T* group_weight,
                                     const Tap* table, const Step& step, float* weights) {
  const int log2_chunk = __ffs(p.channel_chunk) - 1;
  const int rows = step.taps * p.channel_chunk;
  const int first_tap = step.phase_begin + step.tap;
  if constexpr (Config::kCouts % 4 == 0) {
    if (p.packed_weight != nullptr) {
      constexpr int kQuads = Config::kCouts / 4;
      const int quad = threadIdx.x % kQuads;
      const int64_t first_row =
          (static_cast<int64_t>(tile.group) * p.packed.taps + first_tap) * p.packed.cin + step.channel;
      const float* source = p.packed_weight + first_row * p.packed.cout + tile.cout + 4 * quad;
      for (int row = threadIdx.x / kQuads; row < rows; row += Config::kThreads / kQuads) {
        const int source_row = (row >> log2_chunk) * p.packed.cin + (row & (p.channel_chunk - 1));
        copy_async<16>(weights + row * Config::kCouts + 4 * quad,
                       source + static_cast<int64_t>(source_row) * p.packed.cout, true);
      }
      return;
    }
  }
  const int cout = threadIdx.x % Config::kCouts;
  const bool cout_present = tile.cout + cout < p.cout_per_group;
  for (int row = threadIdx.x / Config::kCouts; row < rows; row += Config::kThreads / Config::kCouts) {
    const int channel = step.channel + (row & (p.channel_chunk - 1));
    const bool present = cout_present && channel < p.cin_per_group;
    const Tap tap = table[first_tap + (row >> log2_chunk)];
    const T* source = group_weight;
    if (present) {
      source += channel * p.weight_stride.cin + (tile.cout + cout) * p.weight_stride.cout +
                tap.kh * p.weight_stride.kh + tap.kw * p.weight_stride.kw;
    }
    float* destination = weights + row * Config::kCouts + cout;
    if constexpr (std::is_same_v<T, float>) {
      copy_async<4>(destination, source, present);
    } else {
      *destination = present ? widen(*source) : 0.0f;
    }
  }
}

// ---------------------------------------------------------------- MainLoop

template <typename Config>
using Sums = float[Config::kCoutsPerThread][Config::kPixelsPerThread];

template <typename Config>
__device__ inline void clear(Sums<Config>& sums) {
#pragma unroll
  for (auto& row : sums) {
#pragma unroll
    for (float& sum : row) sum = 0.0f;
  }
}

// Adds the products of a step to `total`. `pixel[j]` is the staged pixel of base j under the tap with shift
// 0.
template <typename Config>
__device__ inline void multiply(const Tap* taps, int tap_count, int vectors, int channel_chunk, int plane,
                                const float* planes, const float* weights,
                                const int (&pixel)[Config::kPixelsPerThread], Sums<Config>& total) {
  constexpr int kVector = Config::kChannelVector;
  Sums<Config> acc;
  clear<Config>(acc);
  for (int tap = 0; tap < tap_count; ++tap) {
    const auto* input = reinterpret_cast<const Channels<kVector>*>(planes) - taps[tap].shift;
    const float* row = weights + tap * channel_chunk * Config::kCouts;
    // Two vectors of a small tile's products hide the latency of shared memory; a large tile's one does.
#pragma unroll(Config::kCoutsPerThread* Config::kPixelsPerThread >= 32 ? 1 : 2)
    for (int vector = 0; vector < vectors; ++vector) {
      Channels<kVector> x[Config::kPixelsPerThread];
#pragma unroll
      for (int j = 0; j < Config::kPixelsPerThread; ++j) x[j] = input[pixel[j]];
#pragma unroll
      for (int c = 0; c < kVector; ++c) {
        float w[Config::kCoutsPerThread];
        if constexpr (Config::kCoutsPerThread % 4 == 0) {
#pragma unroll
          for (int quad = 0; quad < Config::kCoutsPerThread / 4; ++quad) {
            *reinterpret_cast<float4*>(w + 4 * quad) =
                *reinterpret_cast<const float4*>(row + quad * 4 * Config::kLanesCout);
          }
        } else {
          w[0] = row[0];
        }
        row += Config::kCouts;
#pragma unroll
        for (int i = 0; i < Config::kCoutsPerThread; ++i) {
#pragma unroll
          for (int j = 0; j < Config::kPixelsPerThread; ++j) acc[i][j] = fmaf(w[i], x[j].value[c], acc[i][j]);
        }
      }
      input += plane;
    }
  }
#pragma unroll
  for (int i = 0; i < Config::kCoutsPerThread; ++i) {
#pragma unroll
    for (int j = 0; j < Config::kPixelsPerThread; ++j) total[i][j] += acc[i][j];
  }
}

// ---------------------------------------------------------------- Epilogue

// The base that a thread's pixel stands for; `image` is -1 past the end of the tile.
struct Base {
  int image, row, col;
};

template <typename T>
__device__ inline Base base_of_pixel(const Params<T>& p, int pixel) {
  const auto by_row = p.cols.divide(pixel);
  const auto by_image = p.rows.divide(by_row.quotient);
  return {by_image.quotient < p.images ? by_image.quotient : -1, by_image.remainder, by_row.remainder};
}

// Output channel i of a thread, counted from its first: groups of four, kLanesCout groups apart.
template <typename Config>
__device__ constexpr int cout_offset(int i) {
  return (i / 4) * 4 * Config::kLanesCout + i % 4;
}

// The sums of a thread, one after the other.
template <typename Config>
__device__ inline auto& all_of(Sums<Config>& sums) {
  return reinterpret_cast<float (&)[Config::kCoutsPerThread * Config::kPixelsPerThread]>(sums);
}

// `cout` is, here and below, the thread's first output channel in the tile. Read here rather than kept in
// registers.
template <typename Config, typename T>
__device__ inline void add_bias(const Params<T>& p, const Tile& tile, int cout, Sums<Config>& sums) {
  if (p.bias == nullptr) return;
#pragma unroll
  for (int i = 0; i < Config::kCoutsPerThread; ++i) {
    const int c = tile.cout + cout + cout_offset<Config>(i);
    if (c >= p.cout_per_group) continue;
    const float bias =
        widen(p.bias[(static_cast<int64_t>(tile.group) * p.cout_per_group + c) * p.bias_stride]);
#pragma unroll
    for (float& sum : sums[i]) sum += bias;
  }
}

// NHWC: stores a phase from registers.
template <typename Config, typename T>
__device__ inline void store_pixels(const Params<T>& p, const Tile& tile, const Step& step, int first_pixel,
                                    int cout, const Sums<Config>& sums) {
  constexpr int kQuads = (Config::kCoutsPerThread + 3) / 4;
  constexpr int kPerQuad = Config::kCoutsPerThread / kQuads;
#pragma unroll
  for (int j = 0; j < Config::kPixelsPerThread; ++j) {
    const Base base = base_of_pixel(p, first_pixel + j * Config::kLanesPixel);
    const int n = tile.image + base.image;
    const int h = (tile.base_h + base.row) * p.phases_h.stride + step.row_phase - p.padding_h;
    const int w = (tile.base_w + base.col) * p.phases_w.stride + step.col_phase - p.padding_w;
    if (base.image < 0 || n >= p.batch || h < 0 || h >= p.output_h || w < 0 || w >= p.output_w) continue;
    T* pixel = p.output + n * p.output_stride.n + h * p.output_stride.h + w * p.output_stride.w +
               static_cast<int64_t>(tile.group) * p.cout_per_group;
#pragma unroll
    for (int quad = 0; quad < kQuads; ++quad) {
      const int c = tile.cout + cout + cout_offset<Config>(4 * quad);
      alignas(16) T values[kPerQuad];
#pragma unroll
      for (int i = 0; i < kPerQuad; ++i) {
        values[i] = narrow<T>(sums[quad * kPerQuad + i][j]);
      }
      if (kPerQuad == 4 && p.vector_output) {
        using Bits = std::conditional_t<sizeof(T) == 4, uint4, uint2>;
        if (c < p.cout_per_group)
          *reinterpret_cast<Bits*>(pixel + c) = *reinterpret_cast<const Bits*>(values);
      } else {
#pragma unroll
        for (int i = 0; i < kPerQuad; ++i) {
          if (c + i < p.cout_per_group) pixel[c + i] = values[i];
        }
      }
    }
  }
}

// NCHW: puts a phase into its places in the output rows, [cout][image * rows + row][pitch].
template <typename Config, typename T>
__device__ inline void stage_output(const Params<T>& p, const Step& step, int first_pixel, int cout,
                                    const Sums<Config>& sums, T* rows) {
  const int cout_pitch = p.images * p.rows * p.shared.output_pitch;
#pragma unroll
  for (int j = 0; j < Config::kPixelsPerThread; ++j) {
    const Base base = base_of_pixel(p, first_pixel + j * Config::kLanesPixel);
    if (base.image < 0) continue;
    T* place = rows + (base.image * p.rows + base.row) * p.shared.output_pitch +
               base.col * p.phases_w.stride + step.col_phase + cout * cout_pitch;
#pragma unroll
    for (int i = 0; i < Config::kCoutsPerThread; ++i) {
      place[cout_offset<Config>(i) * cout_pitch] = narrow<T>(sums[i][j]);
    }
  }
}

// NCHW: writes the staged rows of one H-phase. `lanes_per_row` lanes take one row; 16-bit elements go in
// aligned pairs.
template <typename Config, typename T>
__device__ inline void write_rows(const Params<T>& p, const Tile& tile, int row_phase, const T* rows) {
  constexpr int kVector = sizeof(T) == 4 ? 1 : 2;
  const int couts = min(Config::kCouts, p.cout_per_group - tile.cout);
  const int rows_per_cout = p.images * p.rows;
  const int lane = threadIdx.x & (p.lanes_per_row - 1);
  const int log2_lanes = __ffs(p.lanes_per_row) - 1;
  const int first_w = tile.base_w * p.phases_w.stride - p.padding_w;
  const int begin = max(0, -first_w);
  const int end = min(p.cols * p.phases_w.stride, p.output_w - first_w);
  for (int image = 0; image < p.images; ++image) {
    const int n = tile.image + image;
    if (n >= p.batch) break;
    for (int index = static_cast<int>(threadIdx.x) >> log2_lanes; index < couts * p.rows;
         index += Config::kThreads >> log2_lanes) {
      const auto by_cout = p.rows.divide(index);
      const int h = (tile.base_h + by_cout.remainder) * p.phases_h.stride + row_phase - p.padding_h;
      if (h < 0 || h >= p.output_h) continue;
      const int64_t channel =
          static_cast<int64_t>(tile.group) * p.cout_per_group + tile.cout + by_cout.quotient;
      T* destination =
          p.output + n * p.output_stride.n + channel * p.output_stride.c + h * p.output_stride.h + first_w;
      const T* source = rows + (by_cout.quotient * rows_per_cout + image * p.rows + by_cout.remainder) *
                                   p.shared.output_pitch;
      if constexpr (kVector == 1) {
        for (int w = begin + lane; w < end; w += p.lanes_per_row) destination[w] = source[w];
      } else {
        // Start at or below `begin`, where the address is a multiple of the pair's size.
        const int misaligned =
            static_cast<int>((reinterpret_cast<uintptr_t>(destination + begin) / sizeof(T)) % kVector);
        for (int w = begin - misaligned + lane * kVector; w < end; w += p.lanes_per_row * kVector) {
          if (w >= begin && w + 1 < end) {
            alignas(4) const T pair[2] = {source[w], source[w + 1]};
            *reinterpret_cast<unsigned*>(destination + w) = *reinterpret_cast<const unsigned*>(pair);
          } else if (w >= begin) {
            destination[w] = source[w];
          } else if (w + 1 < end) {
            destination[w + 1] = source[w + 1];
          }
        }
      }
    }
  }
}

// ---------------------------------------------------------------- kernel

template <int kIndex>
struct Config {
  static constexpr TileSimtConfig kShape = kTileSimtConfigs[kIndex];
  static constexpr int kCoutsPerThread = kShape.couts_per_thread;
  static constexpr int kPixelsPerThread = kShape.pixels_per_thread;
  static constexpr int kLanesCout = kShape.lanes_cout;
  static constexpr int kLanesPixel = kShape.lanes_pixel();
  static constexpr int kWarpsCout = kShape.warps_cout;
  static constexpr int kChannelVector = kShape.channel_vector;
  static constexpr int kThreads = kShape.threads();
  static constexpr int kCouts = kShape.couts();
  static constexpr int kMinBlocks = kShape.min_blocks;
};

template <typename T, typename Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kMinBlocks)
    tile_simt_kernel(const __grid_constant__ Params<T> p) {
  extern __shared__ __align__(16) unsigned char shared[];
  Tap* const table = reinterpret_cast<Tap*>(shared);
  float* const planes = reinterpret_cast<float*>(shared + p.shared.input_offset);
  float* const weights = reinterpret_cast<float*>(shared + p.shared.weights_offset);
  T* const output_rows = reinterpret_cast<T*>(shared + p.shared.output_offset);
  const int planes_size = p.channel_chunk * p.shared.plane;
  const int weights_size = p.tap_chunk * p.channel_chunk * Config::kCouts;

  const Tile tile = locate_tile(p, Config::kCouts);
  const T* const group_input =
      p.input + static_cast<int64_t>(tile.group) * p.cin_per_group * p.input_stride.c;
  const T* const group_weight =
      p.weight + static_cast<int64_t>(tile.group) * p.cin_per_group * p.weight_stride.cin;

  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int lane_cout = lane % Config::kLanesCout;
  constexpr int kCoutsPerLane = Config::kCoutsPerThread < 4 ? Config::kCoutsPerThread : 4;
  int cout =
      (warp % Config::kWarpsCout) * Config::kCoutsPerThread * Config::kLanesCout + lane_cout * kCoutsPerLane;
  int first_pixel = (warp / Config::kWarpsCout) * Config::kPixelsPerThread * Config::kLanesPixel +
                    lane / Config::kLanesCout;

  int pixel[Config::kPixelsPerThread];
#pragma unroll
  for (int j = 0; j < Config::kPixelsPerThread; ++j) {
    const Base base = base_of_pixel(p, first_pixel + j * Config::kLanesPixel);
    // A pixel past the end of the tile computes what the first one does, and is not stored.
    pixel[j] = base.image < 0 ? p.shared.halo_h * p.input_cols + p.shared.halo_w
                              : (base.image * p.input_rows + base.row + p.shared.halo_h) * p.input_cols +
                                    base.col + p.shared.halo_w;
  }

  fill_tap_table(p, table, threadIdx.x, Config::kThreads);
  __syncthreads();

  Step step = first_step(p, tile);
  int input_buffer = 0, weights_buffer = 0;
  stage_input<Config>(p, tile, group_input, step.channel, planes);
  stage_weights<Config>(p, tile, group_weight, table, step, weights);

  Sums<Config> total;
  clear<Config>(total);
  while (step.row_phase < tile.end_row_phase) {
    wait_for_copies();
    // The step's stage is complete, and nobody uses the buffers of the step before.
    __syncthreads();

    Step next = step;
    advance(p, next);
    int next_input_buffer = input_buffer;
    if (next.row_phase < tile.end_row_phase && next.taps > 0) {
      if (p.channel_chunks > 1 && next.starts_chunk()) {
        next_input_buffer ^= 1;
        stage_input<Config>(p, tile, group_input, next.channel, planes + next_input_buffer * planes_size);
      }
      stage_weights<Config>(p, tile, group_weight, table, next,
                            weights + (weights_buffer ^ 1) * weights_size);
    }

    const int channels = min(p.channel_chunk, p.cin_per_group - step.channel);
    multiply<Config>(table + step.phase_begin + step.tap, step.taps,
                     (channels + Config::kChannelVector - 1) / Config::kChannelVector, p.channel_chunk,
                     p.shared.plane, planes + input_buffer * planes_size,
                     weights + weights_buffer * weights_size + cout, pixel, total);

    if (ends_phase(p, step)) {
      add_bias<Config>(p, tile, cout, total);
      if (!p.activation.is_identity()) activate_sums<T, 1>(p.activation, all_of<Config>(total));
      if constexpr (Config::kChannelVector == 1 && Config::kCoutsPerThread == 4) {
        // Where the sums go is found anew: there are no registers to keep it in.
        cout = afresh(cout);
        first_pixel = afresh(first_pixel);
      }
      if (p.channels_last) {
        store_pixels<Config>(p, tile, step, first_pixel, cout, total);
      } else {
        stage_output<Config>(p, step, first_pixel, cout, total, output_rows);
        if (step.col_phase + 1 == p.phases_w.stride) {
          __syncthreads();
          write_rows<Config>(p, tile, step.row_phase, output_rows);
        }
      }
      clear<Config>(total);
    }
    step = next;
    input_buffer = next_input_buffer;
    weights_buffer ^= 1;
  }
}

// ---------------------------------------------------------------- launch

inline bool is_multiple(int64_t value, int64_t of) { return value % of == 0; }

template <typename T>
Params<T> make_params(const Problem& problem, const TileSimtLaunch& launch, const void* workspace) {
  const TileSimtConfig& config = kTileSimtConfigs[launch.config];
  Params<T> p;
  set_problem(p, problem);
  p.weight = static_cast<const T*>(problem.weight);
  p.packed_weight = launch.packs_weights ? static_cast<const float*>(workspace) : nullptr;
  p.packed = launch.packed;
  p.weight_stride = problem.weight_stride;
  p.padding_h = static_cast<int>(problem.h.padding);
  p.padding_w = static_cast<int>(problem.w.padding);
  p.phases_h = launch.phases_h;
  p.phases_w = launch.phases_w;
  p.first_base_h = launch.first_base_h;
  p.first_base_w = launch.first_base_w;
  p.tiles_cout = static_cast<int>(launch.tiles_cout);
  p.tiles_w = static_cast<int>(launch.tiles_w);
  p.tiles_h = static_cast<int>(launch.tiles_h);
  p.tiles_n = static_cast<int>(launch.tiles_n);
  p.row_phase_splits = static_cast<int>(launch.row_phase_splits);
  p.images = launch.images;
  p.rows = launch.rows;
  p.cols = launch.cols;
  p.channel_chunk = launch.channel_chunk;
  p.channel_chunks = launch.channel_chunks;
  p.tap_chunk = launch.tap_chunk;
  p.row_phases = launch.row_phases;
  p.channels_last = problem.output_channels_last;
  p.shared = tile_simt_shared(launch, config.couts(), sizeof(T), problem.output_channels_last);
  p.input_rows = p.shared.input_rows;
  p.input_cols = p.shared.input_cols;
  p.filter_cols = launch.phases_w.kernel;
  const int row_length = launch.cols * launch.phases_w.stride * static_cast<int>(sizeof(T)) / 4;
  p.lanes_per_row = 4;
  while (p.lanes_per_row < 32 && p.lanes_per_row < row_length) p.lanes_per_row *= 2;

  const int64_t vector_bytes = 4 * sizeof(T);
  const ActivationStrides& in = problem.input_stride;
  p.vector_input = launch.vector_input && is_aligned(problem.input, vector_bytes) && is_multiple(in.n, 4) &&
                   is_multiple(in.h, 4) && is_multiple(in.w, 4) && is_multiple(problem.cin_per_group, 4);
  p.vector_output = is_aligned(problem.output, vector_bytes) && is_multiple(problem.cout_per_group, 4);
  return p;
}

template <typename T, int kIndex>
cudaError_t launch_config(const Problem& problem, const TileSimtLaunch& launch, const void* workspace,
                          cudaStream_t stream) {
  auto* kernel = tile_simt_kernel<T, Config<kIndex>>;
  const cudaError_t error = allow_shared_memory(kernel, launch.shared_limit);
  if (error != cudaSuccess) return error;
  kernel<<<static_cast<unsigned>(launch.blocks()), Config<kIndex>::kThreads, launch.shared_bytes, stream>>>(
      make_params<T>(problem, launch, workspace));
  return cudaGetLastError();
}

// Calls the instantiation for launch.config.
template <typename T, int kIndex = 0>
cudaError_t launch_for(const Problem& problem, const TileSimtLaunch& launch, const void* workspace,
                       cudaStream_t stream) {
  if constexpr (kIndex < kTileSimtConfigCount) {
    if (launch.config == kIndex) return launch_config<T, kIndex>(problem, launch, workspace, stream);
    return launch_for<T, kIndex + 1>(problem, launch, workspace, stream);
  } else {
    return cudaErrorInvalidValue;
  }
}

}  // namespace tile_simt
}  // namespace convt
