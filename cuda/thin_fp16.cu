// thin, float16: one product per term, sums in fp32, rounded once.
#include "convt/device/thin_launch.cuh"

namespace convt {

cudaError_t launch_thin_fp16(const Problem& problem, const ThinLaunch& launch, cudaStream_t stream) {
  return thin::launch_for<__half>(problem, launch, stream);
}

}  // namespace convt
