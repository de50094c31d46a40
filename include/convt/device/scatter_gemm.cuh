// scatter_gemm: filters that are not longer than the stride, few input channels, NCHW. What bounds them is
// the output, which has many times as many elements as the input.
//
// Every output sees one input pixel at most. With rows = output channels and columns = input pixels of a row,
//
//   y[cout][stride * pixel - padding + dilation * k] = bias[cout] + sum over channels of
//                                                      w[channel][cout][k] * x[channel][pixel]
//
// is one product for each tap, whose columns go `stride` outputs apart; outputs that no tap reaches hold the
// bias.
//
//   Multiply  a warp keeps all channels of its 32 pixels in registers (convt/device/pixel_words.cuh), and
//             goes through the output channels and taps, whose weight lies in shared memory.
//   Scatter   products are rounded and stored to a slice of the output in shared memory: 16 output channels
//             of one row, as long as the team's pixels reach, and as far from a multiple of 16 bytes as the
//             output's own row. Where no tap reaches, the bias has been laid out beforehand.
//   Copy      rows of a slice go to memory, by bulk copies (compute capability 9.0) or in whole lines, 16
//             bytes a lane, while the team's next slice is laid out in another place.
//
// A team of warps side by side along W shares slices. Teams of a thread block share its weight alone.
//
// Pixels outside the image are not multiplied: non-finite values land where the definition puts them (on
// tensor cores an infinite sum may show as NaN).
#pragma once

#include "convt/alignment.h"
#include "convt/device/activation.cuh"
#include "convt/device/async_copy.cuh"
#include "convt/device/launch.cuh"
#include "convt/device/output_slice.cuh"
#include "convt/device/pixel_words.cuh"
#include "convt/device/scalar.cuh"
#include "convt/divisor.h"
#include "convt/kernels.h"
#include "convt/scatter_gemm.h"

namespace convt {
namespace scatter_gemm {

using namespace output_slice;  // NOLINT: its other user has the same names
using namespace pixel_words;   // NOLINT: its other user has the same names
static_assert(kPixels == kScatterPixels);

inline constexpr int kMostThreads = 32 * kScatterMaxWarps;

template <typename T>
struct Params : ProblemParams<T> {
  const T* weight;
  WeightStrides weight_stride;
  int padding_h, padding_w, stride_h, stride_w, kernel_h, kernel_w, dilation_w;
  Divisor<int> dilation_h, columns;  // of the filter
  Divisor<int> cout_tiles, groups;   // of thread blocks, innermost first; then shares
  Divisor<int> strips, rows;         // of items, innermost first; then images
  int items, shares;
  int couts, teams, team_warps, pitch, first_row, first_col;
  int store_bytes;  // of pairs
  bool fills;
  ScatterShared shared;
};

// The warps of a team.
struct Team {
  int number, warp, warps;

