// tile_mma: implicit matrix products on tensor cores (mma.sync), one for each stride phase, fp32
// accumulation.
//
// With the taps of a phase written as offsets from a point q of the input's grid (AxisTaps), a phase is
//
//   y[cout][q] = sum over offsets, channels of  w[cout][channel][tap] * x[channel][q + offset]
//
// Rows of the product are output channels (of one or several phases), its columns are points q, in rows and
// columns of one image or of several small ones. A thread block takes a tile of points and computes all, or
// many, of its row tiles:
//
//   Loader    (channel_planes.cuh) brings the input under the tile, with its halo, into shared memory as
//             channel planes. Where one chunk holds all channels this happens once for all row tiles. The
//             copies of the next chunk, or of the block's next tile, run while this one is multiplied.
//   MainLoop  a warp owns a row tile x its pixels. For each offset and channel step it reads B fragments with
//             ldmatrix (a row of a matrix is one pixel's 16 bytes, an offset moves the address), A fragments
//             as they lie in the packed weight, 16 bytes per lane straight from L1 and one step ahead, and
//             skips blocks of rows whose phase has no tap there.
//   Epilogue  (tile_epilogue.cuh) a warp lays its sums out as lines of the output in its own part of shared
//             memory and writes whole lines.
//
// float32 is multiplied as TF32: rounded, one product for each term, or split into two parts, three products,
// whose sums are added to float32 every few channel steps (convt/device/tf32.cuh).
//
// Where there are too few tiles for the GPU, thread blocks take parts of the channels (splits), write their
// sums to the workspace, and a second kernel adds them in a fixed order and runs the same epilogue.
//
// Padding is multiplied by weights: a non-finite weight gives NaN in the outputs that it would reach if the
// image continued with zeros.
#pragma once

#include "convt/device/async_copy.cuh"
#include "convt/device/channel_planes.cuh"
#include "convt/device/mma.cuh"
#include "convt/device/tile_epilogue.cuh"
#include "convt/device/tile_params.cuh"
#include "convt/kernels.h"

