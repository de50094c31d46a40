// float32 operands of tensor cores. TF32 keeps the sign, the exponent and the upper 10 bits of the fraction;
// products of two such numbers are exact in float32.
#pragma once

#include "convt/device/tf32_round.cuh"

namespace convt {

// For what round_to_tf32 makes infinite: finite numbers are cut off instead, and a NaN stays one.
__device__ inline unsigned cut_to_tf32(unsigned bits) {
  return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fffe000 : bits & 0xffffe000;
}

// Numbers from here on round to infinity.
inline constexpr float kLeastAboveTf32 = 0x1.ffep127f;

// The second part of an operand is multiplied by this, so that it has all its digits where the first is
// hardly above the least normal number. Twice as much would overflow above the largest first part.
inline constexpr float kSecondPartScale = 2048.0f;

// Splits numbers x into kParts numbers that TF32 has: x rounded, with error up to 2^-11 |x|, and what is
// missing, times kSecondPartScale, with error up to 2^-23 |x|, or zero where x is infinite.
template <int kParts>
__device__ inline void split_tf32(const uint4& x, uint4 (&parts)[kParts]) {
  const unsigned bits[4] = {x.x, x.y, x.z, x.w};
  unsigned first[4], second[4];
  float largest = 0.0f;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    first[i] = round_to_tf32(bits[i]);
    largest = fmaxf(largest, fabsf(__uint_as_float(first[i])));
  }
  const auto rest = [&](int i) {
    return kSecondPartScale * (__uint_as_float(bits[i]) - __uint_as_float(first[i]));
  };
#pragma unroll
  for (int i = 0; i < 4; ++i) second[i] = kParts == 2 ? round_to_tf32(__float_as_uint(rest(i))) : 0;
  if (__float_as_uint(largest) == 0x7f800000) {
    // Seldom: one test for four numbers.
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if ((first[i] & 0x7fffffff) != 0x7f800000) continue;
      first[i] = cut_to_tf32(bits[i]);
      const unsigned missing = round_to_tf32(__float_as_uint(rest(i)));
      second[i] = (bits[i] & 0x7f800000) == 0x7f800000 ? 0 : missing;
      if ((second[i] & 0x7fffffff) == 0x7f800000) second[i] = cut_to_tf32(__float_as_uint(rest(i)));
    }
  }
  parts[0] = make_uint4(first[0], first[1], first[2], first[3]);
  if constexpr (kParts == 2) parts[1] = make_uint4(second[0], second[1], second[2], second[3]);
}

// Tells whether numbers are ordinary: split_words may then split them by integer arithmetic, which makes
// infinities of those from kLeastAboveTf32 on, and numbers of some NaNs.
class OrdinaryTest {
 public:
  __device__ void add(unsigned bits) { largest_ = max_or_nan(largest_, fabsf(__uint_as_float(bits))); }
  __device__ void add(const uint4& x) { add(x.x), add(x.y), add(x.z), add(x.w); }

  // Of all lanes of a warp, which multiply together: one test for all of them, that seldom fails.
  __device__ bool passes() const { return __all_sync(~0u, largest_ < kLeastAboveTf32); }

 private:
  float largest_ = 0.0f;
};

// As split_tf32, but with digits that tensor cores leave out. Ordinary numbers are split by integer
// arithmetic.
template <bool kOrdinary, int kParts>
__device__ inline void split_words(const uint4& x, uint4 (&parts)[kParts]) {
  if constexpr (!kOrdinary) {
    split_tf32(x, parts);
  } else {
    constexpr unsigned kHalfOfLast = 1u << 12;
    const uint4 first =
        make_uint4(x.x + kHalfOfLast, x.y + kHalfOfLast, x.z + kHalfOfLast, x.w + kHalfOfLast);
    if constexpr (kParts == 2) {
      const auto second = [](unsigned bits, unsigned rounded) {
        const float rest = __uint_as_float(bits) - __uint_as_float(rounded & 0xffffe000);
        return __float_as_uint(kSecondPartScale * rest) + kHalfOfLast;
      };
      parts[1] =
          make_uint4(second(x.x, first.x), second(x.y, first.y), second(x.z, first.z), second(x.w, first.w));
    }
    parts[0] = first;
  }
}

}  // namespace convt
