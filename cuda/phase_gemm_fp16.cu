// phase_gemm, float16: one product per term, sums in fp32, rounded once.
#include "convt/device/phase_gemm.cuh"

namespace convt {

cudaError_t launch_phase_gemm_fp16(const Problem& problem, const PhaseGemmLaunch& launch,
                                   cudaStream_t stream) {
  return phase_gemm::launch_for<__half>(problem, launch, stream);
}

}  // namespace convt
