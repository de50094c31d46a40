// Element types on the device: how each is widened for arithmetic and rounded back, and their bits.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace convt {

// The type in which sums of T are accumulated.
template <typename T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <typename T>
using accumulator_t = typename Accumulator<T>::type;

__device__ inline float widen(float x) { return x; }
__device__ inline double widen(double x) { return x; }
__device__ inline float widen(__half x) { return __half2float(x); }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

// kBytes of elements, as they lie in memory.
template <int kBytes>
struct Bits;
template <>
struct Bits<2> {
  using type = unsigned short;
};
template <>
struct Bits<4> {
  using type = unsigned;
};
template <>
struct Bits<8> {
  using type = uint2;
};
template <>
struct Bits<16> {
  using type = uint4;
};
template <int kBytes>
using bits_t = typename Bits<kBytes>::type;

// Rounds an accumulator to nearest, ties to even.
template <typename T>
__device__ inline T narrow(accumulator_t<T> x) {
  return x;
}
template <>
__device__ inline __half narrow<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ inline __nv_bfloat16 narrow<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// Two sums rounded to nearest and packed, the first in the low half.
template <typename T>
__device__ inline unsigned pack_pair(float low, float high);

template <>
__device__ inline unsigned pack_pair<__half>(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const unsigned*>(&pair);
}

template <>
__device__ inline unsigned pack_pair<__nv_bfloat16>(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const unsigned*>(&pair);
}

// The same value, but what is computed from it is computed anew: sums take most registers, and what is needed
// rarely is cheaper to find again than to keep.
__device__ inline int afresh(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

}  // namespace convt
