// tile_wgmma, bfloat16: one product per term, sums in fp32, rounded once.
#include "convt/device/tile_wgmma.cuh"

namespace convt {

cudaError_t launch_tile_wgmma_bf16(const Problem& problem, const TileWgmmaLaunch& launch, void* workspace,
                                   cudaStream_t stream) {
  return tile_wgmma::launch_for<__nv_bfloat16>(problem, launch, workspace, stream);
}

}  // namespace convt
