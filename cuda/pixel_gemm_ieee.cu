// pixel_gemm, float32: operands split into two parts that TF32 has, three products per term,
// sums in fp32 that take over those of the tensor cores every few products.
#include "convt/device/pixel_gemm.cuh"

namespace convt {

cudaError_t launch_pixel_gemm_ieee(const Problem& problem, const PixelGemmLaunch& launch,
                                   cudaStream_t stream) {
  return pixel_gemm::launch_for<float, 2>(problem, launch, stream);
}

}  // namespace convt
