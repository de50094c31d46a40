// phase_gemm: few input channels in a group and filters that may overlap. What bounds such layers is their
// output, so every row of it leaves once, in whole lines, whatever the stride.
//
// With rows = output channels and columns = places of a row (convt/phase_gemm.h), each phase is a product
//
//   y[cout][stride * place + phase - padding] = bias[cout] +
//       sum over channels and the phase's taps of  w[channel][cout][tap] * x[channel][place - shift]
//
// whose depth is (tap, 16 bytes of channels), two of them a step; a phase that no tap reaches is the bias.
//
//   Load      an item's input with its halo is brought to shared memory as planes of 16 bytes a pixel, once
//             for all phases and output channels. There a row of ldmatrix is a pixel, and a tap is an offset,
//             which a table holds. float32 is rounded or split on the way.
//   Multiply  a warp takes 16 output channels x 32 places and goes through the phases of a row of the output.
//             The weight lies in shared memory as fragments. For NHWC both operands change places, so that a
//             lane's sums are neighbours along C.
//   Scatter   sums are rounded and stored to a slice of the output in shared memory, and leave as in
//             scatter_gemm (convt/device/output_slice.cuh), while the next slice is computed. A slice that is
//             the bias alone is laid out once and copied as often as it is needed.
//
// Padding is multiplied by weights, as in tile_mma.
#pragma once

#include <type_traits>

#include "convt/alignment.h"
#include "convt/device/activation.cuh"
#include "convt/device/channel_planes.cuh"
#include "convt/device/launch.cuh"
#include "convt/device/output_slice.cuh"
#include "convt/device/pixel_words.cuh"
#include "convt/device/scalar.cuh"
#include "convt/divisor.h"
#include "convt/kernels.h"
#include "convt/phase_gemm.h"

namespace convt {
namespace phase_gemm {

using namespace output_slice;  // NOLINT: its other user has the same names
using pixel_words::bits_of;
using pixel_words::kPair;

inline constexpr int kThreads = 32 * kPhaseGemmWarps;
inline constexpr int kVectorBytes = 16;
template <typename T>
inline constexpr int kVector = tile_mma::kChannelVector<T>;
inline constexpr int kProducts = kPhaseGemmPlaces / 8;  // or 16 x 2 of NHWC
// Tensor cores cut sums off where they add: sums of split operands are added to float32 after so many steps.
inline constexpr int kSummedSteps = 4;

template <typename T>
struct Params : ProblemParams<T> {
  const T* weight;
  WeightStrides weight_stride;
  int padding_h, padding_w;
  AxisPhases<int> phases_h, phases_w;
  Divisor<int> tiles, cout_tiles;     // of thread blocks: of a share; of a group's output channels
  Divisor<int> strips, bands;         // of items, innermost first; then images
  Divisor<int> planes, cols, chunks;  // of the item's input
  Divisor<int> blocks, all_blocks;    // of 16 output channels: of a group, of a thread block
  Divisor<int> channels;              // of a thread block
  Divisor<int> input_rows;
  int groups, groups_of_block, rows, places;
  int items, shares, first_row, first_col, halo_h, halo_w;
  PhaseGemmLoads loads;
  int piece_pixels;
  bool fills;
  PhaseGemmShared shared;
};

// What a thread block stays with.
struct Tile {
  int first_group, groups, first_cout, couts;  // output channels of a group

