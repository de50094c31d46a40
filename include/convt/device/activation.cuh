// The activation in the epilogues of kernels. Its code is long, and every kernel has it once: it is applied
// to a few values at a time, in loops that are not unrolled.
#pragma once

#include "convt/activate.h"
#include "convt/device/scalar.cuh"

namespace convt {

inline constexpr int kActivatedAtOnce = 4;

// Applies it to sums, as T has them, in registers: in a loop in which they move up, as registers cannot be
// counted.
template <typename T, int kAtOnce, int kCount>
__device__ inline void activate_sums(const ActivationParams<float>& p, float (&sums)[kCount]) {
  constexpr int kStep = kCount < kActivatedAtOnce ? kCount : kActivatedAtOnce;
  static_assert(kCount % kStep == 0);
#pragma unroll 1
  for (int turn = 0; turn < kCount / kStep; ++turn) {
    float x[kStep];
#pragma unroll
    for (int i = 0; i < kStep; ++i) x[i] = widen(narrow<T>(sums[i]));
    activate<kAtOnce>(p, x);
#pragma unroll
    for (int i = 0; i < kCount - kStep; ++i) sums[i] = sums[i + kStep];
#pragma unroll
    for (int i = 0; i < kStep; ++i) sums[kCount - kStep + i] = x[i];
  }
}

// Values that lie side by side in memory.
template <typename T>
struct alignas(kActivatedAtOnce * sizeof(T)) ActivatedValues {
  T of[kActivatedAtOnce];
};

// Applies it to values where they lie.
template <int kAtOnce, typename T>
__device__ inline void activate_values(const ActivationParams<float>& p, ActivatedValues<T>* place) {
  ActivatedValues<T> values = *place;
  float x[kActivatedAtOnce];
#pragma unroll
  for (int i = 0; i < kActivatedAtOnce; ++i) x[i] = widen(values.of[i]);
  activate<kAtOnce>(p, x);
#pragma unroll
  for (int i = 0; i < kActivatedAtOnce; ++i) values.of[i] = narrow<T>(x[i]);
  *place = values;
}

}  // namespace convt
