// pack_weights: lays the weight out as tile_simt reads it.
//
// The weight is [cin][cout per group][KH][KW]: the output channels that a block wants for one tap and one
// input channel lie KH * KW apart. Packed, they are neighbours, in fp32 and padded with zeros, so that a
// block stages them with 16-byte copies and no arithmetic. The pass reads and writes the weight once.
//
// Mapping: a block takes one tap of one group (blockIdx.y strides over them), its threads walk [cin][cout] of
// the packed layout: writes are coalesced, and the KH * KW blocks that read the same sectors of the weight
// find them in L2.

#include <algorithm>

#include "convt/device/scalar.cuh"
#include "convt/device/tap_order.cuh"
#include "convt/kernels.h"

namespace convt {
namespace {

constexpr int kThreads = 256;

struct PackParams {
  AxisPhases<int> phases_h, phases_w;
  WeightStrides stride;
  PackedWeights packed;
  Divisor<int> filter_cols, taps, packed_cout;
  int groups, cin_per_group, cout_per_group;
};

template <typename T>
__global__ void __launch_bounds__(kThreads)
    pack_kernel(const PackParams p, const T* __restrict__ weight, float* packed) {
  for (int index = blockIdx.y; index < p.groups * p.packed.taps; index += gridDim.y) {
    const auto by_group = p.taps.divide(index);
    const auto tap = p.filter_cols.divide(by_group.remainder);
    const int position = place_of_tap(p.phases_h, p.phases_w, tap.quotient, tap.remainder).position;
    const T* source = weight + static_cast<int64_t>(by_group.quotient) * p.cin_per_group * p.stride.cin +
                      tap.quotient * p.stride.kh + tap.remainder * p.stride.kw;
    float* destination = packed + (static_cast<int64_t>(by_group.quotient) * p.packed.taps + position) *
                                      p.packed.cin * p.packed.cout;
    for (int element = blockIdx.x * kThreads + threadIdx.x; element < p.packed.cin * p.packed.cout;
         element += gridDim.x * kThreads) {
      const auto by_cin = p.packed_cout.divide(element);
      const bool present = by_cin.quotient < p.cin_per_group && by_cin.remainder < p.cout_per_group;
      destination[element] =
          present ? widen(source[by_cin.quotient * p.stride.cin + by_cin.remainder * p.stride.cout]) : 0.0f;
    }
  }
}

template <typename T>
cudaError_t launch_pack(const Problem& problem, const TileSimtLaunch& launch, void* workspace,
                        cudaStream_t stream) {
  PackParams p;
  p.phases_h = launch.phases_h;
  p.phases_w = launch.phases_w;
  p.stride = problem.weight_stride;
  p.packed = launch.packed;
  p.filter_cols = launch.phases_w.kernel;
  p.taps = launch.packed.taps;
  p.packed_cout = launch.packed.cout;
  p.groups = static_cast<int>(problem.groups);
  p.cin_per_group = static_cast<int>(problem.cin_per_group);
  p.cout_per_group = static_cast<int>(problem.cout_per_group);
  const int64_t elements = int64_t{launch.packed.cin} * launch.packed.cout;
  const dim3 grid(static_cast<unsigned>(std::min<int64_t>(1024, (elements + kThreads - 1) / kThreads)),
                  static_cast<unsigned>(std::min<int64_t>(32768, problem.groups * launch.packed.taps)));
  pack_kernel<T><<<grid, kThreads, 0, stream>>>(p, static_cast<const T*>(problem.weight),
                                                static_cast<float*>(workspace));
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_pack_weights(const Problem& problem, const TileSimtLaunch& launch, void* workspace,
                                cudaStream_t stream) {
  switch (problem.dtype) {
    case DType::kFloat32:
      return launch_pack<float>(problem, launch, workspace, stream);
    case DType::kFloat16:
      return launch_pack<__half>(problem, launch, workspace, stream);
    case DType::kBFloat16:
      return launch_pack<__nv_bfloat16>(problem, launch, workspace, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace convt
