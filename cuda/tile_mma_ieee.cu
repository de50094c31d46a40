// tile_mma, float32: operands split into two parts that TF32 has, three products per term,
// sums in fp32 that take over those of the tensor cores every few products.
#include "convt/device/tile_mma.cuh"

namespace convt {

cudaError_t launch_tile_mma_ieee(const Problem& problem, const TileMmaLaunch& launch, void* workspace,
                                 cudaStream_t stream) {
  return tile_mma::launch_for<float, 2>(problem, launch, workspace, stream);
}

}  // namespace convt
