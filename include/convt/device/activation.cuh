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

// Applies it to `bytes` of values that lie side by side; `thread` is one of kThreads that call it.
template <int kThreads, typename T>
__device__ inline void activate_bytes(const ActivationParams<float>& p, T* begin, int bytes, int thread) {
  auto* const values = reinterpret_cast<ActivatedValues<T>*>(begin);
  const int count = bytes / static_cast<int>(sizeof(*values));
#pragma unroll 1
  for (int i = thread; i < count; i += kThreads) activate_values<1>(p, values + i);
}

// Calls `visit` with a number below kCount as a constant: registers cannot be counted otherwise. In a loop
// over the numbers that is not unrolled, what comes after it stands once.
template <int kCount, typename Visit>
__device__ inline void with_constant(int number, const Visit& visit) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (i == number) visit(i);
  }
}

}  // namespace convt