  // Output channels of all groups, which lie side by side.
  __device__ int channels() const { return groups * couts; }
};

// ---------------------------------------------------------------- table

// The taps of a phase along both axes.
struct Axes {
  Phase<int> h, w;
};

// A vector of a phase: its tap, its chunk of channels, and how far back its input lies.
struct Vector {
  int kh, kw, chunk, shift_h, shift_w;
};

template <typename T>
__device__ inline int vectors_of(const Params<T>& p, const Axes& axes) {
  return axes.h.taps * axes.w.taps * p.chunks;
}
template <typename T>
__device__ inline int steps_of(const Params<T>& p, const Axes& axes) {
  return (vectors_of(p, axes) + 1) / 2;
}

template <typename T>
__device__ inline Vector vector_of(const Params<T>& p, const Axes& axes, int number) {
  // Seldom, and not in the main loop: a division by a number that no divisor is kept for.
  const auto& [h, w] = axes;
  const auto by_chunk = p.chunks.divide(number);
  const int i = by_chunk.quotient / w.taps, j = by_chunk.quotient % w.taps;
  return {h.first_tap + i * p.phases_h.tap_step, w.first_tap + j * p.phases_w.tap_step, by_chunk.remainder,
          h.first_shift + i * p.phases_h.shift_step, w.first_shift + j * p.phases_w.shift_step};
}

// Fills the table and the first steps of phases.
template <typename T>
__device__ inline void fill_table(const Params<T>& p, int* table, int* begins) {
  constexpr int kOwn = kPhaseGemmMaxPhases / kThreads + 1;  // of a thread, one place behind the last phase
  const int phases = p.phases_h.stride * p.phases_w.stride;
  const auto for_own_phases = [phases](const auto& visit) {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int phase = static_cast<int>(threadIdx.x) + i * kThreads;
      if (phase <= phases) visit(i, phase);
    }
  };
  const auto axes_of = [&p](int phase) {
    const auto residue = p.phases_w.stride.divide(phase);
    return Axes{phase_of(p.phases_h, residue.quotient), phase_of(p.phases_w, residue.remainder)};
  };
  for_own_phases([&](int, int phase) {
    if (phase < phases) begins[phase] = steps_of(p, axes_of(phase));
  });
  __syncthreads();
  int first[kOwn] = {};
  for_own_phases([&](int i, int phase) {
    for (int before = 0; before < phase; ++before) first[i] += begins[before];
  });
  __syncthreads();
  for_own_phases([&](int i, int phase) {
    begins[phase] = first[i];
    if (phase == phases) return;
    const Axes axes = axes_of(phase);
    const int vectors = vectors_of(p, axes);
    for (int number = 0; number < 2 * steps_of(p, axes); ++number) {
      int offset = -1;  // there is none
      if (number < vectors) {
        const Vector v = vector_of(p, axes, number);
        offset =
            (v.chunk * p.shared.plane + (p.halo_h - v.shift_h) * p.shared.input_cols + p.halo_w - v.shift_w) *
            kVectorBytes;
      }
      table[2 * first[i] + number] = offset;
    }
  });
}

// Lays the weight of the thread block's output channels out as A fragments.
template <typename T, int kParts>
__device__ inline void stage_weight(const Params<T>& p, const Tile& tile, FragmentA* staged,
                                    const int* begins) {
  const int lane = static_cast<int>(threadIdx.x) % 32, phases = p.phases_h.stride * p.phases_w.stride;
  for (int task = static_cast<int>(threadIdx.x) / 32; task < phases * p.all_blocks; task += kPhaseGemmWarps) {
    const auto by_block = p.all_blocks.divide(task);
    const auto of_group = p.blocks.divide(by_block.remainder);
    const auto residue = p.phases_w.stride.divide(by_block.quotient);
    const Axes axes = {phase_of(p.phases_h, residue.quotient), phase_of(p.phases_w, residue.remainder)};
    const int vectors = vectors_of(p, axes);
    const int group = tile.first_group + of_group.quotient;
    const int own = of_group.remainder * kPhaseGemmCouts + lane / 4;
    for (int step = begins[by_block.quotient]; step < begins[by_block.quotient + 1]; ++step) {
      unsigned a[4] = {0, 0, 0, 0};
#pragma unroll
      for (int second = 0; second < 2; ++second) {
        const int number = 2 * (step - begins[by_block.quotient]) + second;
        if (number >= vectors || of_group.quotient >= tile.groups) continue;
        const Vector v = vector_of(p, axes, number);
        const int channel = v.chunk * kVector<T> + lane % 4 * kPair<T>;
        const T* const from = p.weight + (int64_t{group} * p.cin_per_group + channel) * p.weight_stride.cin +
                              (tile.first_cout + own) * p.weight_stride.cout + v.kh * p.weight_stride.kh +
                              v.kw * p.weight_stride.kw;
#pragma unroll
        for (int i = 0; i < 2 * kPair<T>; ++i) {
          const int pair = i % kPair<T>, half = i / kPair<T>;
          if (channel + pair < p.cin_per_group && own + 8 * half < tile.couts) {
            a[2 * second + half] |=
                bits_of(__ldg(from + pair * p.weight_stride.cin + 8 * half * p.weight_stride.cout))
                << (16 * pair);
          }
        }
      }
      FragmentA parts[kParts] = {make_uint4(a[0], a[1], a[2], a[3])};
      if constexpr (sizeof(T) == 4) split_tf32(make_uint4(a[0], a[1], a[2], a[3]), parts);
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        staged[((step * p.all_blocks + by_block.remainder) * kParts + part) * 32 + lane] = parts[part];
      }
    }
  }
}

