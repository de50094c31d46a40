// tile_mma, float16: one product per term, sums in fp32, rounded once.
#include "convt/device/tile_mma.cuh"

namespace convt {

cudaError_t launch_tile_mma_fp16(const Problem& problem, const TileMmaLaunch& launch, void* workspace,
                                 cudaStream_t stream) {
  return tile_mma::launch_for<__half>(problem, launch, workspace, stream);
}

}  // namespace convt
