// The taps of one axis by the inputs that they read, as the tensor-core kernels go through them.
#pragma once

#include <cstdint>

#include "convt/divisor.h"
#include "convt/macros.h"

namespace convt {

// Most taps along an axis, and most phases along it.
inline constexpr int kMaxAxisTaps = 64;
// Most phases of a set: AxisTaps::phases has a bit for each.
inline constexpr int kMaxSetPhases = 32;

// Along one axis, outputs are numbered o = stride * q + r - crop with 0 <= r < stride: q is a point of the
// grid that tiles are cut from, r the phase. Tap k carries input q + offset to output o exactly when
//
//   k * dilation = r + (padding - crop) - offset * stride,
//
// so that every phase reaches its taps through offsets that do not depend on q (convt/phases.h has the same
// in terms of padded coordinates; crop = padding mod stride gives its bases). With crop = 0 the tiles of the
// output start at multiples of the stride; with crop = padding mod stride more phases share their offsets.
//
// A point may stand for several `inputs`, too, input inputs * q + offset: two, where outputs of stride 1 are
// taken in pairs, which are then two phases of stride 2. In the condition above an offset then counts stride
// / inputs.
//
// Phases are taken in sets of `set_size` neighbours. `offset[begin[set] ...]` lists the offsets that any
// phase of the set has, ascending, and bit j of `phases` tells whether phase set * set_size + j is one of
// them.
struct AxisTaps {
  int stride = 1, dilation = 1, kernel = 1;
  int inputs = 1;  // of a point: 1 or 2
  int crop = 0;
  int reach = 0;  // padding - crop
  int set_size = 1, sets = 1;
  // In points, offsets of all phases lie in [least_offset, least_offset + span].
  int least_offset = 0, span = 0;
  int16_t begin[kMaxAxisTaps + 1] = {};
  int32_t offset[kMaxAxisTaps] = {};
  uint32_t phases[kMaxAxisTaps] = {};

  CONVT_HOST_DEVICE int offsets(int set) const { return begin[set + 1] - begin[set]; }

  // The point that an offset leads to, counted from q, and which of its inputs.
  CONVT_HOST_DEVICE int point_of(int shift) const { return shift >> (inputs - 1); }
  CONVT_HOST_DEVICE int input_of(int shift) const { return shift & (inputs - 1); }

  // The tap that carries input inputs * q + shift to phase r of q, or -1. `by_dilation` divides by the
  // dilation.
  CONVT_HOST_DEVICE int tap(int r, int shift, const Divisor<int>& by_dilation) const {
    const int distance = r + reach - shift * (inputs == 2 ? stride / 2 : stride);
    if (r >= stride || distance < 0) return -1;
    const auto k = by_dilation.divide(distance);
    return k.remainder == 0 && k.quotient < kernel ? k.quotient : -1;
  }
};

}  // namespace convt
