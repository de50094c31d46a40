// tile_mma, float32: operands rounded to TF32, one product per term, sums in fp32.
#include "convt/device/tile_mma.cuh"

namespace convt {

cudaError_t launch_tile_mma_tf32(const Problem& problem, const TileMmaLaunch& launch, void* workspace,
                                 cudaStream_t stream) {
  return tile_mma::launch_for<float>(problem, launch, workspace, stream);
}

}  // namespace convt