// ---------------------------------------------------------------- load

// An item: places of an image.
struct Item {
  int image, first_row, first_col;
};

// What a thread reads of an item: `pixels` neighbours along W of a vector's channels.
template <typename T>
struct Piece {
  const T* from;
  int to;        // the first pixel's vector
  int channels;  // that exist: none outside the image
};

template <typename T>
__device__ inline Piece<T> locate_piece(const Params<T>& p, const Tile& tile, const Item& item, int plane,
                                        int row, int col) {
  const auto by_group = p.chunks.divide(plane);
  const int channel = by_group.remainder * kVector<T>, h = item.first_row - p.halo_h + row,
            w = item.first_col - p.halo_w + col;
  const bool exists = by_group.quotient < tile.groups && h >= 0 && h < p.input_h && w >= 0 && w < p.input_w;
  const int64_t first = int64_t{tile.first_group + by_group.quotient} * p.cin_per_group + channel;
  Piece<T> piece;
  piece.from = p.input + item.image * p.input_stride.n + first * p.input_stride.c + h * p.input_stride.h +
               w * p.input_stride.w;
  piece.to = plane * p.shared.plane + row * p.shared.input_cols + col;
  piece.channels = exists ? p.cin_per_group - channel : 0;
  return piece;
}

// Calls `read` with the index and the pieces, kAtOnce of which a thread has at once, of an item, and then
// `store` with the index and place of each. `split` divides a piece's number into (plane, row, column).
template <int kAtOnce, typename T, typename Split, typename Read, typename Store>
__device__ inline void for_each_piece(const Params<T>& p, const Tile& tile, const Item& item, int pieces,
                                      const Split& split, const Read& read, const Store& store) {
#pragma unroll 1
  for (int first = static_cast<int>(threadIdx.x); first < pieces; first += kAtOnce * kThreads) {
    int to[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int number = first + i * kThreads;
      const Piece<T> piece = split(min(number, pieces - 1));
      to[i] = number < pieces ? piece.to : -1;
      read(i, piece);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (to[i] >= 0) store(i, to[i]);
    }
  }
}

// Brings an item's input to shared memory.
template <typename T, int kParts>
__device__ inline void load_item(const Params<T>& p, const Tile& tile, const Item& item, uint4* planes) {
  const int part = p.planes * p.shared.plane, pixels = p.input_rows * p.shared.input_cols;
  const auto by_row = [&](int number) {
    const auto by_col = p.cols.divide(number);
    const auto of_plane = p.input_rows.divide(by_col.quotient);
    return locate_piece(p, tile, item, of_plane.quotient, of_plane.remainder,
                        by_col.remainder * p.piece_pixels);
  };
  if (p.loads == PhaseGemmLoads::kVectors) {
    // Neighbouring threads read what lies side by side in memory.
    const auto by_pixel = [&](int number) {
      const auto by_plane = p.planes.divide(number);
      const auto by_col = p.cols.divide(by_plane.quotient);
      return locate_piece(p, tile, item, by_plane.remainder, by_col.quotient, by_col.remainder);
    };
    constexpr int kAtOnce = 4;
    uint4 x[kAtOnce];
    for_each_piece<kAtOnce>(
        p, tile, item, p.planes * pixels, by_pixel,
        [&](int i, const Piece<T>& piece) {
          x[i] = piece.channels > 0 ? __ldg(reinterpret_cast<const uint4*>(piece.from)) : uint4{0, 0, 0, 0};
        },
        [&](int i, int to) { tile_mma::store_vector<T, kParts>(planes + to, part, x[i]); });
  } else if (p.loads == PhaseGemmLoads::kQuads) {
    using Pixels = std::conditional_t<sizeof(T) == 4, uint4, uint2>;
    constexpr int kAtOnce = 1;
    Pixels x[kAtOnce][kVector<T>];
    for_each_piece<kAtOnce>(
        p, tile, item, p.planes * pixels / kPhaseGemmQuad, by_row,
        [&](int i, const Piece<T>& piece) {
#pragma unroll
          for (int c = 0; c < kVector<T>; ++c) {
            x[i][c] = c < piece.channels
                          ? __ldg(reinterpret_cast<const Pixels*>(piece.from + c * p.input_stride.c))
                          : Pixels{};
          }
        },
        [&](int i, int to) {
#pragma unroll
          for (int pixel = 0; pixel < kPhaseGemmQuad; ++pixel) {
            tile_mma::store_vector<T, kParts>(planes + to + pixel, part,
                                              tile_mma::vector_of_pixel<T>(x[i], pixel));
          }
        });
  } else {
    constexpr int kAtOnce = 2;
    uint4 x[kAtOnce];
    for_each_piece<kAtOnce>(
        p, tile, item, p.planes * pixels, by_row,
        [&](int i, const Piece<T>& piece) {
          unsigned words[4] = {0, 0, 0, 0};
#pragma unroll
          for (int c = 0; c < kVector<T>; ++c) {
            const unsigned bits = c < piece.channels ? bits_of(__ldg(piece.from + c * p.input_stride.c)) : 0;
            words[c / kPair<T>] |= bits << (16 * (c % kPair<T>));
          }
          x[i] = make_uint4(words[0], words[1], words[2], words[3]);
        },
        [&](int i, int to) { tile_mma::store_vector<T, kParts>(planes + to, part, x[i]); });
  }
}