namespace convt {
namespace tile_mma {

template <int kIndex, int kOperandParts = 1>
struct Config {
  static constexpr TileMmaConfig kShape = kTileMmaConfigs[kIndex];
  static constexpr int kParts = kOperandParts;
  static constexpr int kBlocksM = kShape.blocks_m;
  static constexpr int kBlocksN = kShape.blocks_n;
  static constexpr int kWarpsM = kShape.warps_m;
  static constexpr int kWarpsN = kShape.warps_n;
  static constexpr int kWarpPixels = kShape.warp_pixels();
  static constexpr int kThreads = kShape.threads();
  static constexpr int kMinBlocks = kShape.min_blocks;
};

// An offset of a phase set: where it moves ldmatrix, and which blocks of rows have a tap there.
struct Offset {
  int bytes;
  unsigned blocks;
};

template <typename Config, typename T>
__device__ inline void fill_offset_table(const Params<T>& p, Offset* table) {
  for_each_offset<Config::kThreads>(p, [&](int place, int entry_h, int entry_w, int pixels) {
    unsigned blocks = 0;
#pragma unroll
    for (int block = 0; block < Config::kBlocksM; ++block) {
      const auto phase = p.phases_w.divide(16 * block >> p.log2_couts);
      if (phase.quotient < p.taps_h.set_size && (p.taps_h.phases[entry_h] >> phase.quotient & 1) != 0 &&
          (p.taps_w.phases[entry_w] >> phase.remainder & 1) != 0) {
        blocks |= 1u << block;
      }
    }
    table[place] = {pixels * 16, blocks};
  });
}

template <typename Config>
using FragmentsA = FragmentA[Config::kBlocksM];

// Tensor cores cut sums off where they add, so that many products of one sign drift. Sums of split operands
// are added to float32 after so many channel steps.
inline constexpr int kSummedSteps = 4;

// sums += a * b for the blocks of rows in `blocks`; `address` is that of the step's planes.
template <typename T, typename Config, bool kAllBlocks>
__device__ inline void multiply_step(const FragmentsA<Config>& a, unsigned address,
                                     const unsigned (&pixel)[Config::kBlocksN / 2], unsigned blocks,
                                     Sums<Config>& sums) {
  unsigned b[Config::kBlocksN / 2][4];
#pragma unroll
  for (int j = 0; j < Config::kBlocksN / 2; ++j) load_matrices(address + pixel[j], b[j]);
#pragma unroll
  for (int i = 0; i < Config::kBlocksM; ++i) {
    if (!kAllBlocks && (blocks >> i & 1) == 0) continue;
#pragma unroll
    for (int j = 0; j < Config::kBlocksN / 2; ++j) {
      multiply_add<T>(sums[i][2 * j], a[i], b[j][0], b[j][1]);
      multiply_add<T>(sums[i][2 * j + 1], a[i], b[j][2], b[j][3]);
    }
  }
}

template <typename Config, typename Operation>
__device__ inline void for_each_sum(Sums<Config>& sums, const Operation& operation) {
#pragma unroll
  for (int i = 0; i < Config::kBlocksM; ++i) {
#pragma unroll
    for (int j = 0; j < Config::kBlocksN; ++j) {
#pragma unroll
      for (int k = 0; k < 4; ++k) operation(sums[i][j][k], i, j, k);
    }
  }
}

template <typename Config>
__device__ inline void clear(Sums<Config>& sums) {
  for_each_sum<Config>(sums, [](float& sum, int, int, int) { sum = 0.0f; });
}

// Reads A fragments of the blocks of rows in `blocks`.
template <typename Config>
__device__ inline void read_weight(const FragmentA* weight, unsigned blocks, FragmentsA<Config>& a) {
#pragma unroll
  for (int i = 0; i < Config::kBlocksM; ++i) {
    if ((blocks >> i & 1) != 0) a[i] = __ldg(weight + 32 * i);
  }
}

template <typename Config>
inline constexpr unsigned kAllBlocksOf = (1u << Config::kBlocksM) - 1;

// The channel steps of a chunk at one offset. On entry `a` holds the first step's fragments, on return those
// at `next_weight`, where the next offset's begin: A fragments are read one step ahead. `pixel[j]` is this
// lane's row of the matrices of pixels 16 j .. 16 j + 15.
template <typename T, typename Config, bool kAllBlocks>
__device__ inline void multiply_offset(unsigned address, int step_bytes,
                                       const unsigned (&pixel)[Config::kBlocksN / 2], const FragmentA* weight,
                                       const FragmentA* next_weight, int steps, unsigned blocks,
                                       FragmentsA<Config>& a, Sums<Config>& sums) {
#pragma unroll 2
  for (int step = 0; step < steps; ++step) {
    const bool last = step + 1 == steps;
    weight = last ? next_weight : weight + Config::kBlocksM * 32;
    FragmentsA<Config> next;
    read_weight<Config>(weight, kAllBlocks || last ? kAllBlocksOf<Config> : blocks, next);
    multiply_step<T, Config, kAllBlocks>(a, address, pixel, blocks, sums);
    address += step_bytes;
#pragma unroll
    for (int i = 0; i < Config::kBlocksM; ++i) a[i] = next[i];
  }
}

// The same for split operands, whose sums and fragments leave no registers to read ahead.
template <typename T, typename Config>
__device__ inline void multiply_split_offset(unsigned address, int step_bytes, int part_bytes,
                                             const unsigned (&pixel)[Config::kBlocksN / 2],
                                             const FragmentA* weight, int steps, unsigned blocks,
                                             Sums<Config>& sums) {
#pragma unroll 1
  for (int left = steps; left > 0; left -= kSummedSteps) {
    Sums<Config> few;
    clear<Config>(few);
    // Products of a first and a second part, then those of first parts; those of second parts are left out.
#pragma unroll
    for (const bool mixed : {true, false}) {
#pragma unroll 1
      for (int step = 0; step < min(left, kSummedSteps); ++step) {
        const FragmentA* const step_weight = weight + step * Config::kParts * Config::kBlocksM * 32;
        const unsigned step_address = address + step * step_bytes;
#pragma unroll
        for (int of_a = 0; of_a <= (mixed ? 1 : 0); ++of_a) {
          FragmentsA<Config> a;
          read_weight<Config>(step_weight + of_a * Config::kBlocksM * 32, blocks, a);
          const int of_b = mixed ? 1 - of_a : 0;
          multiply_step<T, Config, false>(a, step_address + of_b * part_bytes, pixel, blocks, few);
        }
      }
      if (mixed) for_each_sum<Config>(few, [](float& sum, int, int, int) { sum *= 1 / kSecondPartScale; });
    }
    for_each_sum<Config>(sums, [&few](float& sum, int i, int j, int k) { sum += few[i][j][k]; });
    weight += kSummedSteps * Config::kParts * Config::kBlocksM * 32;
    address += kSummedSteps * step_bytes;
  }
}

// All offsets and channel steps of a chunk.
template <typename T, typename Config>
__device__ inline void multiply_chunk(const Params<T>& p, const RowTile<T>& row_tile, const Offset* table,
                                      int group, int chunk, int steps, unsigned planes,
                                      const unsigned (&pixel)[Config::kBlocksN / 2], Sums<Config>& sums) {
  const int count = p.taps_h.offsets(row_tile.set_h) * p.taps_w.offsets(row_tile.set_w);
  if (count == 0) return;
  const Offset* const offsets = table + first_offset(p, row_tile.set_h, row_tile.set_w);
  const int offset_fragments = p.chunk_steps * Config::kParts * Config::kBlocksM * 32;
  const int64_t number = (static_cast<int64_t>(group) * p.row_tiles + row_tile.index) * p.all_chunks + chunk;
  const FragmentA* weight = p.packed_weight + number * p.max_offsets * offset_fragments + threadIdx.x % 32;
  unsigned existing_blocks = 0;
#pragma unroll
  for (int i = 0; i < Config::kBlocksM; ++i) {
    if ((16 * i & ((1 << p.log2_couts) - 1)) < row_tile.couts) existing_blocks |= 1u << i;
  }
  const int step_bytes = 2 * p.shared.plane * 16;
  FragmentsA<Config> a;
  if constexpr (Config::kParts == 1) read_weight<Config>(weight, kAllBlocksOf<Config>, a);
  for (int index = 0; index < count; ++index) {
    const unsigned blocks = offsets[index].blocks & existing_blocks;
    const unsigned address = planes + offsets[index].bytes;
    const FragmentA* const next_weight = weight + offset_fragments;
    if constexpr (Config::kParts > 1) {
      multiply_split_offset<T, Config>(address, step_bytes, part_planes(p) * 16, pixel, weight, steps, blocks,
                                       sums);
    } else if (blocks == kAllBlocksOf<Config>) {
      multiply_offset<T, Config, true>(address, step_bytes, pixel, weight, next_weight, steps, blocks, a,
                                       sums);
    } else {
      multiply_offset<T, Config, false>(address, step_bytes, pixel, weight, next_weight, steps, blocks, a,
                                        sums);
    }
    weight = next_weight;
  }
}

template <typename Config, typename T>
__device__ inline Output<T> output_of(const Params<T>& p, const RowTile<T>& row_tile, unsigned char* shared) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  Output<T> out;
  out.lines = reinterpret_cast<T*>(shared + p.shared.output_offset + warp * p.shared.output_bytes);
  out.first_pixel = warp % Config::kWarpsN * Config::kWarpPixels;
  out.first_cout = row_tile.first_cout;
  out.log2_couts = p.log2_couts;
  out.couts = row_tile.couts;
  out.phase_h = row_tile.set_h * p.taps_h.set_size;
  out.phase_w = row_tile.set_w * p.taps_w.set_size;
  out.phases_h = p.taps_h.set_size;
  out.phases_w = p.taps_w.set_size;
  out.lane = static_cast<int>(threadIdx.x) % 32;
  return out;
}

// Where the sums of a row tile's pixels lie among the partial sums: this lane's first float4.
template <typename Config, typename T>
__device__ inline float4* partial_sums(const Params<T>& p, const Tile& tile, int row_tile, int split) {
  const int warp_n = static_cast<int>(threadIdx.x) / 32 % Config::kWarpsN;
  const int64_t pixel_tiles = static_cast<int64_t>(p.tiles_w) * p.tiles_h * p.tiles_n;
  const int64_t number =
      (((static_cast<int64_t>(split) * p.groups + tile.group) * p.row_tiles + row_tile) * pixel_tiles +
       tile.pixel_tile) *
          Config::kWarpsN +
      warp_n;
  return p.partial_sums + number * (Config::kBlocksM * Config::kBlocksN * 32) + threadIdx.x % 32;
}

// Stores a row tile's outputs, or its part of their sums.
template <typename Config, typename T>
__device__ inline void finish(const Params<T>& p, const Tile& tile, const RowTile<T>& row_tile,
                              unsigned char* shared, Sums<Config>& sums) {
  if (p.partial_sums == nullptr) {
    store_sums<Config>(p, tile, output_of<Config>(p, row_tile, shared), sums);
    return;
  }
  float4* const partial = partial_sums<Config>(p, tile, row_tile.index, tile.split);
#pragma unroll
  for (int i = 0; i < Config::kBlocksM; ++i) {
#pragma unroll
    for (int j = 0; j < Config::kBlocksN; ++j) {
      const float (&c)[4] = sums[i][j];
      partial[(i * Config::kBlocksN + j) * 32] = make_float4(c[0], c[1], c[2], c[3]);
    }
  }
}

// This lane's rows of ldmatrix, in bytes from the start of the planes.
template <typename Config, typename T>
__device__ inline void locate_pixels(const Params<T>& p, const Tile& tile, int first_pixel,
                                     unsigned (&pixel)[Config::kBlocksN / 2]) {
  const int lane = afresh(static_cast<int>(threadIdx.x)) % 32;
  const int first_w = tile.grid_w + p.taps_w.least_offset;
  const int margin = p.input_channels_last ? 0 : first_w & (p.load_bytes / static_cast<int>(sizeof(T)) - 1);
#pragma unroll
  for (int j = 0; j < Config::kBlocksN / 2; ++j) {
    // Matrices 0 and 1 are pixels 0 .. 7 of the two planes of a step, 2 and 3 are pixels 8 .. 15.
    const int number = first_pixel + 16 * j + lane % 8 + lane / 16 * 8;
    // A pixel past the end of the tile computes what the first one does, and is not stored.
    const Point at = point_of_pixel(p, number < p.images * p.image_numbers ? number : 0);
    pixel[j] = (at.image * p.shared.image_pixels + at.row * p.shared.input_cols + at.col + margin +
                lane / 8 % 2 * p.shared.plane) *
               16;
  }
}

template <typename T, typename Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kMinBlocks)
    tile_mma_kernel(const __grid_constant__ Params<T> p) {
  extern __shared__ __align__(16) unsigned char shared[];
  Offset* const table = reinterpret_cast<Offset*>(shared);
  unsigned char* const planes = shared + p.shared.planes_offset;
  unsigned char* const rows = shared + p.shared.rows_offset;
  const int buffer_bytes = Config::kParts * part_planes(p) * 16;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int first_pixel = warp % Config::kWarpsN * Config::kWarpPixels;
  const bool has_pixels = first_pixel < p.images * p.image_numbers;
  const auto stage = [&](const Tile& tile, int chunk, int buffer) {
    const T* const group_input =
        p.input + static_cast<int64_t>(tile.group) * p.cin_per_group * p.input_stride.c;
    stage_input<T, Config::kThreads>(p, tile, group_input,
                                     (tile.split * p.chunks + chunk) * p.chunk_steps * 2 * kChannelVector<T>,
                                     p.input_channels_last ? planes + buffer * buffer_bytes : rows);
  };

  // A turn is a chunk of a tile's channels: once for all row tiles where one chunk holds all channels, else
  // once for each round over the row tiles.
  int work = static_cast<int>(blockIdx.x);
  int buffer = 0, next_buffer = 0;  // of planes
  Tile tile = locate_tile(p, work);
  // Split operands leave no registers to keep it in.
  const auto this_tile = [&] { return Config::kParts == 1 ? tile : locate_tile(p, afresh(work)); };
  stage(tile, 0, next_buffer);
  fill_offset_table<Config>(p, table);
  while (true) {
    unsigned pixel[Config::kBlocksN / 2];
    locate_pixels<Config>(p, tile, first_pixel, pixel);
    const int next_work = work + static_cast<int>(gridDim.x);
    const int rounds = (tile.end_row_tile - tile.first_row_tile + Config::kWarpsM - 1) / Config::kWarpsM;
    for (int round = 0; round < rounds; ++round) {
      const int number = tile.first_row_tile + round * Config::kWarpsM + warp / Config::kWarpsN;
      const bool works = has_pixels && number < tile.end_row_tile;
      const RowTile<T> row_tile(p, number);
      Sums<Config> sums;
      clear<Config>(sums);
      for (int chunk = 0; chunk < p.chunks; ++chunk) {
        if (p.chunks > 1 || round == 0) {
          // This turn's input is here, and nobody uses that of the turn before any more.
          wait_for_copies();
          __syncthreads();
          if (!p.input_channels_last) {
            turn_rows<T, Config::kParts, Config::kThreads>(p, rows, planes);
            __syncthreads();
          }
          buffer = next_buffer;
          next_buffer = (buffer + 1) & (p.shared.plane_buffers - 1);
          const bool ends_tile = chunk + 1 == p.chunks && (p.chunks == 1 || round + 1 == rounds);
          if (!ends_tile) {
            stage(this_tile(), chunk + 1 < p.chunks ? chunk + 1 : 0, next_buffer);
          } else if (next_work < p.works) {
            stage(locate_tile(p, next_work), 0, next_buffer);
          }
          if constexpr (sizeof(T) == 4) {
            if (p.input_channels_last) {
              split_planes<Config::kParts, Config::kThreads, 1>(p, planes + buffer * buffer_bytes);
              __syncthreads();
            }
          }
        }
        const Tile now = this_tile();
        const int all_chunk = now.split * p.chunks + chunk;
        const int steps = min(p.chunk_steps, p.channel_steps - all_chunk * p.chunk_steps);
        if (works && steps > 0) {
          multiply_chunk<T, Config>(p, row_tile, table, now.group, all_chunk, steps,
                                    shared_address(planes + buffer * buffer_bytes), pixel, sums);
        }
      }
      if (works) finish<Config>(p, this_tile(), row_tile, shared, sums);
    }
    if (next_work >= p.works) return;
    work = next_work;
    tile = locate_tile(p, work);
  }
}

