// pixel_gemm, bfloat16: one product per term, sums in fp32, rounded once.
#include "convt/device/pixel_gemm.cuh"

namespace convt {

cudaError_t launch_pixel_gemm_bf16(const Problem& problem, const PixelGemmLaunch& launch,
                                   cudaStream_t stream) {
  return pixel_gemm::launch_for<__nv_bfloat16>(problem, launch, stream);
}

}  // namespace convt
