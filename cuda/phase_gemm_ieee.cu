// phase_gemm, float32: operands split into two parts that TF32 has, three products per term,
// sums in fp32 that take over those of the tensor cores every few products.
#include "convt/device/phase_gemm.cuh"

namespace convt {

cudaError_t launch_phase_gemm_ieee(const Problem& problem, const PhaseGemmLaunch& launch,
                                   cudaStream_t stream) {
  return phase_gemm::launch_for<float, 2>(problem, launch, stream);
}

}  // namespace convt