  __device__ void sync() const {
    if (warps == 1) {
      __syncwarp();
    } else {
      asm volatile("bar.sync %0, %1;" ::"r"(1 + number), "r"(32 * warps) : "memory");
    }
  }
  // Found again where it is needed: sums and inputs take most registers.
  __device__ int lane() const { return afresh(static_cast<int>(threadIdx.x)) % 32; }
  __device__ int thread() const { return 32 * warp + lane(); }
};

// ---------------------------------------------------------------- weight

// Lays the weight of the thread block's output channels out as A fragments.
template <typename T, int kParts, int kBlocks, int kSteps>
__device__ inline void stage_weight(const Params<T>& p, int group, int first_cout, FragmentA* staged) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int blocks = p.couts / kScatterCouts, taps = p.kernel_h * p.kernel_w, warps = p.teams * p.team_warps;
  // A warp takes a step of a block of output channels, all taps: those lie side by side in memory.
  for (int task = static_cast<int>(threadIdx.x) / 32; task < blocks * kSteps; task += warps) {
    const int block = task / kSteps, step = task % kSteps;
    const int channel = step * kStepChannels<T> + lane % 4 * kPair<T>;
    const int cout = first_cout + block * kScatterCouts + lane / 4;
    const T* const from = p.weight + (int64_t{group} * p.cin_per_group + channel) * p.weight_stride.cin +
                          cout * p.weight_stride.cout;
#pragma unroll 4
    for (int tap = 0; tap < taps; ++tap) {
      const auto place = p.columns.divide(tap);
      const T* const of_tap =
          from + place.quotient * p.weight_stride.kh + place.remainder * p.weight_stride.kw;
      unsigned a[4] = {0, 0, 0, 0};
#pragma unroll
      for (int i = 0; i < 2 * kPair<T>; ++i) {
        const int further = i / kPair<T> * 4 * kPair<T> + i % kPair<T>;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          if (channel + further < p.cin_per_group && cout + 8 * half < p.cout_per_group) {
            a[i / kPair<T> * 2 + half] |=
                bits_of(__ldg(of_tap + further * p.weight_stride.cin + 8 * half * p.weight_stride.cout))
                << (16 * (i % kPair<T>));
          }
        }
      }
      FragmentA parts[kParts] = {make_uint4(a[0], a[1], a[2], a[3])};
      if constexpr (sizeof(T) == 4) split_tf32(make_uint4(a[0], a[1], a[2], a[3]), parts);
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const int at = ((tap / kBlocks * blocks + block) * kSteps + step) * kParts + part;
        staged[(at * kBlocks + tap % kBlocks) * 32 + lane] = parts[part];
      }
    }
  }
}

// ---------------------------------------------------------------- multiply

template <int kSteps>
__device__ inline void set_fragment(Words<kSteps>& words, int at, const uint4& x) {
  words.at[at] = x.x, words.at[at + 1] = x.y, words.at[at + 2] = x.z, words.at[at + 3] = x.w;
}

// Makes fragments of a warp's input once, where that can be: operands that are split have no room for both.
// Returns whether split operands are ordinary numbers.
template <typename T, int kParts, int kSteps>
__device__ inline bool prepare(Words<kSteps>& words) {
  if constexpr (sizeof(T) == 4) {
    const bool ordinary = are_ordinary(words);
    if constexpr (kParts == 1) {
#pragma unroll
      for (int at = 0; at < 8 * kSteps; at += 4) {
        const uint4 x = fragments_b<T, true>(words, at / 8, at / 4 % 2);
        uint4 rounded[1];
        if (ordinary) {
          split_words<true>(x, rounded);
        } else {
          split_words<false>(x, rounded);
        }
        set_fragment(words, at, rounded[0]);
      }
    }
    return ordinary;
  } else {
#pragma unroll
    for (int at = 0; at < 8 * kSteps; at += 4) {
      set_fragment(words, at, fragments_b<T, true>(words, at / 8, at / 4 % 2));
    }
    return true;
  }
}

// sums = the products of all channels of a block of rows, or of two.
template <typename T, int kParts, int kBlocks, int kSteps>
__device__ inline void multiply(Words<kSteps>& words, bool ordinary, const FragmentA* weight,
                                Sums<kBlocks>& sums) {
  constexpr int kPart = 32 * kBlocks;
  clear<kBlocks>(sums);
  if constexpr (kParts == 2) {
    // There are no registers for both parts of all words: they are found anew for every product.
#pragma unroll
    for (unsigned& word : words.at) asm volatile("" : "+r"(word));
    if (ordinary) {
      multiply_words<T, 2, kBlocks, true, true>(words, weight, kPart, sums);
    } else {
      multiply_words<T, 2, kBlocks, true, false>(words, weight, kPart, sums);
    }
  } else {
    const unsigned (&w)[8 * kSteps] = words.at;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const int at = 8 * step;
      multiply_step<T>(weight + step * kPart, make_uint4(w[at], w[at + 1], w[at + 2], w[at + 3]),
                       make_uint4(w[at + 4], w[at + 5], w[at + 6], w[at + 7]), sums);
    }
  }
}

// ---------------------------------------------------------------- scatter

