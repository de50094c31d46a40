// tile_mma, bfloat16: one product per term, sums in fp32, rounded once.
#include "convt/device/tile_mma.cuh"

namespace convt {

cudaError_t launch_tile_mma_bf16(const Problem& problem, const TileMmaLaunch& launch, void* workspace,
                                 cudaStream_t stream) {
  return tile_mma::launch_for<__nv_bfloat16>(problem, launch, workspace, stream);
}

}  // namespace convt
