// pack_fragments: lays the weight out as tile_mma reads it, in fragments of the tensor cores' A operand
// (convt/tile_mma.h has the layout, convt/device/mma.cuh what a lane holds), or as tile_wgmma does, in blocks
// (convt/tile_wgmma.h).
//
// Mapping: a thread block takes one channel step of the output channels of one block of 16 rows, in one tile
// of output channels of one group. It brings their weights, all taps, into shared memory in the order in
// which they lie in global memory, then its threads write one lane's 16 bytes of a fragment at a time, or
// those of a row in a block: both sides are contiguous. A filter too large for that is read in place. Weights
// of float32 are rounded to TF32, or split into two parts, on their way.

#include <algorithm>
#include <initializer_list>

#include "convt/alignment.h"
#include "convt/device/launch.cuh"
#include "convt/device/scalar.cuh"
#include "convt/device/tf32.cuh"
#include "convt/kernels.h"

namespace convt {
namespace {

constexpr int kThreads = 256;
constexpr size_t kSharedBytes = 48 << 10;  // what every block may have without asking

struct PackParams {
  AxisTaps taps_h, taps_w;
  WeightStrides stride;
  Divisor<int> taps, filter_cols;
  Divisor<int> channel_pieces, tap_pieces;  // of 16 bytes, of the weights that are staged
  Divisor<int> dilation_h, dilation_w;
  Divisor<int> channel_steps, cout_parts, cout_tiles;  // of the grid, innermost first; then groups
  Divisor<int> set_fragments, set_cols, phases_w;      // what the threads walk
  int blocks_of_part;                                  // blocks of 16 rows with the same output channels
  int log2_couts, blocks_m;
  int chunk_steps, all_chunks, max_offsets, phase_sets;
  int cin_per_group, cout_per_group;
  int pitch;              // elements from channel to channel in shared memory
  unsigned* repair_word;  // to be cleared; may be null
  bool staged, phases_in_halves;
  // Neighbouring output channels are neighbours in memory: pieces run along them, not along the taps.
  bool channels_last;
  bool aligned;  // pieces are contiguous, and begin at multiples of 16 bytes
};

// The weight in blocks, of tile_wgmma, or in fragments, of tile_mma.
template <int kBytes, int kParts, bool kBlocks>
__global__ void __launch_bounds__(kThreads, 4)
    pack_fragments_kernel(const __grid_constant__ PackParams p, const bits_t<kBytes>* __restrict__ weight,
                          uint4* packed) {
  using Element = bits_t<kBytes>;
  release_next_kernel();  // tile_wgmma waits for the weight where it reads it
  if (p.repair_word != nullptr && blockIdx.x == 0 && threadIdx.x == 0) *p.repair_word = 0;
  extern __shared__ __align__(16) unsigned char shared[];
  Element* const slab = reinterpret_cast<Element*>(shared);
  constexpr int kPerRegister = 4 / kBytes;
  constexpr int kStepChannels = 32 / kBytes;
  constexpr int kPieceElements = 16 / kBytes;
  int rest = static_cast<int>(blockIdx.x);
  const auto next = [&rest](const Divisor<int>& size) {
    const auto result = size.divide(rest);
    rest = result.quotient;
    return result.remainder;
  };
  const int step = next(p.channel_steps), part = next(p.cout_parts), cout_tile = next(p.cout_tiles);
  const int group = rest;
  const int part_couts = (1 << p.log2_couts) / p.cout_parts;
  const int first_cout = (cout_tile << p.log2_couts) + part * part_couts;
  const int couts = min(part_couts, p.cout_per_group - first_cout);  // may be negative
  const int channels = min(kStepChannels, p.cin_per_group - step * kStepChannels);
  const Element* const source =
      weight + (static_cast<int64_t>(group) * p.cin_per_group + step * kStepChannels) * p.stride.cin +
      static_cast<int64_t>(first_cout) * p.stride.cout;

  // Element `weight` of a channel, in the order of a contiguous weight.
  const auto read = [&p](const Element* from, int channel, int weight_of_channel) {
    const auto by_tap = p.taps.divide(weight_of_channel);
    const auto tap = p.filter_cols.divide(by_tap.remainder);
    return from[channel * p.stride.cin + by_tap.quotient * p.stride.cout + tap.quotient * p.stride.kh +
                tap.remainder * p.stride.kw];
  };
  if (p.staged && couts > 0) {
    const int all = channels * p.channel_pieces;
#pragma unroll 4
    for (int piece = static_cast<int>(threadIdx.x); piece < all; piece += kThreads) {
      const auto by_channel = p.channel_pieces.divide(piece);
      const auto by_tap = p.tap_pieces.divide(by_channel.remainder);
      // Its first weight of the channel, the distance to the next, and how many there are.
      int first, step_on, left;
      const Element* from = source + by_channel.quotient * p.stride.cin;
      if (p.channels_last) {
        const auto tap = p.filter_cols.divide(by_tap.quotient);
        const int cout = by_tap.remainder * kPieceElements;
        from += tap.quotient * p.stride.kh + tap.remainder * p.stride.kw + cout;
        first = cout * p.taps + by_tap.quotient;
        step_on = p.taps;
        left = couts - cout;
      } else {
        first = by_channel.remainder * kPieceElements;
        step_on = 1;
        left = couts * p.taps - first;
      }
      Element elements[kPieceElements] = {};
      if (p.aligned && left >= kPieceElements) {
        const uint4 bits = *reinterpret_cast<const uint4*>(p.channels_last ? from : from + first);
        memcpy(elements, &bits, sizeof(bits));
      } else {
#pragma unroll
        for (int i = 0; i < kPieceElements; ++i) {
          if (i < left) elements[i] = p.channels_last ? from[i] : read(from, 0, first + i);
        }
      }
      Element* const destination = slab + by_channel.quotient * p.pitch + first;
#pragma unroll
      for (int i = 0; i < kPieceElements; ++i) {
        if (i < left) destination[i * step_on] = elements[i];
      }
    }
  }
  __syncthreads();

  const int lane = static_cast<int>(threadIdx.x) % 32, group_row = lane / 4, member = lane % 4;
  const int all_fragments = p.phase_sets * p.set_fragments;
  for (int number = static_cast<int>(threadIdx.x) / 32; number < all_fragments; number += kThreads / 32) {
    const auto by_set = p.set_fragments.divide(number);
    const auto set = p.set_cols.divide(by_set.quotient);
    const int set_h = set.quotient, set_w = set.remainder;
    const int count_w = p.taps_w.offsets(set_w);
    const int offset = by_set.remainder / p.blocks_of_part;
    const int block = part + by_set.remainder % p.blocks_of_part * p.cout_parts;
    if (offset >= p.taps_h.offsets(set_h) * count_w || block >= p.blocks_m) continue;
    const int64_t row_tile =
        (static_cast<int64_t>(group) * p.cout_tiles + cout_tile) * p.phase_sets + by_set.quotient;
    // Of the fragment's 16 bytes in those of all blocks of rows.
    const int place = kBlocks ? (lane / 16 * p.blocks_m + block) * 16 + lane % 16 : block * 32 + lane;
    uint4* const destination =
        packed + (((row_tile * p.all_chunks + step / p.chunk_steps) * p.max_offsets * p.chunk_steps +
                   step % p.chunk_steps) *
                      kParts * p.blocks_m * 32 +
                  place);
    const int offset_h = p.taps_h.offset[p.taps_h.begin[set_h] + offset / count_w];
    const int offset_w = p.taps_w.offset[p.taps_w.begin[set_w] + offset % count_w];
    // A lane has one row of a block, two of a fragment.
    constexpr int kRows = kBlocks ? 1 : 2;
    int weights[kRows];  // from a channel's first; negative where there is none
#pragma unroll
    for (int half = 0; half < kRows; ++half) {
      const int row = 16 * block + (kBlocks ? lane % 16 : group_row + 8 * half);
      const int phase = p.phases_in_halves ? row >> 3 & 1 : row >> p.log2_couts;
      const int cout = (p.phases_in_halves ? row & 7 : row & 15) & ((1 << p.log2_couts) - 1);  // of the part
      int kh = -1, kw = -1;
      if (phase < p.taps_h.set_size * p.taps_w.set_size) {
        const auto by_row = p.phases_w.divide(phase);
        kh = p.taps_h.tap(set_h * p.taps_h.set_size + by_row.quotient, offset_h, p.dilation_h);
        kw = p.taps_w.tap(set_w * p.taps_w.set_size + by_row.remainder, offset_w, p.dilation_w);
      }
      weights[half] =
          kh < 0 || kw < 0 || cout >= couts ? -1 : (cout * p.taps_h.kernel + kh) * p.filter_cols + kw;
    }
    Element elements[4][kPerRegister];
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int place_in_slab = weights[r % kRows];
#pragma unroll
      for (int i = 0; i < kPerRegister; ++i) {
        const int channel = (kBlocks ? lane / 16 * 4 + r : r / 2 * 4 + member) * kPerRegister + i;
        Element element = 0;
        if (place_in_slab >= 0 && channel < channels) {
          element = p.staged ? slab[channel * p.pitch + place_in_slab] : read(source, channel, place_in_slab);
        }
        elements[r][i] = element;
      }
    }
    uint4 parts[kParts];
    memcpy(parts, elements, sizeof(elements));
    if constexpr (kBytes == 4) split_tf32(uint4(parts[0]), parts);
#pragma unroll
    for (int part = 0; part < kParts; ++part)
      destination[(offset * p.chunk_steps * kParts + part) * p.blocks_m * 32] = parts[part];
  }
}

template <int kBytes, int kParts, bool kBlocks>
cudaError_t launch_pack(const Problem& problem, const TileMmaLaunch& launch, void* workspace,
                        cudaStream_t stream) {
  PackParams p;
  p.taps_h = launch.taps_h;
  p.taps_w = launch.taps_w;
  p.stride = problem.weight_stride;
  const int taps = launch.taps_h.kernel * launch.taps_w.kernel;
  p.taps = taps;
  p.filter_cols = launch.taps_w.kernel;
  p.log2_couts = launch.log2_couts;
  p.dilation_h = launch.taps_h.dilation;
  p.dilation_w = launch.taps_w.dilation;
  p.blocks_m = launch.blocks_m;
  p.phases_in_halves = launch.phases_in_halves;
  p.repair_word = launch.repairs ? repair_word(launch, workspace) : nullptr;
  const int cout_parts = std::max(1, launch.couts() / (launch.phases_in_halves ? 8 : 16));
  p.cout_parts = cout_parts;
  p.blocks_of_part = (launch.blocks_m + cout_parts - 1) / cout_parts;
  p.cout_tiles = launch.cout_tiles;
  p.channel_steps = launch.channel_steps;
  p.set_fragments = launch.max_offsets * p.blocks_of_part;
  p.set_cols = launch.taps_w.sets;
  p.phases_w = launch.taps_w.set_size;
  p.chunk_steps = launch.chunk_steps;
  p.all_chunks = launch.chunks * launch.splits;
  p.max_offsets = launch.max_offsets;
  p.phase_sets = launch.phase_sets();
  p.cin_per_group = static_cast<int>(problem.cin_per_group);
  p.cout_per_group = static_cast<int>(problem.cout_per_group);
  const int piece = 16 / kBytes;
  const int run = std::min(launch.couts() / cout_parts, p.cout_per_group) * taps;
  // Odd numbers of elements from channel to channel: the lanes of a fragment's row read different banks.
  p.pitch = run | 1;
  const int part = launch.couts() / cout_parts;
  const auto whole = [piece](std::initializer_list<int64_t> strides) {
    return std::all_of(strides.begin(), strides.end(),
                       [piece](int64_t stride) { return stride % piece == 0; });
  };
  const bool contiguous = p.stride.kw == 1 && p.stride.kh == launch.taps_w.kernel && p.stride.cout == taps;
  p.channels_last = !contiguous && p.stride.cout == 1;
  const int tap_pieces = (std::min(part, p.cout_per_group) + piece - 1) / piece;
  p.tap_pieces = p.channels_last ? tap_pieces : 1;
  p.channel_pieces = p.channels_last ? taps * tap_pieces : (run + piece - 1) / piece;
  p.aligned = is_aligned(problem.weight, 16) &&
              (p.channels_last ? whole({p.stride.cin, p.stride.kh, p.stride.kw, part})
                               : contiguous && whole({p.stride.cin, part * taps}));
  const size_t slab = static_cast<size_t>(p.pitch) * (32 / kBytes) * kBytes;
  p.staged = slab <= kSharedBytes;
  const unsigned grid =
      static_cast<unsigned>(launch.groups * launch.cout_tiles * cout_parts * launch.channel_steps);
  using Element = bits_t<kBytes>;
  pack_fragments_kernel<kBytes, kParts, kBlocks><<<grid, kThreads, p.staged ? slab : 0, stream>>>(
      p, static_cast<const Element*>(problem.weight), static_cast<uint4*>(workspace));
  return cudaGetLastError();
}

template <int kBytes, int kParts>
cudaError_t launch_pack_in_order(const Problem& problem, const TileMmaLaunch& launch, void* workspace,
                                 cudaStream_t stream) {
  return launch.packs_blocks ? launch_pack<kBytes, kParts, true>(problem, launch, workspace, stream)
                             : launch_pack<kBytes, kParts, false>(problem, launch, workspace, stream);
}

}  // namespace

cudaError_t launch_pack_fragments(const Problem& problem, const TileMmaLaunch& launch, void* workspace,
                                  cudaStream_t stream) {
  const int size = launch.element_size, parts = launch.parts;
  if (size == 2 && parts == 1) return launch_pack_in_order<2, 1>(problem, launch, workspace, stream);
  if (size == 4 && parts == 1) return launch_pack_in_order<4, 1>(problem, launch, workspace, stream);
  if (size == 4 && parts == 2) return launch_pack_in_order<4, 2>(problem, launch, workspace, stream);
  return cudaErrorInvalidValue;
}

}  // namespace convt
