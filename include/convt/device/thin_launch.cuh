// Launches of both kernels of thin.
#pragma once

#include <algorithm>

#include "convt/alignment.h"
#include "convt/device/launch.cuh"
#include "convt/device/thin.cuh"
#include "convt/device/thin_walk.cuh"

namespace convt {
namespace thin {

template <typename T>
Params<T> make_params(const Problem& problem, const ThinLaunch& launch) {
  Params<T> p;
  set_problem(p, problem);
  p.weight = static_cast<const T*>(problem.weight);
  p.weight_stride = problem.weight_stride;
  p.padding_w = static_cast<int>(problem.w.padding);
  p.taps_h = launch.taps_h;
  p.phases_w = launch.phases_w;
  p.dilation_h = launch.taps_h.dilation;
  p.set_phases = launch.taps_h.set_size;
  p.kernel_w = launch.phases_w.kernel;
  p.cout_tiles = static_cast<int>(launch.cout_tiles);
  p.strips = static_cast<int>(launch.strips);
  p.segments = static_cast<int>(launch.segments);
  p.image_tiles = static_cast<int>(launch.image_tiles);
  p.couts = launch.couts;
  p.images = launch.images;
  p.chunks = launch.chunks;
  p.stages = launch.stages;
  p.cols = launch.cols;
  p.groups_w = launch.groups_w;
  p.warps_n = launch.groups_w * launch.rows;
  p.rows = launch.rows;
  p.threads = 32 * launch.warps();
  p.all_row_blocks = launch.all_row_blocks();
  const int weight_blocks = launch.taps_h.begin[launch.taps_h.sets] * launch.all_row_blocks();
  p.weight_shares = std::clamp(launch.warps() / std::max(weight_blocks, 1), 1, launch.chunks * kChunkSteps);
  p.first_base_w = launch.first_base_w;
  p.end_base_w = launch.first_base_w + launch.bases_w;
  p.grid_h = launch.grid_h;
  p.origin_w = launch.origin_w;
  p.strip_step = launch.strip_step;
  p.strip_halo = launch.strip_halo;
  p.segment_rows = launch.segment_rows;
  p.stride_h = launch.taps_h.stride;
  p.gather_columns = launch.gather_columns;
  const int gather_groups = p.threads / launch.gather_columns;
  // Lines are points and phases along H; where they are fewer than the threads for them, output channels too.
  const int lines = launch.rows * launch.taps_h.stride;
  const int parts = problem.output_channels_last ? 1 : std::clamp(gather_groups / lines, 1, launch.couts);
  p.part_couts = (launch.couts + parts - 1) / parts;
  p.cout_parts = problem.output_channels_last ? 1 : (launch.couts + p.part_couts - 1) / p.part_couts;
  p.gather_lines = gather_groups / p.cout_parts;
  p.most_taps = most_taps(launch.phases_w);
  p.pitch = launch.pitch;
  const int set_floats = launch.set_rows() * launch.pitch;
  const int phase_floats = static_cast<int>(launch.phases_w.kernel) * launch.pitch;
  p.cout_floats = launch.taps_h.set_size * phase_floats;
  p.phase_floats = launch.taps_h.sets == 1 ? phase_floats : set_floats;
  p.point_floats = launch.taps_h.sets * set_floats;
  p.half_floats = static_cast<int>(thin_half_floats(launch));
  p.output_channels_last = problem.output_channels_last;
  p.walk.tap_bytes = 4 * (static_cast<int>(p.phases_w.tap_step) * p.pitch - p.phases_w.shift_step);
  p.walk.phase_bytes = 4 * p.phase_floats;
  p.walk.zero_bytes = 4 * (p.half_floats - 1);
  p.walk.line_bytes = p.output_stride.h * static_cast<int64_t>(sizeof(T));
  p.walk.cout_bytes = p.output_stride.c * static_cast<int64_t>(sizeof(T));
  p.shared = thin_shared(launch);
  return p;
}

template <typename T>
cudaError_t launch_kernel(void (*kernel)(Params<T>), const Params<T>& p, const ThinLaunch& launch,
                          cudaStream_t stream) {
  const cudaError_t error = allow_shared_memory(kernel, launch.shared_limit);
  if (error != cudaSuccess) return error;
  kernel<<<static_cast<unsigned>(launch.blocks()), p.threads, launch.shared_bytes, stream>>>(p);
  return cudaGetLastError();
}

// Calls the instantiation for the number of offsets.
template <typename T, int kParts, int kBlocks, bool kAlongW, int kOffsets = kThinFewestOffsets>
cudaError_t launch_walk(const Params<T>& p, const ThinLaunch& launch, cudaStream_t stream) {
  if constexpr (kOffsets <= kThinMostOffsets) {
    if (p.taps_h.offsets(0) != kOffsets)
      return launch_walk<T, kParts, kBlocks, kAlongW, kOffsets + 1>(p, launch, stream);
    if constexpr (thin_may_walk(kParts, kBlocks, kOffsets)) {
      return launch_kernel(thin_walk_kernel<T, kParts, kBlocks, kOffsets, kAlongW>, p, launch, stream);
    }
  }
  return cudaErrorInvalidValue;
}

// Calls the instantiation for launch.row_blocks.
template <typename T, int kParts = 1, int kBlocks = 1>
cudaError_t launch_for(const Problem& problem, const ThinLaunch& launch, cudaStream_t stream) {
  if constexpr (kBlocks <= kThinMostRowBlocks) {
    if (launch.row_blocks != kBlocks) return launch_for<T, kParts, kBlocks + 1>(problem, launch, stream);
    Params<T> p = make_params<T>(problem, launch);
    if (launch.walks) {
      return launch.along_w ? launch_walk<T, kParts, kBlocks, true>(p, launch, stream)
                            : launch_walk<T, kParts, kBlocks, false>(p, launch, stream);
    }
    // The plan knows sizes and strides; the address may allow less.
    p.along_c = launch.along_c && is_aligned(p.input, 16);
    if (launch.along_w && is_aligned(p.input, 4 * sizeof(T))) {
      return launch_kernel(thin_kernel<T, kParts, kBlocks, true>, p, launch, stream);
    }
    return launch_kernel(thin_kernel<T, kParts, kBlocks, false>, p, launch, stream);
  } else {
    return cudaErrorInvalidValue;
  }
}

}  // namespace thin
}  // namespace convt
