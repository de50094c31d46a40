// Division by a number known at launch, without a division instruction (64-bit ones are function calls on a
// GPU).
//
// With m = floor((2^N - 1) / d), the estimate floor(n * m / 2^N) is the quotient or one less for every 0 <= n
// < 2^(N-1): m > (2^N - 1) / d - 1, so n / d - n * m / 2^N < 2 n / 2^N < 1. One comparison corrects it. (The
// reciprocal method of Granlund and Montgomery, "Division by invariant integers using multiplication", 1994,
// with a correction instead of a wider m.)
#pragma once

#include <cstdint>

#include "convt/macros.h"

namespace convt {

template <typename Int>
class Divisor;

namespace detail {

CONVT_HOST_DEVICE inline uint32_t high_product(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>((static_cast<uint64_t>(a) * b) >> 32);
}

CONVT_HOST_DEVICE inline uint64_t high_product(uint64_t a, uint64_t b) {
#if defined(__CUDA_ARCH__)
  return __umul64hi(a, b);
#else
  return static_cast<uint64_t>((static_cast<unsigned __int128>(a) * b) >> 64);
#endif
}

template <typename Int>
struct Unsigned;
template <>
struct Unsigned<int32_t> {
  using type = uint32_t;
};
template <>
struct Unsigned<int64_t> {
  using type = uint64_t;
};

}  // namespace detail

// A positive divisor. Dividends are not negative.
template <typename Int>
class Divisor {
  using Bits = typename detail::Unsigned<Int>::type;

 public:
  CONVT_HOST_DEVICE constexpr Divisor(Int divisor = 1)  // NOLINT: a number is its own divisor
      : divisor_(static_cast<Bits>(divisor)), reciprocal_(~Bits{0} / static_cast<Bits>(divisor)) {}

  CONVT_HOST_DEVICE constexpr operator Int() const { return static_cast<Int>(divisor_); }

  struct Result {
    Int quotient, remainder;
  };

  CONVT_HOST_DEVICE Result divide(Int dividend) const {
    const Bits n = static_cast<Bits>(dividend);
    Bits quotient = detail::high_product(n, reciprocal_);
    Bits remainder = n - quotient * divisor_;
    if (remainder >= divisor_) {
      quotient += 1;
      remainder -= divisor_;
    }
    return {static_cast<Int>(quotient), static_cast<Int>(remainder)};
  }

 private:
  Bits divisor_;
  Bits reciprocal_;  // m
};

}  // namespace convt
