// What the mappings of `depthwise` have in common on the device: parameters, loads and the bias.
#pragma once

#include <cstdint>
#include <cstring>

#include "convt/activate.h"
#include "convt/depthwise.h"
#include "convt/device/scalar.cuh"
#include "convt/problem.h"

namespace convt {

template <typename T>
struct DepthwiseParams {
  const T* input;
  const T* weight;
  const T* bias;
  T* output;
  ActivationStrides input_stride, output_stride;
  WeightStrides weight_stride;
  int64_t bias_stride;
  ActivationParams<float> activation;
  AxisPhases<int> phases_h, phases_w;
  Divisor<int> step_h, cout_per_group, cin_per_group;
  int row_step;  // elements between inputs step_h rows apart
  int padding_h, padding_w, input_h, input_w, output_h, output_w, cout;
  int row_sets, sets_per_thread, channels_per_thread;

  // columns and rolling: how threads are numbered
  Divisor<int> column_groups, runs, channel_runs;
  int threads;
  bool channels_last;
  bool dense_filters;  // those of neighbouring input channels follow each other, as vectors

  // channels
  Divisor<int> lanes, channel_tiles, blocks_an_image, taps, kernel_w, columns;
  int tile_channels, items, items_at_once, passes, pitch;
  bool phase_first;

  int batch;
};

template <typename T>
using DepthwiseKernel = void (*)(DepthwiseParams<T>);

// The kernel of DepthwiseMapping::kRolling for launch.filter.
template <typename T>
DepthwiseKernel<T> choose_rolling(const DepthwiseLaunch& launch);

// ---------------------------------------------------------------- vectors

// V values of T, as they lie in memory.
template <typename T, int V>
using VectorBits = bits_t<V * sizeof(T)>;

template <int V, typename T>
__device__ VectorBits<T, V> load_bits(const T* from) {
  return __ldg(reinterpret_cast<const VectorBits<T, V>*>(from));
}

template <typename T, int V>
__device__ void widen_bits(const VectorBits<T, V>& bits, float* to) {
  T values[V];
  memcpy(values, &bits, sizeof(bits));
#pragma unroll
  for (int v = 0; v < V; ++v) to[v] = widen(values[v]);
}

template <int V, typename T>
__device__ void load(const T* from, float (&to)[V]) {
  widen_bits<T, V>(load_bits<V>(from), to);
}

template <typename T, int V>
__device__ VectorBits<T, V> narrow_bits(const float* from) {
  T values[V];
#pragma unroll
  for (int v = 0; v < V; ++v) values[v] = narrow<T>(from[v]);
  VectorBits<T, V> bits;
  memcpy(&bits, values, sizeof(bits));
  return bits;
}

template <int V, typename T>
__device__ void store_bits(const VectorBits<T, V>& bits, T* to) {
  *reinterpret_cast<VectorBits<T, V>*>(to) = bits;
}

// ---------------------------------------------------------------- bias

// The bias of V neighbouring channels.
template <int V, typename T>
__device__ void read_bias(const DepthwiseParams<T>& p, int channel, float (&bias)[V]) {
#pragma unroll
  for (int v = 0; v < V; ++v) {
    bias[v] = p.bias == nullptr ? 0.0f : widen(__ldg(p.bias + (channel + v) * p.bias_stride));
  }
}

// Sums of 16-bit types begin with the bias: added at the end, it would be widened for every output. Those of
// float32 would lose digits to a large one.
template <typename T>
inline constexpr bool kBiasFirst = sizeof(T) == 2;

}  // namespace convt
