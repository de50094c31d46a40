// halo_gemm, float32: operands split into two parts that TF32 has, three products per term, sums in fp32 that
// take over those of the tensor cores every few products.
#include "convt/device/halo_gemm.cuh"

namespace convt {

cudaError_t launch_halo_gemm_ieee(const Problem& problem, const ImplicitGemmLaunch& launch,
                                  const void* workspace, cudaStream_t stream) {
  return implicit_gemm::launch_halo_gemm_for<float, 2>(problem, launch, workspace, stream);
}

}  // namespace convt