// ---------------------------------------------------------------- multiply

using Sums = float[kProducts][4];

__device__ inline void clear(Sums& sums) {
#pragma unroll
  for (int i = 0; i < 4 * kProducts; ++i) sums[i / 4][i % 4] = 0.0f;
}

// Where a lane's sums belong. Sums j of NCHW are those of places 8 j + 2 * member and 1 on, and of output
// channels `group` and 8 on; sums 2 j + t of NHWC those of places 16 j + group and 8 on, and of channels 8 t
// + 2 * member and 1 on.
struct Lane {
  int group, member;
};

// What a lane adds to its sums.
template <bool kChannelsLast>
struct Biases {
  float of[kChannelsLast ? 4 : 2];

  __device__ float at(int product, int element) const {
    return of[kChannelsLast ? product % 2 * 2 + element % 2 : element / 2];
  }
};

template <bool kChannelsLast>
__device__ inline Biases<kChannelsLast> read_biases(const float* bias, int couts, const Lane& lane) {
  Biases<kChannelsLast> biases;
#pragma unroll
  for (int i = 0; i < (kChannelsLast ? 4 : 2); ++i) {
    const int c = kChannelsLast ? 8 * (i / 2) + 2 * lane.member + i % 2 : lane.group + 8 * i;
    biases.of[i] = c < couts ? bias[c] : 0.0f;
  }
  return biases;
}

// sums += weight * pixels of NCHW; of NHWC, pixels * weight.
template <typename T, bool kChannelsLast>
__device__ inline void multiply_fragments(const FragmentA& a, const unsigned (&b)[2][4], Sums& sums) {
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    if constexpr (kChannelsLast) {
      const FragmentA pixels = make_uint4(b[j][0], b[j][2], b[j][1], b[j][3]);
      multiply_add<T>(sums[2 * j], pixels, a.x, a.z);
      multiply_add<T>(sums[2 * j + 1], pixels, a.y, a.w);
    } else {
      multiply_add<T>(sums[2 * j], a, b[j][0], b[j][1]);
      multiply_add<T>(sums[2 * j + 1], a, b[j][2], b[j][3]);
    }
  }
}

// Where a lane finds the operands of a step.
struct Operands {
  const int* table;         // of the lane's vector
  unsigned pixel, zeros;    // shared addresses
  unsigned part_bytes;      // of the input, from part to part
  const FragmentA* weight;  // of the first step
  int step_fragments;

  __device__ void pixels(int step, unsigned (&b)[2][4], unsigned part = 0) const {
    constexpr unsigned kFurther = 16 * kVectorBytes;
    static_assert(kFurther + kVectorBytes <= kPhaseGemmZeroBytes);
    const int offset = table[2 * step];
    const unsigned address = offset < 0 ? zeros : pixel + static_cast<unsigned>(offset) + part;
    load_matrices(address, b[0]);
    load_matrices(address + kFurther, b[1]);
  }
};