// Stores the four sums `half`, pixels side by side, of one output channel `step` bytes apart.
template <typename T>
__device__ inline void scatter_four(unsigned to, unsigned step, float bias, const float (&sums)[4][4],
                                    int half) {
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int j = 0; j < 4; ++j) store_shared(to + j * step, __float_as_uint(sums[j][half] + bias));
  } else {
#pragma unroll
    for (int j = 0; j < 4; j += 2) {
      const unsigned pair = pack_pair<T>(sums[j][half] + bias, sums[j + 1][half] + bias);
      store_shared(to + j * step, static_cast<unsigned short>(pair));
      store_shared(to + (j + 1) * step, static_cast<unsigned short>(pair >> 16));
    }
  }
}

// The same of pairs, whose eight outputs lie side by side.
template <typename T>
__device__ inline void scatter_pairs(unsigned to, int width, float bias, const Sums<2>& sums, int half) {
  constexpr int kBytes = 8 * sizeof(T);
  unsigned words[kBytes / 4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float first = sums[0][j][half] + bias, second = sums[1][j][half] + bias;
    if constexpr (sizeof(T) == 4) {
      words[2 * j] = __float_as_uint(first), words[2 * j + 1] = __float_as_uint(second);
    } else {
      words[j] = pack_pair<T>(first, second);
    }
  }
  with_width_from<4>(width,
                     [&](auto constant) { store_words<decltype(constant)::value, kBytes>(to, words); });
}

// ---------------------------------------------------------------- copy

// Copies this warp's rows of a slice, eight lanes each.
template <typename T>
__device__ inline void copy_rows(const Params<T>& p, const Team& team, unsigned slot, T* output, int couts,
                                 const Extent& extent) {
  constexpr int kRows = 32 / kLineLanes;
  const int lane = team.lane();
  for (int row = team.warp * kRows + lane / kLineLanes; row < min(couts, kScatterCouts);
       row += team.warps * kRows) {
    copy_row(output + row * p.output_stride.c, slot + static_cast<unsigned>(row * p.pitch), extent,
             lane % kLineLanes, kLineLanes);
  }
  commit_bulk_copies();
}

// ---------------------------------------------------------------- kernel

// Blocks that an SM must have registers for.
constexpr int min_blocks(int parts, int steps) { return parts == 1 && steps <= 4 ? 2 : 1; }

