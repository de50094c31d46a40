// halo_gemm, float32 rounded to TF32: one product per term, sums in fp32.
#include "convt/device/halo_gemm.cuh"

namespace convt {

cudaError_t launch_halo_gemm_tf32(const Problem& problem, const ImplicitGemmLaunch& launch,
                                  const void* workspace, cudaStream_t stream) {
  return implicit_gemm::launch_halo_gemm_for<float>(problem, launch, workspace, stream);
}

}  // namespace convt
