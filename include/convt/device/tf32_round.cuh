// Instructions for numbers that TF32 has (convt/device/tf32.cuh).
#pragma once

namespace convt {

// Rounds to nearest, ties away from zero. Finite numbers above the largest of TF32 become infinite, and so
// may a NaN whose payload is in the lower bits.
__device__ inline unsigned round_to_tf32(unsigned bits) {
  unsigned rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(bits)));
  return rounded;
}

// The larger number, or NaN if one is.
__device__ inline float max_or_nan(float a, float b) {
  float larger;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(a), "f"(b));
  return larger;
}

}  // namespace convt
