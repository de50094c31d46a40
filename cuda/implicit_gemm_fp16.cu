// implicit_gemm, float16: one product per term, sums in fp32, rounded once.
#include "convt/device/implicit_gemm.cuh"

namespace convt {

cudaError_t launch_implicit_gemm_fp16(const Problem& problem, const ImplicitGemmLaunch& launch,
                                      const void* workspace, cudaStream_t stream) {
  return implicit_gemm::launch_for<__half>(problem, launch, workspace, stream);
}

}  // namespace convt
