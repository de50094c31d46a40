// Epilogue of the tensor-core kernels: bias, rounding, activation, and stores of whole lines.
//
// Each warp works alone, on its own part of shared memory, with no barrier of the block: warps that still
// multiply hide those that store. A warp first lays its sums out as the output has them, then copies lines:
//
//   NCHW   line (phase along H, output channel), elements pixel * phases_w + phase along W: the W-phases are
//          interleaved, and a line is a piece of an output row
//   NHWC   line (phase, pixel), elements output channel; 8 x 8 blocks of sums are transposed in registers
//
// Lines are output_pitch elements apart, which keeps the stores of a warp in different banks. The activation
// is applied to lines where they lie.
#pragma once

#include "convt/device/activation.cuh"
#include "convt/device/mma.cuh"
#include "convt/device/scalar.cuh"
#include "convt/device/tile_params.cuh"

namespace convt {
namespace tile_mma {

template <typename Config>
using Sums = float[Config::kBlocksM][Config::kBlocksN][4];

// Sums of one warp that are stored together: rows of (phase along H, phase along W, output channel).
template <typename T>
struct Output {
  T* lines;                // the warp's part of shared memory
  int first_pixel;         // of the warp in the tile
  int first_cout;          // of the rows in the group
  int log2_couts;          // of each phase
  int couts;               // of them, that exist
  int phase_h, phase_w;    // first of the phases
  int phases_h, phases_w;  // number of phases
  int lane;

  __device__ int group() const { return lane / 4; }
  __device__ int member() const { return lane % 4; }
};

template <typename Config, typename T>
__device__ inline void add_bias(const Params<T>& p, const Tile& tile, const Output<T>& out,
                                Sums<Config>& sums) {
  if (p.bias == nullptr) return;
  const int mask = (1 << out.log2_couts) - 1;
  const T* bias =
      p.bias + (static_cast<int64_t>(tile.group) * p.cout_per_group + out.first_cout) * p.bias_stride;
#pragma unroll
  for (int i = 0; i < Config::kBlocksM; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int cout = (16 * i + 8 * half + out.group()) & mask;
      const float value = cout < out.couts ? widen(bias[cout * p.bias_stride]) : 0.0f;
#pragma unroll
      for (int j = 0; j < Config::kBlocksN; ++j) {
        sums[i][j][2 * half] += value;
        sums[i][j][2 * half + 1] += value;
      }
    }
  }
}

// Writes neighbouring elements, as many bytes at once as there are, at most 16.
template <typename T, typename... Values>
__device__ inline void store_run(T* place, Values... values) {
  const float sums[] = {values...};
  constexpr int kWords = sizeof...(values) * sizeof(T) / 4;
  unsigned words[kWords];
#pragma unroll
  for (int i = 0; i < kWords; ++i) {
    if constexpr (sizeof(T) == 4) {
      words[i] = __float_as_uint(sums[i]);
    } else {
      words[i] = pack_pair<T>(sums[2 * i], sums[2 * i + 1]);
    }
  }
  if constexpr (kWords == 1) {
    *reinterpret_cast<unsigned*>(place) = words[0];
  } else if constexpr (kWords == 2) {
    *reinterpret_cast<uint2*>(place) = make_uint2(words[0], words[1]);
  } else {
#pragma unroll
    for (int i = 0; i < kWords; i += 4)
      reinterpret_cast<uint4*>(place)[i / 4] = make_uint4(words[i], words[i + 1], words[i + 2], words[i + 3]);
  }
}

// NCHW, one phase along W: neighbouring pixels are neighbouring elements.
template <typename Config, typename T>
__device__ inline void lay_single_phase(const Params<T>& p, const Output<T>& out, const Sums<Config>& sums) {
#pragma unroll
  for (int i = 0; i < Config::kBlocksM; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int line = 16 * i + 8 * half + out.group();
      if (line >= (out.phases_h << out.log2_couts)) continue;
      T* place = out.lines + line * p.shared.output_pitch + 2 * out.member();
#pragma unroll
      for (int j = 0; j < Config::kBlocksN; ++j) {
        store_run(place + 8 * j, sums[i][j][2 * half], sums[i][j][2 * half + 1]);
      }
    }
  }
}