// sums = the bias and the products of the phase whose steps these are.
template <typename T, int kParts, bool kChannelsLast>
__device__ inline void multiply(const Operands& operands, int begin, int end,
                                const Biases<kChannelsLast>& biases, Sums& sums) {
#pragma unroll
  for (int i = 0; i < 4 * kProducts; ++i) sums[i / 4][i % 4] = biases.at(i / 4, i % 4);
  if constexpr (kParts == 1) {
#pragma unroll 2
    for (int step = begin; step < end; ++step) {
      unsigned b[2][4];
      operands.pixels(step, b);
      multiply_fragments<T, kChannelsLast>(operands.weight[step * operands.step_fragments], b, sums);
    }
  } else {
    // The products of a first and a second part have sums of their own.
    Sums mixed;
    clear(mixed);
#pragma unroll 1
    for (int group = begin; group < end; group += kSummedSteps) {
      Sums few;
      clear(few);
#pragma unroll 1
      for (int step = group; step < min(group + kSummedSteps, end); ++step) {
        const FragmentA* const weight = operands.weight + step * operands.step_fragments;
        const FragmentA first = weight[0];
        unsigned b[2][4];
        operands.pixels(step, b);
        multiply_fragments<T, kChannelsLast>(first, b, few);
        multiply_fragments<T, kChannelsLast>(weight[32], b, mixed);
        operands.pixels(step, b, operands.part_bytes);
        multiply_fragments<T, kChannelsLast>(first, b, mixed);
      }
#pragma unroll
      for (int i = 0; i < 4 * kProducts; ++i) sums[i / 4][i % 4] += few[i / 4][i % 4];
    }
#pragma unroll
    for (int i = 0; i < 4 * kProducts; ++i)
      sums[i / 4][i % 4] += mixed[i / 4][i % 4] * (1 / kSecondPartScale);
  }
}

// ---------------------------------------------------------------- scatter

// The slice that is computed: where its first output lies, and its shared address.
template <typename T>
struct Slice {
  T* output;  // of the first channel
  unsigned slot;
};

// Lays out the bias.
template <typename T, bool kChannelsLast>
__device__ inline void fill(const Params<T>& p, const Tile& tile, const Slice<T>& slice, const float* bias,
                            const T* line) {
  const int thread = static_cast<int>(threadIdx.x);
  if constexpr (kChannelsLast) {
    const unsigned at = slice.slot + static_cast<unsigned>(shift_of(slice.output));
    const int count = p.places * p.phases_w.stride * p.channels;
    for (int i = thread; i < count; i += kThreads) {
      const unsigned bits = bits_of(line[p.channels.divide(i).remainder]);
      if constexpr (sizeof(T) == 4) {
        store_shared(at + static_cast<unsigned>(4 * i), bits);
      } else {
        store_shared(at + static_cast<unsigned>(2 * i), static_cast<unsigned short>(bits));
      }
    }
  } else {
    // Rows by warps, whole pieces.
    for (int c = thread / 32; c < tile.channels(); c += kPhaseGemmWarps) {
      const unsigned bits = repeated<T>(bias[c]);
      const unsigned piece[4] = {bits, bits, bits, bits};
      for (int i = kPiece * (thread % 32); i < p.shared.pitch; i += kPiece * 32) {
        store_words<16, 16>(slice.slot + static_cast<unsigned>(c * p.shared.pitch + i), piece);
      }
    }
  }
}

// Where a lane stores the sums of the first phase, and how far places are from each other.
template <typename T, bool kChannelsLast>
struct Target {
  unsigned at[kChannelsLast ? 1 : 2];
  unsigned step;
  int couts;    // that exist, from the lane's first on
  bool paired;  // of NHWC: two channels are a word, or two, at a multiple of its size
};

template <typename T, bool kChannelsLast>
__device__ inline Target<T, kChannelsLast> target_of(const Params<T>& p, const Slice<T>& slice, int channel,
                                                     int couts, int place, const Lane& lane) {
  constexpr int kSize = sizeof(T);
  Target<T, kChannelsLast> target;
  if constexpr (kChannelsLast) {
    const int shift = shift_of(slice.output);
    target.step = static_cast<unsigned>(p.phases_w.stride * p.shared.pitch);
    target.at[0] = slice.slot + static_cast<unsigned>(shift + (channel + 2 * lane.member) * kSize) +
                   static_cast<unsigned>(place + lane.group) * target.step;
    target.couts = couts - 2 * lane.member;
    target.paired = (shift | p.shared.pitch | channel * kSize | couts * kSize) % (2 * kSize) == 0;
  } else {
    target.step = static_cast<unsigned>(p.phases_w.stride * kSize);
    target.couts = couts - lane.group;
    target.paired = false;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int c = channel + lane.group + 8 * half;
      target.at[half] = slice.slot + static_cast<unsigned>(c * p.shared.pitch) +
                        static_cast<unsigned>(shift_of(slice.output + c * p.output_stride.c)) +
                        static_cast<unsigned>(place + 2 * lane.member) * target.step;
    }
  }
  return target;
}

