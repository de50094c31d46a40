// tile_simt, fp32: operands are copied into shared memory asynchronously, products and sums are IEEE fp32.
#include "convt/device/tile_simt.cuh"

namespace convt {

cudaError_t launch_tile_simt_fp32(const Problem& problem, const TileSimtLaunch& launch, const void* workspace,
                                  cudaStream_t stream) {
  return tile_simt::launch_for<float>(problem, launch, workspace, stream);
}

}  // namespace convt
