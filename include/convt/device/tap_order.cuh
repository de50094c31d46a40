// The order in which a block visits the taps of a filter: phase by phase (see convt/phases.h), row phases
// outermost, and in a phase from the first tap to the last. Packed weights and the kernels' tap tables follow
// it.
#pragma once

#include "convt/phases.h"

namespace convt {

// Taps of one axis in the phases before `residue`.
__device__ inline int taps_before(const AxisPhases<int>& axis, int residue) {
  int count = 0;
  for (int k = 0; k < axis.kernel; ++k) count += axis.stride.divide(k * axis.dilation).remainder < residue;
  return count;
}

struct TapPlace {
  int position;          // in the order
  int shift_h, shift_w;  // input pixels that the tap reaches back from its base
};

__device__ inline TapPlace place_of_tap(const AxisPhases<int>& axis_h, const AxisPhases<int>& axis_w, int kh,
                                        int kw) {
  const auto reach_h = axis_h.stride.divide(kh * axis_h.dilation);
  const auto reach_w = axis_w.stride.divide(kw * axis_w.dilation);
  const Phase<int> phase_h = phase_of(axis_h, reach_h.remainder);
  const Phase<int> phase_w = phase_of(axis_w, reach_w.remainder);
  const int row = axis_h.tap_step.divide(kh - phase_h.first_tap).quotient;
  const int col = axis_w.tap_step.divide(kw - phase_w.first_tap).quotient;
  const int phase_begin = taps_before(axis_h, reach_h.remainder) * axis_w.kernel +
                          phase_h.taps * taps_before(axis_w, reach_w.remainder);
  return {phase_begin + row * phase_w.taps + col, reach_h.quotient, reach_w.quotient};
}

}  // namespace convt
