// How the kernels are called. Each launches on `stream` of the current device and returns the launch's error;
// none allocates, synchronises or keeps state.
#pragma once

#include <cuda_runtime_api.h>

#include "convt/plan.h"
#include "convt/problem.h"
#include "convt/tile_wgmma.h"

namespace convt {

cudaError_t launch_generic(const Problem& problem, cudaStream_t stream);

// Computes the outputs that are NaN once more, if `word` is not zero; after the kernel that has written both.
cudaError_t launch_generic_repair(const Problem& problem, const unsigned* word, cudaStream_t stream);

// Of a launch that repairs.
inline unsigned* repair_word(const TileMmaLaunch& launch, void* workspace) {
  return reinterpret_cast<unsigned*>(static_cast<unsigned char*>(workspace) + launch.packed_bytes);
}

cudaError_t launch_depthwise(const Problem& problem, const DepthwiseLaunch& launch, cudaStream_t stream);

// Writes launch.workspace_bytes to `workspace`; before launch_tile_simt_* when launch.packs_weights.
cudaError_t launch_pack_weights(const Problem& problem, const TileSimtLaunch& launch, void* workspace,
                                cudaStream_t stream);

// The fp32 path, and the fp16 and bf16 paths. `workspace` holds the packed weight when launch.packs_weights.
cudaError_t launch_tile_simt_fp32(const Problem& problem, const TileSimtLaunch& launch, const void* workspace,
                                  cudaStream_t stream);
cudaError_t launch_tile_simt_fp16(const Problem& problem, const TileSimtLaunch& launch, const void* workspace,
                                  cudaStream_t stream);

// Few channels on tensor cores; the weight is read as it is.
cudaError_t launch_thin_fp16(const Problem& problem, const ThinLaunch& launch, cudaStream_t stream);
cudaError_t launch_thin_bf16(const Problem& problem, const ThinLaunch& launch, cudaStream_t stream);
cudaError_t launch_thin_tf32(const Problem& problem, const ThinLaunch& launch, cudaStream_t stream);
cudaError_t launch_thin_ieee(const Problem& problem, const ThinLaunch& launch, cudaStream_t stream);

// Few output channels of float32 on FMA units, for usual filters; the weight is read as it is.
cudaError_t launch_thin_simt(const Problem& problem, const ThinSimtLaunch& launch, cudaStream_t stream);

// Filters that do not overlap and few input channels, NCHW; the weight is read as it is.
cudaError_t launch_scatter_gemm_fp16(const Problem& problem, const ScatterLaunch& launch,
                                     cudaStream_t stream);
cudaError_t launch_scatter_gemm_bf16(const Problem& problem, const ScatterLaunch& launch,
                                     cudaStream_t stream);
cudaError_t launch_scatter_gemm_tf32(const Problem& problem, const ScatterLaunch& launch,
                                     cudaStream_t stream);
cudaError_t launch_scatter_gemm_ieee(const Problem& problem, const ScatterLaunch& launch,
                                     cudaStream_t stream);

// Few input channels in a group; the weight is read as it is.
cudaError_t launch_phase_gemm_fp16(const Problem& problem, const PhaseGemmLaunch& launch,
                                   cudaStream_t stream);
cudaError_t launch_phase_gemm_bf16(const Problem& problem, const PhaseGemmLaunch& launch,
                                   cudaStream_t stream);
cudaError_t launch_phase_gemm_tf32(const Problem& problem, const PhaseGemmLaunch& launch,
                                   cudaStream_t stream);
cudaError_t launch_phase_gemm_ieee(const Problem& problem, const PhaseGemmLaunch& launch,
                                   cudaStream_t stream);

// Few pixels and filters that do not overlap, 16 bits; the weight is read as it is.
cudaError_t launch_col2im_fp16(const Problem& problem, const Col2imLaunch& launch, cudaStream_t stream);
cudaError_t launch_col2im_bf16(const Problem& problem, const Col2imLaunch& launch, cudaStream_t stream);

// Input images of one pixel; the weight is read as it is.
cudaError_t launch_pixel_gemm_fp16(const Problem& problem, const PixelGemmLaunch& launch,
                                   cudaStream_t stream);
cudaError_t launch_pixel_gemm_bf16(const Problem& problem, const PixelGemmLaunch& launch,
                                   cudaStream_t stream);
cudaError_t launch_pixel_gemm_tf32(const Problem& problem, const PixelGemmLaunch& launch,
                                   cudaStream_t stream);
cudaError_t launch_pixel_gemm_ieee(const Problem& problem, const PixelGemmLaunch& launch,
                                   cudaStream_t stream);

// Lays out in `workspace` what launch.turns_input and turns_weight say; before launch_implicit_gemm_*
// and launch_halo_gemm_*.
cudaError_t launch_turn_operands(const Problem& problem, const ImplicitGemmLaunch& launch, void* workspace,
                                 cudaStream_t stream);

// Many channels on both sides, operands copied by tensor maps.
cudaError_t launch_implicit_gemm_fp16(const Problem& problem, const ImplicitGemmLaunch& launch,
                                      const void* workspace, cudaStream_t stream);
cudaError_t launch_implicit_gemm_bf16(const Problem& problem, const ImplicitGemmLaunch& launch,
                                      const void* workspace, cudaStream_t stream);
cudaError_t launch_implicit_gemm_tf32(const Problem& problem, const ImplicitGemmLaunch& launch,
                                      const void* workspace, cudaStream_t stream);
cudaError_t launch_implicit_gemm_ieee(const Problem& problem, const ImplicitGemmLaunch& launch,
                                      const void* workspace, cudaStream_t stream);

// The same of `halo_gemm`, float32 alone.
cudaError_t launch_halo_gemm_tf32(const Problem& problem, const ImplicitGemmLaunch& launch,
                                  const void* workspace, cudaStream_t stream);
cudaError_t launch_halo_gemm_ieee(const Problem& problem, const ImplicitGemmLaunch& launch,
                                  const void* workspace, cudaStream_t stream);

// Writes launch.packed_bytes to `workspace`, and clears the word of a launch that repairs; before
// launch_tile_mma_*.
cudaError_t launch_pack_fragments(const Problem& problem, const TileMmaLaunch& launch, void* workspace,
                                  cudaStream_t stream);

// The tensor-core paths. `workspace` has launch.workspace_bytes and begins with the packed weight.
cudaError_t launch_tile_mma_fp16(const Problem& problem, const TileMmaLaunch& launch, void* workspace,
                                 cudaStream_t stream);
cudaError_t launch_tile_mma_bf16(const Problem& problem, const TileMmaLaunch& launch, void* workspace,
                                 cudaStream_t stream);
cudaError_t launch_tile_mma_tf32(const Problem& problem, const TileMmaLaunch& launch, void* workspace,
                                 cudaStream_t stream);
cudaError_t launch_tile_mma_ieee(const Problem& problem, const TileMmaLaunch& launch, void* workspace,
                                 cudaStream_t stream);

// The same on warpgroup instructions.
cudaError_t launch_tile_wgmma_fp16(const Problem& problem, const TileWgmmaLaunch& launch, void* workspace,
                                   cudaStream_t stream);
cudaError_t launch_tile_wgmma_bf16(const Problem& problem, const TileWgmmaLaunch& launch, void* workspace,
                                   cudaStream_t stream);
cudaError_t launch_tile_wgmma_tf32(const Problem& problem, const TileWgmmaLaunch& launch, void* workspace,
                                   cudaStream_t stream);
cudaError_t launch_tile_wgmma_ieee(const Problem& problem, const TileWgmmaLaunch& launch, void* workspace,
                                   cudaStream_t stream);

}  // namespace convt
