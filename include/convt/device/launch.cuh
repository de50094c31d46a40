// What the launches of the tiled kernels have in common, on the host.
#pragma once

#include <cuda_runtime_api.h>

#include "convt/problem.h"

namespace convt {

// Sets what a kernel's parameters take over from the problem; its coordinates are known to fit in 32 bits.
template <typename T, template <typename> typename Params>
void set_problem(Params<T>& p, const Problem& problem) {
  p.input = static_cast<const T*>(problem.input);
  p.bias = static_cast<const T*>(problem.bias);
  p.output = static_cast<T*>(problem.output);
  p.input_stride = problem.input_stride;
  p.output_stride = dense_output_strides(problem);
  p.bias_stride = problem.bias_stride;
  p.batch = static_cast<int>(problem.batch);
  p.cin_per_group = static_cast<int>(problem.cin_per_group);
  p.cout_per_group = static_cast<int>(problem.cout_per_group);
  p.input_h = static_cast<int>(problem.h.input);
  p.input_w = static_cast<int>(problem.w.input);
  p.output_h = static_cast<int>(problem.h.output);
  p.output_w = static_cast<int>(problem.w.output);
}

template <typename Kernel>
cudaError_t allow_shared_memory(Kernel* kernel, size_t limit) {
  // Always the device's limit, not what this launch needs: threads that launch at the same time then set the
  // same value.
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(limit));
}

}  // namespace convt
