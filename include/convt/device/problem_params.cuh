// What the parameters of the tiled kernels have in common.
#pragma once

#include <cstdint>

#include "convt/activate.h"
#include "convt/problem.h"

namespace convt {

// What a kernel's parameters take over from the problem, but for the weight, which each reads in its own way.
template <typename T>
struct ProblemParams {
  const T* input;
  const T* bias;
  T* output;
  ActivationStrides input_stride, output_stride;
  int64_t bias_stride;
  ActivationParams<float> activation;
  int batch, cin_per_group, cout_per_group;
  int input_h, input_w, output_h, output_w;
};

// Sets it; coordinates are known to fit in 32 bits.
template <typename T, template <typename> typename Params>
void set_problem(Params<T>& p, const Problem& problem) {
  p.input = static_cast<const T*>(problem.input);
  p.bias = static_cast<const T*>(problem.bias);
  p.output = static_cast<T*>(problem.output);
  p.input_stride = problem.input_stride;
  p.output_stride = dense_output_strides(problem);
  p.bias_stride = problem.bias_stride;
  p.activation = activation_params<float>(problem.activation);
  p.batch = static_cast<int>(problem.batch);
  p.cin_per_group = static_cast<int>(problem.cin_per_group);
  p.cout_per_group = static_cast<int>(problem.cout_per_group);
  p.input_h = static_cast<int>(problem.h.input);
  p.input_w = static_cast<int>(problem.w.input);
  p.output_h = static_cast<int>(problem.h.output);
  p.output_w = static_cast<int>(problem.w.output);
}

}  // namespace convt
