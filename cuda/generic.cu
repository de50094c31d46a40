// generic: one output per thread, for every type, layout, stride and size. The oracle and the last resort.
//
// Mapping: threads walk the output in memory order (grid-stride), so that stores are coalesced; for NHWC
// neighbouring threads are neighbouring output channels, for NCHW neighbouring columns. A thread finds the
// phase of its output and visits only the taps of that phase that read inside the input (see convt/phases.h),
// so it multiplies nothing by an inserted or padded zero, and non-finite values land exactly where the
// definition puts them:
//
//   y[n, g, co, oh, ow] = bias[g, co] + sum over taps (kh, kw) of the phase, over ci of  x[n, g, ci, ih, iw]
//   * w[g, ci, co, kh, kw]
//
// Sums are taken in blocks of kBlock channels, each added to the total as one term: the rounding error then
// grows with the square root of the number of products in a block instead of all of them.
//
// Index is the type of coordinates and linear indices; offsets into tensors always have 64 bits.
//
// It also repairs what another kernel has written: where that multiplies inputs that an output must not see
// by zeros, those that are not finite show as NaN, and outputs that are NaN are computed once more.

#include <algorithm>
#include <limits>

#include "convt/activate.h"
#include "convt/device/scalar.cuh"
#include "convt/kernels.h"
#include "convt/phases.h"