template <typename T, int kParts, int kBlocks, int kSteps>
__global__ void __launch_bounds__(kMostThreads, min_blocks(kParts, kSteps))
    scatter_gemm_kernel(const __grid_constant__ Params<T> p) {
  extern __shared__ __align__(16) unsigned char shared[];
  FragmentA* const weight = reinterpret_cast<FragmentA*>(shared);
  float* const biases = reinterpret_cast<float*>(shared + p.shared.bias);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const Team team = {warp / p.team_warps, warp % p.team_warps, p.team_warps};
  const auto by_cout = p.cout_tiles.divide(static_cast<int>(blockIdx.x));
  const auto by_group = p.groups.divide(by_cout.quotient);
  const int group = by_group.remainder, first_cout = by_cout.remainder * p.couts;
  const int couts = min(p.couts, p.cout_per_group - first_cout);
  const unsigned slot_bytes = static_cast<unsigned>(kScatterCouts * p.pitch);
  const unsigned slots = shared_address(shared + p.shared.slots) +
                         static_cast<unsigned>(team.number * kScatterSlots) * slot_bytes;

  for (int c = static_cast<int>(threadIdx.x); c < p.couts; c += 32 * p.teams * p.team_warps) {
    biases[c] = p.bias == nullptr || c >= couts
                    ? 0.0f
                    : widen(p.bias[(int64_t{group} * p.cout_per_group + first_cout + c) * p.bias_stride]);
  }
  stage_weight<T, kParts, kBlocks, kSteps>(p, group, first_cout, weight);
  __syncthreads();

  int slot = 0;
  const int first_item = by_group.quotient * p.teams + team.number, item_step = p.shares * p.teams;
  for (int item = first_item; item < p.items; item += item_step) {
    const auto by_strip = p.strips.divide(item);
    const auto by_row = p.rows.divide(by_strip.quotient);
    const int image = by_row.quotient, row = p.first_row + by_row.remainder;
    const int first_col = p.first_col + by_strip.remainder * kPixels * p.team_warps;
    const bool exists = row < p.input_h && first_col + team.warp * kPixels < p.input_w;
    Words<kSteps> words;
    bool ordinary = true;
    if (exists) {
      const int own = min(first_col + team.warp * kPixels + team.lane() / 4 * 4, p.input_w - 4);
      const T* const pixels = p.input + image * p.input_stride.n + row * p.input_stride.h + own +
                              int64_t{group} * p.cin_per_group * p.input_stride.c;
      if (p.cin_per_group == kSteps * kStepChannels<T>) {
        read_along_w<T, true>(pixels, p.input_stride.c, 0, p.cin_per_group, words);
      } else {
        read_along_w<T, false>(pixels, p.input_stride.c, 0, p.cin_per_group, words);
      }
      ordinary = prepare<T, kParts>(words);
    }
    // Outputs, counted from the first pixel's place.
    const int base_h = row * p.stride_h - p.padding_h, base_w = first_col * p.stride_w - p.padding_w;
    constexpr int kSize = sizeof(T);
    const Extent extent = {max(-base_w, 0) * kSize,
                           min(p.output_w - base_w, kPixels * p.team_warps * p.stride_w) * kSize};
    T* const of_item = p.output + image * p.output_stride.n + base_w +
                       (int64_t{group} * p.cout_per_group + first_cout) * p.output_stride.c;
    const int end_h = min(p.stride_h, p.output_h - base_h);
#pragma unroll 1
    for (int of_block = 0; of_block < couts; of_block += kScatterCouts) {
#pragma unroll 1
      for (int r = max(-base_h, 0); r < end_h; ++r) {
        T* const output = of_item + of_block * p.output_stride.c + (base_h + r) * p.output_stride.h;
        const unsigned at = slots + static_cast<unsigned>(slot) * slot_bytes;
        const auto by_tap = p.dilation_h.divide(r);
        const int kh = by_tap.quotient;
        const bool has_taps = by_tap.remainder == 0 && kh < p.kernel_h && row < p.input_h;
        if (p.fills || !has_taps) {
          // Rows by warps, whole pieces.
          for (int c = team.warp; c < kScatterCouts; c += team.warps) {
            const float value = biases[of_block + c];
            const unsigned bits = repeated<T>(value);
            const unsigned piece[4] = {bits, bits, bits, bits};
            for (int i = kPiece * team.lane(); i < p.pitch; i += kPiece * 32) {
              store_words<16, 16>(at + static_cast<unsigned>(c * p.pitch + i), piece);
            }
          }
          team.sync();
        }
        if (has_taps && exists) {
          // This lane's sums are those of eight pixels, four of which exist or none, and two output channels.
          const int lane = team.lane();
          const int col = team.warp * kPixels + lane % 4 * 8, own = lane / 4;
          // How far rows of the output are from a multiple of 16 bytes.
          unsigned to[2];
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const T* const row_begin = output + (own + 8 * half) * p.output_stride.c;
            to[half] = at + static_cast<unsigned>((own + 8 * half) * p.pitch) +
                       static_cast<unsigned>(shift_of(row_begin)) +
                       static_cast<unsigned>(col * p.stride_w * kSize);
          }
          const float bias[2] = {biases[of_block + own], biases[of_block + own + 8]};
          const unsigned step = static_cast<unsigned>(p.stride_w * kSize);
#pragma unroll 1
          for (int kw = 0; kw < p.kernel_w; kw += kBlocks) {
            Sums<kBlocks> sums;
            const int tap = (kh * p.kernel_w + kw) / kBlocks;
            const int rows = tap * (p.couts / kScatterCouts) + of_block / kScatterCouts;
            multiply<T, kParts>(words, ordinary, weight + rows * (kSteps * kParts * kBlocks * 32) + lane,
                                sums);
            // Sums 0 and 2 are those of the first four pixels, 1 and 3 of the others.
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              if (first_col + col + i % 2 * 4 >= p.input_w) continue;
              const unsigned place = to[i / 2] + i % 2 * 4 * step;
              if constexpr (kBlocks == 2) {
                scatter_pairs<T>(place, p.store_bytes, bias[i / 2], sums, i);
              } else {
                scatter_four<T>(place + static_cast<unsigned>(kw * p.dilation_w * kSize), step, bias[i / 2],
                                sums[0], i);
              }
            }
          }
        }
        if (!p.activation.is_identity()) {
          team.sync();
          T* const begin = reinterpret_cast<T*>(shared + (at - shared_address(shared)));
          for (int i = team.thread(); i < static_cast<int>(slot_bytes) / (4 * kSize); i += 32 * team.warps) {
            activate_values<1>(p.activation, reinterpret_cast<ActivatedValues<T>*>(begin) + i);
          }
        }
        // What the next slice replaces has been read.
        wait_for_bulk_reads();
        fence_for_bulk_copies();
        team.sync();
        copy_rows(p, team, at, output, couts - of_block, extent);
        slot ^= 1;
      }
    }
  }
  wait_for_bulk_reads();
}

