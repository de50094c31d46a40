// tile_wgmma, float32: operands split into two parts that TF32 has, three products per term,
// sums in fp32 that take over those of the tensor cores every few products.
#include "convt/device/tile_wgmma.cuh"

namespace convt {

cudaError_t launch_tile_wgmma_ieee(const Problem& problem, const TileWgmmaLaunch& launch, void* workspace,
                                   cudaStream_t stream) {
  return tile_wgmma::launch_for<float, 2>(problem, launch, workspace, stream);
}

}  // namespace convt