// NCHW, two phases along W in the two halves of the row blocks: four neighbouring elements are in one lane.
template <typename Config, typename T>
__device__ inline void lay_two_phases(const Params<T>& p, const Output<T>& out, const Sums<Config>& sums) {
  constexpr int kHalf = Config::kBlocksM / 2;
#pragma unroll
  for (int i = 0; i < kHalf; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      T* place = out.lines + (16 * i + 8 * half + out.group()) * p.shared.output_pitch + 4 * out.member();
#pragma unroll
      for (int j = 0; j < Config::kBlocksN; ++j) {
        const float (&even)[4] = sums[i][j];
        const float (&odd)[4] = sums[i + kHalf][j];
        store_run(place + 16 * j, even[2 * half], odd[2 * half], even[2 * half + 1], odd[2 * half + 1]);
      }
    }
  }
}

// NCHW, two phases along W in the two halves of each row block.
template <typename Config, typename T>
__device__ inline void lay_halves(const Params<T>& p, const Output<T>& out, const Sums<Config>& sums) {
  T* const place = out.lines + out.group() * p.shared.output_pitch + 4 * out.member();
#pragma unroll
  for (int j = 0; j < Config::kBlocksN; ++j) {
    const float (&c)[4] = sums[0][j];
    store_run(place + 16 * j, c[0], c[2], c[1], c[3]);
  }
}

// NCHW, four phases along W in the halves of two row blocks.
template <typename Config, typename T>
__device__ inline void lay_four_phases(const Params<T>& p, const Output<T>& out, const Sums<Config>& sums) {
  T* const place = out.lines + out.group() * p.shared.output_pitch + 8 * out.member();
#pragma unroll
  for (int j = 0; j < Config::kBlocksN; ++j) {
    const float (&low)[4] = sums[0][j];
    const float (&high)[4] = sums[1][j];
    store_run(place + 32 * j, low[0], low[2], high[0], high[2], low[1], low[3], high[1], high[3]);
  }
}

// NCHW, any phases: element by element.
template <typename Config, typename T>
__device__ inline void lay_phases(const Params<T>& p, const Output<T>& out, const Sums<Config>& sums) {
  const int phases = out.phases_h * out.phases_w;
  const int mask = (1 << out.log2_couts) - 1;
#pragma unroll
  for (int i = 0; i < Config::kBlocksM; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = 16 * i + 8 * half + out.group();
      if ((row >> out.log2_couts) >= phases) continue;
      const auto phase = p.phases_w.divide(row >> out.log2_couts);
      T* place = out.lines + ((phase.quotient << out.log2_couts) + (row & mask)) * p.shared.output_pitch +
                 2 * out.member() * p.phases_w + phase.remainder;
#pragma unroll
      for (int j = 0; j < Config::kBlocksN; ++j) {
        place[8 * j * p.phases_w] = narrow<T>(sums[i][j][2 * half]);
        place[(8 * j + 1) * p.phases_w] = narrow<T>(sums[i][j][2 * half + 1]);
      }
    }
  }
}

// NHWC, elements of 32 bits: what a lane has lies in different pixels.
template <typename Config>
__device__ inline void lay_words(const Params<float>& p, const Output<float>& out, const Sums<Config>& sums) {
  const int phases = out.phases_h * out.phases_w;
  const int mask = (1 << out.log2_couts) - 1, pitch = p.shared.output_pitch;
#pragma unroll
  for (int i = 0; i < Config::kBlocksM; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = 16 * i + 8 * half + out.group();
      const int phase = row >> out.log2_couts;
      if (phase >= phases) continue;
      float* const place =
          out.lines + (phase * Config::kWarpPixels + 2 * out.member()) * pitch + (row & mask);
#pragma unroll
      for (int j = 0; j < Config::kBlocksN; ++j) {
        place[8 * j * pitch] = sums[i][j][2 * half];
        place[(8 * j + 1) * pitch] = sums[i][j][2 * half + 1];
      }
    }
  }
}

// NHWC, elements of 16 bits.
template <typename Config, typename T>
__device__ inline void lay_pairs(const Params<T>& p, const Output<T>& out, const Sums<Config>& sums) {
  const int phases = out.phases_h * out.phases_w;
  const int mask = (1 << out.log2_couts) - 1;
#pragma unroll
  for (int i = 0; i < Config::kBlocksM; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = 16 * i + 8 * half + 2 * out.member();
      const int phase = row >> out.log2_couts;
      T* place =
          out.lines + (phase * Config::kWarpPixels + out.group()) * p.shared.output_pitch + (row & mask);
#pragma unroll
      for (int j = 0; j < Config::kBlocksN; ++j) {
        const unsigned pair = transpose_matrix(pack_pair<T>(sums[i][j][2 * half], sums[i][j][2 * half + 1]));
        if (phase >= phases) continue;
        T* at = place + 8 * j * p.shared.output_pitch;
        if (mask != 0) {
          *reinterpret_cast<unsigned*>(at) = pair;
        } else {
          // One output channel: the two rows are two phases.
          const T* elements = reinterpret_cast<const T*>(&pair);
          at[0] = elements[0];
          if (phase + 1 < phases) at[Config::kWarpPixels * p.shared.output_pitch] = elements[1];
        }
      }
    }
  }
}

