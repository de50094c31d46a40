// pack_fragments: lays the weight out as tile_mma reads it, in fragments of the tensor cores' A operand
// (convt/tile_mma.h has the layout, convt/device/mma.cuh what a lane holds).
//
// Mapping: a block takes one channel step of one tile of output channels of one group.
// It brings the weights of them, all taps, into shared memory in the order in which they lie in
// global memory, then its threads write one lane's 16 bytes of a fragment at a time: both sides are
// contiguous. A filter too large for that is read in place.

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
  int log2_couts, blocks_m;
  int cout_tiles, channel_steps, chunk_steps, all_chunks, max_offsets, phase_sets;
  int cin_per_group, cout_per_group;
  int pitch;  // elements from channel to channel in shared memory
  bool staged;
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
  const int step = static_cast<int>(blockIdx.x) % p.channel_steps;
  const int cout_tile = static_cast<int>(blockIdx.x) / p.channel_steps % p.cout_tiles;
  const int group = static_cast<int>(blockIdx.x) / p.channel_steps / p.cout_tiles;
  const int couts = min(1 << p.log2_couts, p.cout_per_group - (cout_tile << p.log2_couts));
  const int channels = min(kStepChannels, p.cin_per_group - step * kStepChannels);
  const Element* const source =
      weight + (static_cast<int64_t>(group) * p.cin_per_group + step * kStepChannels) * p.stride.cin +
      (static_cast<int64_t>(cout_tile) << p.log2_couts) * p.stride.cout;

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
  for (int set = 0; set < p.phase_sets; ++set) {
    const int set_h = set / p.taps_w.sets, set_w = set % p.taps_w.sets;
    const int count_w = p.taps_w.offsets(set_w);
    const int fragments = p.taps_h.offsets(set_h) * count_w * p.blocks_m;
    const int64_t row_tile = (static_cast<int64_t>(group) * p.cout_tiles + cout_tile) * p.phase_sets + set;
    uint4* const destination =
        packed + (((row_tile * p.all_chunks + step / p.chunk_steps) * p.max_offsets * p.chunk_steps +
                   step % p.chunk_steps) *
                      p.blocks_m * 32 +
                  lane);
    for (int fragment = static_cast<int>(threadIdx.x) / 32; fragment < fragments; fragment += kThreads / 32) {
      const int block = fragment % p.blocks_m, offset = fragment / p.blocks_m;
      const int offset_h = p.taps_h.offset[p.taps_h.begin[set_h] + offset / count_w];
      const int offset_w = p.taps_w.offset[p.taps_w.begin[set_w] + offset % count_w];
      Element elements[4][kPerRegister];
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int row = 16 * block + group_row + r % 2 * 8;
        const int phase = row >> p.log2_couts, cout = row & ((1 << p.log2_couts) - 1);
        int kh = -1, kw = -1;
        if (phase < p.taps_h.set_size * p.taps_w.set_size) {
          kh = p.taps_h.tap(set_h * p.taps_h.set_size + phase / p.taps_w.set_size, offset_h);
          kw = p.taps_w.tap(set_w * p.taps_w.set_size + phase % p.taps_w.set_size, offset_w);
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
  p.blocks_m = kTileMmaConfigs[launch.config].blocks_m;
  p.cout_tiles = launch.cout_tiles;
  p.channel_steps = launch.channel_steps;
  p.chunk_steps = launch.chunk_steps;
  p.all_chunks = launch.chunks * launch.splits;
  p.max_offsets = launch.max_offsets;
  p.phase_sets = launch.phase_sets();
  p.cin_per_group = static_cast<int>(problem.cin_per_group);
  p.cout_per_group = static_cast<int>(problem.cout_per_group);
  // Odd numbers of elements from channel to channel: the lanes of a fragment's row read different banks.
  p.pitch = std::min(launch.couts(), p.cout_per_group) * taps | 1;
  const size_t slab = static_cast<size_t>(p.pitch) * (32 / kBytes) * kBytes;
  p.staged = slab <= kSharedBytes;
  const unsigned grid = static_cast<unsigned>(launch.groups * launch.cout_tiles * launch.channel_steps);
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
