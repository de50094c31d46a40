// tile_wgmma, float16: one product per term, sums in fp32, rounded once.
#include "convt/device/tile_wgmma.cuh"

namespace convt {

cudaError_t launch_tile_wgmma_fp16(const Problem& problem, const TileWgmmaLaunch& launch, void* workspace,
                                   cudaStream_t stream) {
  return tile_wgmma::launch_for<__half>(problem, launch, workspace, stream);
}

}  // namespace convt
