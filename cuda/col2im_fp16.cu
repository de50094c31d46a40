// col2im, float16: one product per term, sums in fp32, rounded once.
#include "convt/device/col2im.cuh"

namespace convt {

cudaError_t launch_col2im_fp16(const Problem& problem, const Col2imLaunch& launch, cudaStream_t stream) {
  return col2im::launch_for<__half>(problem, launch, stream);
}

}  // namespace convt
