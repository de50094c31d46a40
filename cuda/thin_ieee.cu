// thin, float32: operands split into two parts that TF32 has, three products per term,
// sums in fp32 that take over those of the tensor cores every few products.
#include "convt/device/thin_launch.cuh"

namespace convt {

cudaError_t launch_thin_ieee(const Problem& problem, const ThinLaunch& launch, cudaStream_t stream) {
  return thin::launch_for<float, 2>(problem, launch, stream);
}

}  // namespace convt
