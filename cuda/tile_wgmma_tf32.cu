// tile_wgmma, float32: operands rounded to TF32, one product per term, sums in fp32.
#include "convt/device/tile_wgmma.cuh"

namespace convt {

cudaError_t launch_tile_wgmma_tf32(const Problem& problem, const TileWgmmaLaunch& launch, void* workspace,
                                   cudaStream_t stream) {
  return tile_wgmma::launch_for<float>(problem, launch, workspace, stream);
}

}  // namespace convt
