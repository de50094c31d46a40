// scatter_gemm, bfloat16: one product per term, sums in fp32, rounded once.
#include "convt/device/scatter_gemm.cuh"

namespace convt {

cudaError_t launch_scatter_gemm_bf16(const Problem& problem, const ScatterLaunch& launch,
                                     cudaStream_t stream) {
  return scatter_gemm::launch_for<__nv_bfloat16>(problem, launch, stream);
}

}  // namespace convt