namespace convt {
namespace {

constexpr int kThreads = 256;
constexpr int kBlock = 64;

template <typename Index>
struct GenericParams {
  AxisPhases<Index> phases_h, phases_w;
  Index padding_h, padding_w;
  Index input_h, input_w;
  Index cin_per_group;
  Divisor<Index> cout, cout_per_group, columns, rows;  // of the output
  Index outputs;                                       // elements of it
  const unsigned* repairs;  // null, or only outputs that are NaN are computed, if this is not zero
  ActivationStrides input_stride;
  WeightStrides weight_stride;
  int64_t bias_stride;
  bool channels_last;
};

// The position of one output.
template <typename Index>
struct OutputPoint {
  Index n, c, h, w;
};

template <typename Index>
__device__ OutputPoint<Index> locate(const GenericParams<Index>& p, Index linear) {
  OutputPoint<Index> point;
  const auto next = [&linear](const Divisor<Index>& size) {
    const auto result = size.divide(linear);
    linear = result.quotient;
    return result.remainder;
  };
  if (p.channels_last) point.c = next(p.cout);
  point.w = next(p.columns);
  point.h = next(p.rows);
  if (!p.channels_last) point.c = next(p.cout);
  point.n = linear;
  return point;
}

// The taps of one axis that an output has: the phase it belongs to and the base it counts its shifts from.
template <typename Index>
struct AxisTaps {
  Phase<Index> phase;
  Index base;
};

template <typename Index>
__device__ AxisTaps<Index> taps_of(const AxisPhases<Index>& axis, Index padded_output) {
  const auto at = axis.stride.divide(padded_output);
  return {phase_of(axis, at.remainder), at.quotient};
}

template <typename T, typename Index>
__global__ void __launch_bounds__(kThreads, 4)
    generic_kernel(const GenericParams<Index> p, const ActivationParams<accumulator_t<T>> activation,
                   const T* __restrict__ input, const T* __restrict__ weight, const T* __restrict__ bias,
                   T* __restrict__ output) {
  using Acc = accumulator_t<T>;
  if (p.repairs != nullptr && *p.repairs == 0) return;
  const Index step = static_cast<Index>(gridDim.x) * kThreads;
  for (Index linear = static_cast<Index>(blockIdx.x) * kThreads + threadIdx.x; linear < p.outputs;
       linear += step) {
    if (p.repairs != nullptr && !isnan(widen(output[linear]))) continue;
    const OutputPoint<Index> at = locate(p, linear);
    const auto channel = p.cout_per_group.divide(at.c);
    const Index cin_begin = channel.quotient * p.cin_per_group;
    const T* x_image = input + at.n * p.input_stride.n + cin_begin * p.input_stride.c;
    const T* w_group = weight + cin_begin * p.weight_stride.cin + channel.remainder * p.weight_stride.cout;
    const AxisTaps<Index> h = taps_of(p.phases_h, at.h + p.padding_h);
    const AxisTaps<Index> w = taps_of(p.phases_w, at.w + p.padding_w);

    Acc total = 0;
    for (Index i = 0; i < h.phase.taps; ++i) {
      const Index ih = h.base - (h.phase.first_shift + i * p.phases_h.shift_step);
      if (ih < 0 || ih >= p.input_h) continue;
      const Index kh = h.phase.first_tap + i * p.phases_h.tap_step;
      for (Index j = 0; j < w.phase.taps; ++j) {
        const Index iw = w.base - (w.phase.first_shift + j * p.phases_w.shift_step);
        if (iw < 0 || iw >= p.input_w) continue;
        const Index kw = w.phase.first_tap + j * p.phases_w.tap_step;
        const T* x = x_image + ih * p.input_stride.h + iw * p.input_stride.w;
        const T* wt = w_group + kh * p.weight_stride.kh + kw * p.weight_stride.kw;
        for (Index block = 0; block < p.cin_per_group; block += kBlock) {
          const Index remaining = p.cin_per_group - block;
          const int channels = remaining < kBlock ? static_cast<int>(remaining) : kBlock;
          Acc partial = 0;
          for (int c = 0; c < channels; ++c) {
            partial += widen(*x) * widen(*wt);
            x += p.input_stride.c;
            wt += p.weight_stride.cin;
          }
          total += partial;
        }
      }
    }
    if (bias != nullptr) total += widen(bias[at.c * p.bias_stride]);
    if (!activation.is_identity()) total = activate(activation, widen(narrow<T>(total)));
    output[linear] = narrow<T>(total);
  }
}

template <typename T, typename Index>
cudaError_t launch(const Problem& problem, const unsigned* repairs, cudaStream_t stream) {
  GenericParams<Index> p;
  p.phases_h =
      make_axis_phases<Index>(static_cast<Index>(problem.h.stride), static_cast<Index>(problem.h.dilation),
                              static_cast<Index>(problem.h.kernel));
  p.phases_w =
      make_axis_phases<Index>(static_cast<Index>(problem.w.stride), static_cast<Index>(problem.w.dilation),
                              static_cast<Index>(problem.w.kernel));
  p.padding_h = static_cast<Index>(problem.h.padding);
  p.padding_w = static_cast<Index>(problem.w.padding);
  p.input_h = static_cast<Index>(problem.h.input);
  p.input_w = static_cast<Index>(problem.w.input);
  p.rows = static_cast<Index>(problem.h.output);
  p.columns = static_cast<Index>(problem.w.output);
  p.cout = static_cast<Index>(problem.cout());
  p.cout_per_group = static_cast<Index>(problem.cout_per_group);
  p.cin_per_group = static_cast<Index>(problem.cin_per_group);
  p.outputs = static_cast<Index>(problem.output_elements());
  p.input_stride = problem.input_stride;
  p.weight_stride = problem.weight_stride;
  p.bias_stride = problem.bias_stride;
  p.channels_last = problem.output_channels_last;
  p.repairs = repairs;

  // The grid strides over the rest. Repairs are rare: their blocks should end at once.
  const int64_t most_blocks = repairs == nullptr ? 1 << 20 : 1 << 10;
  const int64_t blocks = std::min(most_blocks, (problem.output_elements() + kThreads - 1) / kThreads);
  generic_kernel<T, Index><<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(
      p, activation_params<accumulator_t<T>>(problem.activation), static_cast<const T*>(problem.input),
      static_cast<const T*>(problem.weight), static_cast<const T*>(problem.bias),
      static_cast<T*>(problem.output));
  return cudaGetLastError();
}

// Whether every coordinate, and an index one grid stride past the last output, fits in 32 bits.
bool fits_32_bits(const Problem& p) {
  constexpr int64_t kStrideLimit = int64_t{1} << 15;  // its square is computed, see convt/phases.h
  const auto axis_fits = [](const Axis& a) { return convt::fits_32_bits(a) && a.stride < kStrideLimit; };
  return p.output_elements() < kMaxCoordinate && axis_fits(p.h) && axis_fits(p.w) && p.cin() < kMaxCoordinate;
}

template <typename T>
cudaError_t launch_any_size(const Problem& problem, const unsigned* repairs, cudaStream_t stream) {
  return fits_32_bits(problem) ? launch<T, int32_t>(problem, repairs, stream)
                               : launch<T, int64_t>(problem, repairs, stream);
}

cudaError_t launch_any_type(const Problem& problem, const unsigned* repairs, cudaStream_t stream) {
  switch (problem.dtype) {
    case DType::kFloat64:
      return launch_any_size<double>(problem, repairs, stream);
    case DType::kFloat32:
      return launch_any_size<float>(problem, repairs, stream);
    case DType::kFloat16:
      return launch_any_size<__half>(problem, repairs, stream);
    case DType::kBFloat16:
      return launch_any_size<__nv_bfloat16>(problem, repairs, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t launch_generic(const Problem& problem, cudaStream_t stream) {
  return launch_any_type(problem, nullptr, stream);
}

cudaError_t launch_generic_repair(const Problem& problem, const unsigned* word, cudaStream_t stream) {
  return launch_any_type(problem, word, stream);
}

}  // namespace convt
