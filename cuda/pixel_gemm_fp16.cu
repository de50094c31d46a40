// pixel_gemm, float16: one product per term, sums in fp32, rounded once.
#include "convt/device/pixel_gemm.cuh"

namespace convt {

cudaError_t launch_pixel_gemm_fp16(const Problem& problem, const PixelGemmLaunch& launch,
                                   cudaStream_t stream) {
  return pixel_gemm::launch_for<__half>(problem, launch, stream);
}

}  // namespace convt
