// pixel_gemm, float32: operands rounded to TF32, one product per term, sums in fp32.
#include "convt/device/pixel_gemm.cuh"

namespace convt {

cudaError_t launch_pixel_gemm_tf32(const Problem& problem, const PixelGemmLaunch& launch,
                                   cudaStream_t stream) {
  return pixel_gemm::launch_for<float>(problem, launch, stream);
}

}  // namespace convt
