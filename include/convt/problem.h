// One transposed convolution: sizes, strides, padding, element type and pointers.
//
// The one value that travels from the operator (cuda/library.cpp) through the plan (cuda/plan.cpp) to the
// kernels. It has been checked when it is made: see check_arguments in cuda/library.cpp.
#pragma once

#include <cstdint>

#include "convt/activation.h"

namespace convt {

enum class DType { kFloat32, kFloat16, kBFloat16, kFloat64 };

// How accurate products of float32 must be: as in float32 itself, or with operands rounded to TF32.
enum class Float32Precision { kIeee, kTf32 };

// One spatial axis.
struct Axis {
  int64_t input = 1;           // input pixels
  int64_t output = 1;          // output pixels
  int64_t kernel = 1;          // filter taps
  int64_t stride = 1;          // output pixels between two neighbouring input pixels
  int64_t padding = 0;         // output pixels cropped at the low end
  int64_t output_padding = 0;  // output pixels added at the high end
  int64_t dilation = 1;        // output pixels between two neighbouring taps

  // Pixels by the definition of the operator; `output` holds the same number.
  int64_t full_output() const {
    return (input - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1;
  }
};

// Distances in elements between neighbours along each dimension of an activation tensor.
struct ActivationStrides {
  int64_t n = 0, c = 0, h = 0, w = 0;
};

// Distances in elements between neighbours along each dimension of the weight.
struct WeightStrides {
  int64_t cin = 0, cout = 0, kh = 0, kw = 0;
};

struct Problem {
  DType dtype = DType::kFloat32;
  Float32Precision float32_precision = Float32Precision::kIeee;
  int64_t batch = 1;
  int64_t groups = 1;
  int64_t cin_per_group = 1;
  int64_t cout_per_group = 1;
  Axis h, w;

  const void* input = nullptr;   // [batch, groups * cin_per_group, h.input, w.input]
  const void* weight = nullptr;  // [groups * cin_per_group, cout_per_group, h.kernel, w.kernel]
  const void* bias = nullptr;    // [groups * cout_per_group], or null
  void* output = nullptr;        // [batch, groups * cout_per_group, h.output, w.output], dense

  ActivationStrides input_stride;
  WeightStrides weight_stride;
  int64_t bias_stride = 1;
  bool output_channels_last = false;  // the dense layout of the output: NHWC if true, else NCHW

  Activation activation;  // of the output

  int64_t cin() const { return groups * cin_per_group; }
  int64_t cout() const { return groups * cout_per_group; }
  int64_t output_elements() const { return batch * cout() * h.output * w.output; }
};

// Strides of the output, which is dense.
inline ActivationStrides dense_output_strides(const Problem& problem) {
  const int64_t c = problem.cout(), h = problem.h.output, w = problem.w.output;
  return problem.output_channels_last ? ActivationStrides{h * w * c, 1, w * c, c}
                                      : ActivationStrides{c * h * w, h * w, w, 1};
}

// Coordinates of 32 bits; this leaves room for sums of two of them.
inline constexpr int64_t kMaxCoordinate = int64_t{1} << 30;

// Products that FMA units sum in float32 before the sum is added to a total: keeps the rounding error of long
// sums, of one sign too, below 1e-6 of the sum of magnitudes.
inline constexpr int kMaxSummedProducts = 64;

// Whether all coordinates along an axis fit in 32 bits.
inline bool fits_32_bits(const Axis& axis) {
  return axis.input < kMaxCoordinate && axis.output + axis.padding < kMaxCoordinate &&
         axis.stride < kMaxCoordinate && axis.kernel * axis.dilation + axis.stride < kMaxCoordinate;
}

inline int64_t element_size(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
      return 8;
    case DType::kFloat32:
      return 4;
    default:
      return 2;
  }
}

}  // namespace convt