// NHWC.
template <typename Config, typename T>
__device__ inline void lay_pixels(const Params<T>& p, const Output<T>& out, const Sums<Config>& sums) {
  if constexpr (sizeof(T) == 4) {
    lay_words<Config>(p, out, sums);
  } else {
    lay_pairs<Config>(p, out, sums);
  }
}

template <int kBytes, typename T>
__device__ inline void copy_piece(T* destination, const T* source) {
  using Type = bits_t<kBytes>;
  *reinterpret_cast<Type*>(destination) = *reinterpret_cast<const Type*>(source);
}

// The warp's pixels fall into segments, each in one row of the grid.
struct Segment {
  int image, h, w;          // the output of phase 0 of its first pixel
  int first_pixel, length;  // counted from the warp's first
};

template <typename Config, typename T, typename Visit>
__device__ inline void for_each_segment(const Params<T>& p, const Tile& tile, const Output<T>& out,
                                        const Visit& visit) {
  const int end = min(out.first_pixel + Config::kWarpPixels, p.images * p.image_numbers);
  for (int pixel = out.first_pixel; pixel < end;) {
    const Point at = point_of_pixel(p, pixel);
    const int length = min(min(p.row_numbers - at.col, p.image_numbers - at.number), end - pixel);
    const int image = tile.image + at.image;
    if (image >= p.batch) return;
    if (at.row < p.rows && at.col < p.cols) {
      visit(Segment{image, (tile.grid_h + at.row) * p.taps_h.stride + out.phase_h - p.taps_h.crop,
                    (tile.grid_w + at.col) * p.taps_w.stride + out.phase_w - p.taps_w.crop,
                    pixel - out.first_pixel, min(length, p.cols - at.col)});
    }
    pixel += length;
  }
}

// NCHW: a segment's part of a line is one run of the output where the phase set has all phases along W.
template <typename Config, int kBytes, typename T>
__device__ inline void write_rows(const Params<T>& p, const Tile& tile, const Output<T>& out) {
  constexpr int kElements = kBytes / static_cast<int>(sizeof(T));
  const bool whole = p.phases_w == p.taps_w.stride;
  const int first_line = out.lane >> p.log2_line_lanes, line_step = 32 >> p.log2_line_lanes;
  const int first_element = (out.lane & ((1 << p.log2_line_lanes) - 1)) * kElements;
  T* const group_output =
      p.output +
      (static_cast<int64_t>(tile.group) * p.cout_per_group + out.first_cout + first_line) * p.output_stride.c;
  const int64_t output_step = line_step * p.output_stride.c;
  const int line_pitch = line_step * p.shared.output_pitch;
  for_each_segment<Config>(p, tile, out, [&](const Segment& segment) {
    T* const image = group_output + segment.image * p.output_stride.n;
    const int elements = segment.length * p.phases_w;
    for (int phase = 0; phase < out.phases_h && out.phase_h + phase < p.taps_h.stride; ++phase) {
      const int h = segment.h + phase;
      if (h < 0 || h >= p.output_h) continue;
      const T* const lines = out.lines + ((phase << out.log2_couts) + first_line) * p.shared.output_pitch +
                             segment.first_pixel * p.phases_w;
      for (int e = first_element; e < elements; e += kElements << p.log2_line_lanes) {
        int w = segment.w + e;
        if (!whole) {
          const auto place = p.phases_w.divide(e);
          if (out.phase_w + place.remainder >= p.taps_w.stride) continue;
          w = segment.w + place.quotient * p.taps_w.stride + place.remainder;
        }
        // Output rows and runs are whole numbers of pieces: a piece is inside or outside.
        if (w < 0 || w >= p.output_w) continue;
        T* destination = image + h * p.output_stride.h + w;
        const T* source = lines + e;
#pragma unroll 4
        for (int line = first_line; line < out.couts; line += line_step) {
          copy_piece<kBytes>(destination, source);
          destination += output_step;
          source += line_pitch;
        }
      }
    }
  });
}