// ---------------------------------------------------------------- launch

template <typename T, int kParts, int kBlocks, int kSteps>
cudaError_t launch_steps(const Problem& problem, const ScatterLaunch& launch, int store_bytes,
                         cudaStream_t stream) {
  Params<T> p = {};
  set_problem(p, problem);
  p.weight = static_cast<const T*>(problem.weight);
  p.weight_stride = problem.weight_stride;
  p.padding_h = static_cast<int>(problem.h.padding);
  p.padding_w = static_cast<int>(problem.w.padding);
  p.stride_h = static_cast<int>(problem.h.stride);
  p.stride_w = static_cast<int>(problem.w.stride);
  p.kernel_h = static_cast<int>(problem.h.kernel);
  p.kernel_w = static_cast<int>(problem.w.kernel);
  p.columns = p.kernel_w;
  p.dilation_h = static_cast<int>(problem.h.dilation);
  p.dilation_w = static_cast<int>(problem.w.dilation);
  p.cout_tiles = static_cast<int>(launch.cout_tiles);
  p.groups = static_cast<int>(launch.groups);
  p.strips = static_cast<int>(launch.strips);
  p.rows = static_cast<int>(launch.rows);
  p.items = static_cast<int>(launch.items);
  p.shares = launch.shares;
  p.couts = launch.couts;
  p.teams = launch.teams;
  p.team_warps = launch.team_warps;
  p.pitch = launch.pitch;
  p.first_row = launch.first_row;
  p.first_col = launch.first_col;
  p.fills = launch.fills;
  p.shared = scatter_shared(launch, problem.h.kernel * problem.w.kernel);
  p.store_bytes = store_bytes;
  auto* const kernel = scatter_gemm_kernel<T, kParts, kBlocks, kSteps>;
  const cudaError_t error = allow_shared_memory(kernel, launch.shared_limit);
  if (error != cudaSuccess) return error;
  kernel<<<static_cast<unsigned>(launch.blocks()), 32 * launch.warps(), launch.shared_bytes, stream>>>(p);
  return cudaGetLastError();
}

// The widest stores that the places of pixels allow.
template <typename T>
int widest_stores(const Problem& problem) {
  return common_power_of_two(aligned_bytes(problem.output, kPiece), problem.w.output * sizeof(T),
                             problem.w.padding * sizeof(T));
}

// Calls the instantiation for launch.steps and launch.pairs.
template <typename T, int kParts = 1, int kIndex = 0>
cudaError_t launch_for(const Problem& problem, const ScatterLaunch& launch, cudaStream_t stream) {
  if constexpr (kIndex < static_cast<int>(sizeof(kScatterSteps) / sizeof(kScatterSteps[0]))) {
    constexpr int kSteps = kScatterSteps[kIndex];
    if (launch.steps != kSteps) return launch_for<T, kParts, kIndex + 1>(problem, launch, stream);
    const int bytes = widest_stores<T>(problem);
    // Words of two outputs must be aligned.
    return launch.pairs && bytes >= 4 ? launch_steps<T, kParts, 2, kSteps>(problem, launch, bytes, stream)
                                      : launch_steps<T, kParts, 1, kSteps>(problem, launch, bytes, stream);
  } else {
    return cudaErrorInvalidValue;
  }
}

}  // namespace scatter_gemm
}  // namespace convt
