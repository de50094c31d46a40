// thin, float32: operands rounded to TF32, one product per term, sums in fp32.
#include "convt/device/thin_launch.cuh"

namespace convt {

cudaError_t launch_thin_tf32(const Problem& problem, const ThinLaunch& launch, cudaStream_t stream) {
  return thin::launch_for<float>(problem, launch, stream);
}

}  // namespace convt
