// Numbers that TF32 has, emulated.
#pragma once

#include <cmath>

#include "emulator.h"

namespace convt {

inline unsigned round_to_tf32(unsigned bits) {
  if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fffffff;
  return (bits & 0x7fffffff) == 0x7f800000 ? bits : (bits + (1u << 12)) & 0xffffe000;
}

inline float max_or_nan(float a, float b) { return a != a ? a : b != b ? b : a > b ? a : b; }

}  // namespace convt
