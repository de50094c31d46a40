// pack_fragments: lays the weight out as tile_mma reads it, in fragments of the tensor cores' A operand
// (convt/tile_mma.h has the layout, convt/device/mma.cuh what a lane holds).
//
// Mapping: a thread block takes one channel step of the output channels of one block of 16 rows, in one tile
// of output channels of one group. It brings their weights, all taps, into shared memory in the order in
// which they lie in global memory, then its threads write one lane's 16 bytes of a fragment at a time: both
// sides are contiguous. A filter too large for that is read in place.

#include <algorithm>

#include "convt/kernels.h"

namespace convt {
namespace {

constexpr int kThreads = 256;
constexpr size_t kSharedBytes = 48 << 10;  // what every block may have without asking

struct PackParams {
  AxisTaps taps_h, taps_w;
  WeightStrides stride;
  Divisor<int> taps, filter_cols;
  Divisor<int> dilation_h, dilation_w;
  Divisor<int> channel_steps, cout_parts, cout_tiles;  // of the grid, innermost first; then groups
  Divisor<int> set_fragments, set_cols, phases_w;      // what the threads walk
  int blocks_of_part;                                  // blocks of 16 rows with the same output channels
  int log2_couts, blocks_m;
  int chunk_steps, all_chunks, max_offsets, phase_sets;
  int cin_per_group, cout_per_group;
  int pitch;  // elements from channel to channel in shared memory
  bool staged, phases_in_halves;
};

// Bits of a weight: this kernel moves them and needs no arithmetic.
template <int kBytes>
struct Bits;
template <>
struct Bits<2> {
  using type = unsigned short;
};
template <>
struct Bits<4> {
  using type = unsigned;
};

template <int kBytes>
__global__ void __launch_bounds__(kThreads, 2)
    pack_fragments_kernel(const __grid_constant__ PackParams p,
                          const typename Bits<kBytes>::type* __restrict__ weight, uint4* packed) {
  using Element = typename Bits<kBytes>::type;
  extern __shared__ __align__(16) unsigned char shared[];
  Element* const slab = reinterpret_cast<Element*>(shared);
  constexpr int kPerRegister = 4 / kBytes;
  constexpr int kStepChannels = 32 / kBytes;
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

  if (p.staged) {
    const int run = couts * p.taps;
    for (int channel = 0; channel < channels; ++channel) {
#pragma unroll 4
      for (int element = threadIdx.x; element < run; element += kThreads) {
        const auto by_tap = p.taps.divide(element);
        const auto tap = p.filter_cols.divide(by_tap.remainder);
        slab[channel * p.pitch + element] = source[channel * p.stride.cin + by_tap.quotient * p.stride.cout +
                                                   tap.quotient * p.stride.kh + tap.remainder * p.stride.kw];
      }
    }
    __syncthreads();
  }

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
    uint4* const destination =
        packed + (((row_tile * p.all_chunks + step / p.chunk_steps) * p.max_offsets * p.chunk_steps +
                   step % p.chunk_steps) *
                      p.blocks_m * 32 +
                  lane);
    const int offset_h = p.taps_h.offset[p.taps_h.begin[set_h] + offset / count_w];
    const int offset_w = p.taps_w.offset[p.taps_w.begin[set_w] + offset % count_w];
    Element elements[4][kPerRegister];
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int row = 16 * block + group_row + r % 2 * 8;
      const int phase = p.phases_in_halves ? row >> 3 & 1 : row >> p.log2_couts;
      const int cout = (p.phases_in_halves ? row & 7 : row & 15) & ((1 << p.log2_couts) - 1);  // of the part
      int kh = -1, kw = -1;
      if (phase < p.taps_h.set_size * p.taps_w.set_size) {
        const auto by_row = p.phases_w.divide(phase);
        kh = p.taps_h.tap(set_h * p.taps_h.set_size + by_row.quotient, offset_h, p.dilation_h);
        kw = p.taps_w.tap(set_w * p.taps_w.set_size + by_row.remainder, offset_w, p.dilation_w);
      }
#pragma unroll
      for (int i = 0; i < kPerRegister; ++i) {
        const int channel = (r / 2 * 4 + member) * kPerRegister + i;
        Element element = 0;
        if (kh >= 0 && kw >= 0 && cout < couts && channel < channels) {
          element = p.staged ? slab[channel * p.pitch + cout * p.taps + kh * p.filter_cols + kw]
                             : source[channel * p.stride.cin + cout * p.stride.cout + kh * p.stride.kh +
                                      kw * p.stride.kw];
        }
        elements[r][i] = element;
      }
    }
    uint4 bits;
    memcpy(&bits, elements, sizeof(bits));
    destination[(offset * p.chunk_steps * p.blocks_m + block) * 32] = bits;
  }
}

template <int kBytes>
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
  // Odd numbers of elements from channel to channel: the lanes of a fragment's row read different banks.
  p.pitch = std::min(launch.couts() / cout_parts, p.cout_per_group) * taps | 1;
  const size_t slab = static_cast<size_t>(p.pitch) * (32 / kBytes) * kBytes;
  p.staged = slab <= kSharedBytes;
  const unsigned grid =
      static_cast<unsigned>(launch.groups * launch.cout_tiles * cout_parts * launch.channel_steps);
  using Element = typename Bits<kBytes>::type;
  pack_fragments_kernel<kBytes><<<grid, kThreads, p.staged ? slab : 0, stream>>>(
      p, static_cast<const Element*>(problem.weight), static_cast<uint4*>(workspace));
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_pack_fragments(const Problem& problem, const TileMmaLaunch& launch, void* workspace,
                                  cudaStream_t stream) {
  switch (element_size(problem.dtype)) {
    case 2:
      return launch_pack<2>(problem, launch, workspace, stream);
    case 4:
      return launch_pack<4>(problem, launch, workspace, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace convt