template <typename T>
__device__ inline void store_element(unsigned to, float x) {
  if constexpr (sizeof(T) == 4) {
    store_shared(to, __float_as_uint(x));
  } else {
    store_shared(to, static_cast<unsigned short>(pack_pair<T>(x, x)));
  }
}

// Stores a pair of outputs, side by side or `apart` bytes apart.
template <typename T>
__device__ inline void store_two(unsigned to, unsigned apart, float x, float y) {
  if constexpr (sizeof(T) == 4) {
    store_shared(to, __float_as_uint(x));
    store_shared(to + apart, __float_as_uint(y));
  } else {
    const unsigned pair = pack_pair<T>(x, y);
    store_shared(to, static_cast<unsigned short>(pair));
    store_shared(to + apart, static_cast<unsigned short>(pair >> 16));
  }
}
template <typename T>
__device__ inline void store_pair(unsigned to, float x, float y) {
  if constexpr (sizeof(T) == 4) {
    const unsigned words[2] = {__float_as_uint(x), __float_as_uint(y)};
    store_words<8, 8>(to, words);
  } else {
    store_shared(to, pack_pair<T>(x, y));
  }
}

// Stores a warp's sums of one phase along W. A stride that is known spares the computation of addresses.
template <typename T, bool kChannelsLast, int kStride>
__device__ inline void scatter(const Params<T>& p, const Target<T, kChannelsLast>& target, int phase,
                               const Sums& sums) {
  constexpr int kSize = sizeof(T);
  if constexpr (kChannelsLast) {
    const unsigned first = target.at[0] + static_cast<unsigned>(phase * p.shared.pitch);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const unsigned to = first + static_cast<unsigned>(8 * i) * target.step;
#pragma unroll
      for (int t = 0; t < 2; ++t) {
        const float x = sums[i / 2 * 2 + t][i % 2 * 2], y = sums[i / 2 * 2 + t][i % 2 * 2 + 1];
        if (8 * t >= target.couts) break;
        if (target.paired) {
          store_pair<T>(to + 8 * t * kSize, x, y);
        } else if (8 * t + 1 < target.couts) {
          store_two<T>(to + 8 * t * kSize, kSize, x, y);
        } else {
          store_element<T>(to + 8 * t * kSize, x);
        }
      }
    }
  } else {
    const unsigned step = kStride > 0 ? kStride * kSize : target.step;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (8 * half >= target.couts) break;
      const unsigned to = target.at[half] + static_cast<unsigned>(phase * kSize);
#pragma unroll
      for (int j = 0; j < kProducts; ++j) {
        store_two<T>(to + static_cast<unsigned>(8 * j) * step, step, sums[j][2 * half],
                     sums[j][2 * half + 1]);
      }
    }
  }
}

// Copies a slice to the output.
template <typename T, bool kChannelsLast>
__device__ inline void copy_slice(const Params<T>& p, const Tile& tile, const Slice<T>& slice,
                                  const Extent& extent) {
  const int thread = static_cast<int>(threadIdx.x);
  if constexpr (kChannelsLast) {
    copy_row(slice.output, slice.slot, extent, thread, kThreads);
  } else {
    for (int c = thread / kLineLanes; c < tile.channels(); c += kThreads / kLineLanes) {
      copy_row(slice.output + c * p.output_stride.c, slice.slot + static_cast<unsigned>(c * p.shared.pitch),
               extent, thread % kLineLanes, kLineLanes);
    }
  }
  commit_bulk_copies();
}

// ---------------------------------------------------------------- kernel

