// phase_gemm, float32: operands rounded to TF32, one product per term, sums in fp32.
#include "convt/device/phase_gemm.cuh"

namespace convt {

cudaError_t launch_phase_gemm_tf32(const Problem& problem, const PhaseGemmLaunch& launch,
                                   cudaStream_t stream) {
  return phase_gemm::launch_for<float, 1>(problem, launch, stream);
}

}  // namespace convt
