// tile_simt, fp16 and bf16: operands are widened to fp32 on their way into shared memory, and the fp32 sum is
// rounded once.
#include "convt/device/tile_simt.cuh"

namespace convt {

cudaError_t launch_tile_simt_fp16(const Problem& problem, const TileSimtLaunch& launch, const void* workspace,
                                  cudaStream_t stream) {
  if (problem.dtype == DType::kFloat16)
    return tile_simt::launch_for<__half>(problem, launch, workspace, stream);
  return tile_simt::launch_for<__nv_bfloat16>(problem, launch, workspace, stream);
}

}  // namespace convt
