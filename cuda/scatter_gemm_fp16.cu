// scatter_gemm, float16: one product per term, sums in fp32, rounded once.
#include "convt/device/scatter_gemm.cuh"

namespace convt {

cudaError_t launch_scatter_gemm_fp16(const Problem& problem, const ScatterLaunch& launch,
                                     cudaStream_t stream) {
  return scatter_gemm::launch_for<__half>(problem, launch, stream);
}

}  // namespace convt
