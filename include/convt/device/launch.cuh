// What the launches of the tiled kernels have in common, on the host.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <type_traits>

#include "convt/device/problem_params.cuh"

namespace convt {

template <typename Kernel>
cudaError_t allow_shared_memory(Kernel* kernel, size_t limit) {
  // Always the device's limit, not what this launch needs: threads that launch at the same time then set the
  // same value.
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(limit));
}

// The instantiation that `choose` returns for `number` as a constant; null where that is kCount or more.
template <int kCount, int kNumber = 0, typename Choose>
auto choose_kernel(int number, const Choose& choose) {
  using Kernel = decltype(choose(std::integral_constant<int, 0>()));
  if constexpr (kNumber < kCount) {
    if (number == kNumber) return choose(std::integral_constant<int, kNumber>());
    return choose_kernel<kCount, kNumber + 1>(number, choose);
  } else {
    return Kernel(nullptr);
  }
}

// A kernel that was launched by launch_early may begin once every block of the kernel before it in the stream
// has called release_next_kernel or ended. What that kernel writes may be read after
// wait_for_previous_kernel; kernels before it have ended. Before compute capability 9.0 both do nothing.
__device__ inline void release_next_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ inline void wait_for_previous_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// With `early` false, it begins after that kernel as any other does.
template <typename P>
cudaError_t launch_early(void (*kernel)(P), int64_t grid, int threads, size_t shared_bytes,
                         cudaStream_t stream, const P& params, int cluster = 1, bool early = true) {
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = early ? 1 : 0;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(grid));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = cluster > 1 ? 2 : 1;
  return cudaLaunchKernelEx(&config, kernel, params);
}

}  // namespace convt