// Adds the splits' sums in their order and stores the outputs. Its grid is that of the products, with
// p.splits set to 1; `splits` is their number.
template <typename T, typename Config>
__global__ void __launch_bounds__(Config::kThreads, 1)
    add_splits_kernel(const __grid_constant__ Params<T> p, int splits) {
  extern __shared__ __align__(16) unsigned char shared[];
  const Tile tile = locate_tile(p, static_cast<int>(blockIdx.x));
  const int warp = static_cast<int>(threadIdx.x) / 32;
  if (warp % Config::kWarpsN * Config::kWarpPixels >= p.images * p.image_numbers) return;
  for (int number = tile.first_row_tile + warp / Config::kWarpsN; number < tile.end_row_tile;
       number += Config::kWarpsM) {
    Sums<Config> sums;
    clear<Config>(sums);
    for (int split = 0; split < splits; ++split) {
      const float4* const partial = partial_sums<Config>(p, tile, number, split);
#pragma unroll
      for (int i = 0; i < Config::kBlocksM; ++i) {
#pragma unroll
        for (int j = 0; j < Config::kBlocksN; ++j) {
          const float4 c = partial[(i * Config::kBlocksN + j) * 32];
          sums[i][j][0] += c.x;
          sums[i][j][1] += c.y;
          sums[i][j][2] += c.z;
          sums[i][j][3] += c.w;
        }
      }
    }
    store_sums<Config>(p, tile, output_of<Config>(p, RowTile<T>(p, number), shared), sums);
  }
}

