// col2im, bfloat16: one product per term, sums in fp32, rounded once.
#include "convt/device/col2im.cuh"

namespace convt {

cudaError_t launch_col2im_bf16(const Problem& problem, const Col2imLaunch& launch, cudaStream_t stream) {
  return col2im::launch_for<__nv_bfloat16>(problem, launch, stream);
}

}  // namespace convt