template <typename T, int kParts, bool kChannelsLast, int kStride>
__global__ void __launch_bounds__(kThreads, phase_gemm_resident(kParts, kChannelsLast))
    phase_gemm_kernel(const __grid_constant__ Params<T> p) {
  extern __shared__ __align__(16) unsigned char shared[];
  uint4* const planes = reinterpret_cast<uint4*>(shared);
  FragmentA* const weight = reinterpret_cast<FragmentA*>(shared + p.shared.weight);
  int* const table = reinterpret_cast<int*>(shared + p.shared.table);
  int* const begins = reinterpret_cast<int*>(shared + p.shared.begins);
  float* const bias = reinterpret_cast<float*>(shared + p.shared.bias);
  T* const line = reinterpret_cast<T*>(shared + p.shared.line);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const auto by_share = p.tiles.divide(static_cast<int>(blockIdx.x));
  const auto by_group = p.cout_tiles.divide(by_share.remainder);
  Tile tile;
  tile.first_group = by_group.quotient * p.groups_of_block;
  tile.groups = min(p.groups_of_block, p.groups - tile.first_group);
  tile.first_cout = by_group.remainder * p.channels;  // one tile, where there are several groups
  tile.couts = p.cout_tiles > 1 ? min(p.channels, p.cout_per_group - tile.first_cout) : p.cout_per_group;

  for (int c = thread; c < tile.channels(); c += kThreads) {
    const int64_t channel = int64_t{tile.first_group} * p.cout_per_group + tile.first_cout + c;
    bias[c] = p.bias == nullptr ? 0.0f : widen(p.bias[channel * p.bias_stride]);
    line[c] = narrow<T>(bias[c]);
  }
  for (int i = thread; i < kPhaseGemmZeroBytes / 4; i += kThreads) {
    reinterpret_cast<unsigned*>(shared + p.shared.zeros)[i] = 0;
  }
  fill_table(p, table, begins);
  __syncthreads();
  stage_weight<T, kParts>(p, tile, weight, begins);

  const int blocks = tile.groups * p.blocks, tasks = p.places / kPhaseGemmPlaces * p.all_blocks;
  Operands operands;
  operands.table = table + lane / 8 % 2;
  operands.zeros = shared_address(shared + p.shared.zeros);
  operands.part_bytes = static_cast<unsigned>(p.planes * p.shared.plane * kVectorBytes);
  operands.step_fragments = p.all_blocks * kParts * 32;
  const unsigned slots = shared_address(shared + p.shared.slots);
  const int stride_h = p.phases_h.stride, stride_w = p.phases_w.stride;
  constexpr int kSize = sizeof(T);
  const int value_bytes = kChannelsLast ? p.shared.pitch : kSize;  // of an output column

  int slot = 0;
  int bias_shift[kPhaseGemmSlots] = {-1, -1};  // of slots that hold the bias alone
  for (int number = by_share.quotient; number < p.items; number += p.shares) {
    const auto by_strip = p.strips.divide(number);
    const auto by_band = p.bands.divide(by_strip.quotient);
    const Item item = {by_band.quotient, p.first_row + by_band.remainder * p.rows,
                       p.first_col + by_strip.remainder * p.places};
    load_item<T, kParts>(p, tile, item, planes);
    __syncthreads();
    // Outputs, counted from the first place's.
    const int base_h = item.first_row * stride_h - p.padding_h;
    const int base_w = item.first_col * stride_w - p.padding_w;
    const Extent extent = {max(-base_w, 0) * value_bytes,
                           min(p.output_w - base_w, p.places * stride_w) * value_bytes};
    T* const first_output =
        p.output + item.image * p.output_stride.n + base_w * p.output_stride.w +
        (int64_t{tile.first_group} * p.cout_per_group + tile.first_cout) * p.output_stride.c;
    const int end = min(p.rows * stride_h, p.output_h - base_h);
#pragma unroll 1
    for (int row = max(-base_h, 0); row < end; ++row) {
      const Slice<T> slice = {first_output + (base_h + row) * p.output_stride.h,
                              slots + static_cast<unsigned>(slot * p.shared.slot_bytes)};
      const auto by_phase = p.phases_h.stride.divide(row);
      const int* const own = begins + by_phase.remainder * stride_w;
      const bool has_taps = own[stride_w] > own[0];
      const int shift = kChannelsLast ? shift_of(slice.output) : 0;
      const int held = slot == 0 ? bias_shift[0] : bias_shift[1];
      if (has_taps || held != shift) {
        if (p.fills || !has_taps) {
          fill<T, kChannelsLast>(p, tile, slice, bias, line);
          __syncthreads();
        }
        if (has_taps) {
#pragma unroll 1
          for (int task = thread / 32; task < tasks; task += kPhaseGemmWarps) {
            const auto by_block = p.all_blocks.divide(task);
            const int place = by_block.quotient * kPhaseGemmPlaces;
            if (by_block.remainder >= blocks || place * stride_w * value_bytes >= extent.end) continue;
            const auto of_group = p.blocks.divide(by_block.remainder);
            const int cout = of_group.remainder * kPhaseGemmCouts;
            const int pixel = of_group.quotient * p.chunks * p.shared.plane +
                              by_phase.quotient * p.shared.input_cols + place + lane / 16 * 8 + lane % 8;
            operands.pixel = shared_address(planes + pixel);
            operands.weight = weight + by_block.remainder * kParts * 32 + lane;
            const int channel = of_group.quotient * tile.couts + cout;
            const Lane own_sums = {lane / 4, lane % 4};
            const auto biases = read_biases<kChannelsLast>(bias + channel, tile.couts - cout, own_sums);
            const auto target =
                target_of<T, kChannelsLast>(p, slice, channel, tile.couts - cout, place, own_sums);
#pragma unroll 1
            for (int phase = 0; phase < stride_w; ++phase) {
              if (own[phase] == own[phase + 1]) continue;
              Sums sums;
              multiply<T, kParts, kChannelsLast>(operands, own[phase], own[phase + 1], biases, sums);
              scatter<T, kChannelsLast, kStride>(p, target, phase, sums);
            }
          }
        }
        if (!p.activation.is_identity()) {
          __syncthreads();
          T* const begin = reinterpret_cast<T*>(shared + (slice.slot - shared_address(shared)));
          for (int i = thread; i < p.shared.slot_bytes / (4 * kSize); i += kThreads) {
            activate_values<1>(p.activation, reinterpret_cast<ActivatedValues<T>*>(begin) + i);
          }
        }
        const int now = has_taps ? -1 : shift;
        if (slot == 0) {
          bias_shift[0] = now;
        } else {
          bias_shift[1] = now;
        }
      }
      // What the next slice replaces has been read.
      wait_for_bulk_reads();
      fence_for_bulk_copies();
      __syncthreads();
      copy_slice<T, kChannelsLast>(p, tile, slice, extent);
      slot ^= 1;
    }
  }
  wait_for_bulk_reads();
}