template <typename Config, int kBytes, typename T>
__device__ inline void write_pixels(const Params<T>& p, const Tile& tile, const Output<T>& out) {
  constexpr int kElements = kBytes / static_cast<int>(sizeof(T));
  const int pieces = (1 << out.log2_couts) / kElements;  // a power of two
  const int log2_pieces = min(__ffs(pieces) - 1, 5);
  const int first_pixel = out.lane >> log2_pieces, pixel_step = 32 >> log2_pieces;
  T* const group_output = p.output + static_cast<int64_t>(tile.group) * p.cout_per_group + out.first_cout;
  const int step_w = pixel_step * p.taps_w.stride;
  const int64_t output_step = step_w * p.output_stride.w;
  const int line_pitch = pixel_step * p.shared.output_pitch;
  for_each_segment<Config>(p, tile, out, [&](const Segment& segment) {
    const T* line = out.lines + (segment.first_pixel + first_pixel) * p.shared.output_pitch;
    for (int phase_h = 0; phase_h < out.phases_h; ++phase_h) {
      const int h = segment.h + phase_h;
      const bool row_exists = h >= 0 && h < p.output_h && out.phase_h + phase_h < p.taps_h.stride;
      for (int phase_w = 0; phase_w < out.phases_w;
           ++phase_w, line += Config::kWarpPixels * p.shared.output_pitch) {
        if (!row_exists || out.phase_w + phase_w >= p.taps_w.stride) continue;
        for (int cout = (out.lane & ((1 << log2_pieces) - 1)) * kElements; cout < out.couts;
             cout += 32 * kElements) {
          int w = segment.w + phase_w + first_pixel * p.taps_w.stride;
          T* destination = group_output + segment.image * p.output_stride.n + h * p.output_stride.h +
                           w * p.output_stride.w + cout;
          const T* source = line + cout;
#pragma unroll 2
          for (int pixel = first_pixel; pixel < segment.length; pixel += pixel_step) {
            if (w >= 0 && w < p.output_w) copy_piece<kBytes>(destination, source);
            w += step_w;
            destination += output_step;
            source += line_pitch;
          }
        }
      }
    }
  });
}

// Copies the lines that a warp has laid out to the output.
template <typename Config, bool kChannelsLast, typename T>
__device__ inline void write_lines(const Params<T>& p, const Tile& tile, const Output<T>& out) {
  with_width(p.store_bytes, [&](auto width) {
    constexpr int kBytes = decltype(width)::value;
    if constexpr (kBytes < sizeof(T)) {
      // No piece is narrower than an element.
    } else if constexpr (kChannelsLast) {
      write_pixels<Config, kBytes>(p, tile, out);
    } else {
      write_rows<Config, kBytes>(p, tile, out);
    }
  });
}

// Applies the activation to what a warp has laid out, and to what lies between lines, which nobody reads.
template <typename T>
__device__ inline void activate_lines(const Params<T>& p, const Output<T>& out) {
  const int lane = afresh(static_cast<int>(threadIdx.x)) % 32;
  activate_bytes<32>(p.activation, out.lines, p.shared.output_bytes, lane);
}

// Stores a warp's sums; all lanes call it.
template <typename Config, typename T>
__device__ inline void store_sums(const Params<T>& p, const Tile& tile, const Output<T>& out,
                                  Sums<Config>& sums) {
  add_bias<Config>(p, tile, out, sums);
  __syncwarp();  // what was laid out here before has been copied
  if (p.output_channels_last) {
    lay_pixels<Config>(p, out, sums);
  } else if (out.phases_w == 1) {
    lay_single_phase<Config>(p, out, sums);
  } else if (Config::kBlocksM % 2 == 0 && out.phases_w == 2 &&
             (16 << out.log2_couts) == 128 * Config::kBlocksM) {
    lay_two_phases<Config>(p, out, sums);
  } else {
    lay_phases<Config>(p, out, sums);
  }
  __syncwarp();
  if (!p.activation.is_identity()) {
    activate_lines(p, out);
    __syncwarp();
  }
  if (p.output_channels_last) {
    write_lines<Config, true>(p, tile, out);
  } else {
    write_lines<Config, false>(p, tile, out);
  }
}

}  // namespace tile_mma
}  // namespace convt