// ---------------------------------------------------------------- launch

template <typename T, typename Config>
cudaError_t launch_config(const Problem& problem, const TileMmaLaunch& launch, void* workspace,
                          cudaStream_t stream) {
  auto* kernel = tile_mma_kernel<T, Config>;
  cudaError_t error = allow_shared_memory(kernel, launch.shared_limit);
  if (error != cudaSuccess) return error;
  Params<T> p;
  set_params(p, problem, launch, tile_mma_shared(launch, Config::kShape, problem.output_channels_last),
             {launch.couts(), launch.taps_w.set_size}, Config::kThreads, workspace);
  kernel<<<static_cast<unsigned>(launch.grid), Config::kThreads, launch.shared_bytes, stream>>>(p);
  if (launch.splits == 1) return cudaGetLastError();
  error = cudaGetLastError();
  if (error != cudaSuccess) return error;

  auto* add_splits = add_splits_kernel<T, Config>;
  error = allow_shared_memory(add_splits, launch.shared_limit);
  if (error != cudaSuccess) return error;
  p.splits = 1;
  p.shared.output_offset = 0;
  p.row_tiles_per_block = Config::kWarpsM;
  const int64_t tiles_m = (p.row_tiles + Config::kWarpsM - 1) / Config::kWarpsM;
  p.tiles_m = static_cast<int>(tiles_m);
  const int64_t blocks = launch.works() / launch.splits / launch.tiles_m * tiles_m;
  add_splits<<<static_cast<unsigned>(blocks), Config::kThreads,
               Config::kShape.warps() * p.shared.output_bytes, stream>>>(p, launch.splits);
  return cudaGetLastError();
}

// Calls the instantiation for launch.config.
template <typename T, int kParts = 1, int kIndex = 0>
cudaError_t launch_for(const Problem& problem, const TileMmaLaunch& launch, void* workspace,
                       cudaStream_t stream) {
  if constexpr (kIndex < kTileMmaConfigCount) {
    if constexpr (sizeof(T) == 2 || kTileMmaConfigs[kIndex].takes_float32()) {
      if (launch.config == kIndex)
        return launch_config<T, Config<kIndex, kParts>>(problem, launch, workspace, stream);
    }
    return launch_for<T, kParts, kIndex + 1>(problem, launch, workspace, stream);
  } else {
    return cudaErrorInvalidValue;
  }
}

}  // namespace tile_mma
}  // namespace convt