// ---------------------------------------------------------------- launch

template <typename T, int kParts, bool kChannelsLast, int kStride>
cudaError_t launch_layout(const Problem& problem, const PhaseGemmLaunch& launch, cudaStream_t stream) {
  Params<T> p = {};
  set_problem(p, problem);
  p.weight = static_cast<const T*>(problem.weight);
  p.weight_stride = problem.weight_stride;
  p.padding_h = static_cast<int>(problem.h.padding);
  p.padding_w = static_cast<int>(problem.w.padding);
  p.phases_h = launch.phases_h;
  p.phases_w = launch.phases_w;
  p.tiles = static_cast<int>(launch.tiles);
  p.cout_tiles = static_cast<int>(launch.cout_tiles);
  p.strips = static_cast<int>(launch.strips);
  p.bands = static_cast<int>(launch.bands);
  p.shared = phase_gemm_shared(launch);
  p.planes = launch.groups * launch.chunks;
  p.chunks = launch.chunks;
  p.blocks = launch.blocks;
  p.all_blocks = launch.groups * launch.blocks;
  p.channels = launch.channels;
  p.input_rows = p.shared.input_rows;
  p.groups = static_cast<int>(problem.groups);
  p.groups_of_block = launch.groups;
  p.rows = launch.rows;
  p.places = launch.cols;
  p.items = static_cast<int>(launch.items);
  p.shares = launch.shares;
  p.first_row = launch.first_row;
  p.first_col = launch.first_col;
  p.halo_h = largest_shift(launch.phases_h);
  p.halo_w = launch.halo_w;
  p.loads = launch.loads;
  // The pointer may be aligned to less than the plan hoped.
  if (!is_aligned(problem.input, launch.load_bytes())) p.loads = PhaseGemmLoads::kElements;
  p.piece_pixels = p.loads == PhaseGemmLoads::kQuads ? kPhaseGemmQuad : 1;
  p.cols = p.shared.input_cols / p.piece_pixels;
  p.fills = launch.fills;
  auto* const kernel = phase_gemm_kernel<T, kParts, kChannelsLast, kStride>;
  const cudaError_t error = allow_shared_memory(kernel, launch.shared_limit);
  if (error != cudaSuccess) return error;
  kernel<<<static_cast<unsigned>(launch.blocks_of_grid()), kThreads, launch.shared_bytes, stream>>>(p);
  return cudaGetLastError();
}

// Calls the instantiation for the output's layout and, of NCHW, for the usual strides along W.
template <typename T, int kParts = 1>
cudaError_t launch_for(const Problem& problem, const PhaseGemmLaunch& launch, cudaStream_t stream) {
  if (launch.channels_last) return launch_layout<T, kParts, true, 0>(problem, launch, stream);
  switch (launch.phases_w.stride) {
    case 2:
      return launch_layout<T, kParts, false, 2>(problem, launch, stream);
    case 3:
      return launch_layout<T, kParts, false, 3>(problem, launch, stream);
    default:
      return launch_layout<T, kParts, false, 0>(problem, launch, stream);
  }
}

}  // namespace phase_gemm
}  // namespace convt
