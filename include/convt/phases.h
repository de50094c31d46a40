// Stride phases: a transposed convolution as a set of ordinary stride-1 correlations.
//
// Along one axis with stride s, dilation d and padding p, let output o sit at t = o + p. It has the residue r
// = t mod s (its phase) and the base b = t div s. Tap k carries input i to t = i * s + k * d, so tap k
// reaches o exactly when k * d = r (mod s), and it then reads input i = b - (k * d - r) / s. With g = gcd(s,
// d):
//
//   - if g does not divide r, no tap reaches the phase, and its outputs are the bias alone;
//   - otherwise the taps are k0, k0 + s/g, k0 + 2 s/g, ... with k0 = (r/g) * (d/g)^-1 mod (s/g), and the
//   shift
//     (k * d - r) / s grows by d/g from one of them to the next.
//
// No tap outside its phase is ever visited, so no product with an inserted zero is ever computed.
#pragma once

#include <cstdint>

#include "convt/divisor.h"
#include "convt/macros.h"

namespace convt {

// What the phases of one axis have in common. Int is wide enough for kernel * dilation + stride and for
// stride^2.
template <typename Int>
struct AxisPhases {
  Divisor<Int> stride = 1;
  Int dilation = 1;
  Int kernel = 1;
  Divisor<Int> gcd = 1;       // g
  Divisor<Int> tap_step = 1;  // s / g: taps between two successive taps of a phase
  Int shift_step = 1;         // d / g: input pixels between them
  Int inverse = 0;            // (d / g)^-1 mod (s / g); 0 when s / g is 1
};

// The taps of one phase: tap first_tap + i * tap_step reads input b - (first_shift + i * shift_step), 0 <= i
// < taps.
template <typename Int>
struct Phase {
  Int first_tap = 0;
  Int taps = 0;
  Int first_shift = 0;
};

template <typename Int>
AxisPhases<Int> make_axis_phases(Int stride, Int dilation, Int kernel) {
  AxisPhases<Int> axis;
  axis.stride = stride;
  axis.dilation = dilation;
  axis.kernel = kernel;
  // Extended Euclid on (s, d): stops with g, and with the coefficient of d, which is the inverse up to the
  // modulus.
  Int remainder = stride, next_remainder = dilation % stride;
  Int coefficient = 0, next_coefficient = 1;
  while (next_remainder != 0) {
    const Int quotient = remainder / next_remainder;
    const Int following_remainder = remainder - quotient * next_remainder;
    const Int following_coefficient = coefficient - quotient * next_coefficient;
    remainder = next_remainder;
    next_remainder = following_remainder;
    coefficient = next_coefficient;
    next_coefficient = following_coefficient;
  }
  axis.gcd = remainder;
  axis.tap_step = stride / remainder;
  axis.shift_step = dilation / remainder;
  axis.inverse = (coefficient + stride) % axis.tap_step;  // |coefficient| < stride
  return axis;
}

template <typename Int>
CONVT_HOST_DEVICE inline Phase<Int> phase_of(const AxisPhases<Int>& axis, Int residue) {
  Phase<Int> phase;
  const auto multiple = axis.gcd.divide(residue);
  if (multiple.remainder != 0) return phase;
  phase.first_tap = axis.tap_step.divide(multiple.quotient * axis.inverse).remainder;
  if (phase.first_tap >= axis.kernel) return phase;
  phase.taps = axis.tap_step.divide(axis.kernel - 1 - phase.first_tap).quotient + 1;
  // Not negative: stride divides k0 * d - r, k0 * d >= 0 and r < stride.
  phase.first_shift = axis.stride.divide(phase.first_tap * axis.dilation - residue).quotient;
  return phase;
}

// The largest shift of any tap: how far a tile of bases reaches back into the input.
template <typename Int>
CONVT_HOST_DEVICE inline Int largest_shift(const AxisPhases<Int>& axis) {
  return axis.stride.divide((axis.kernel - 1) * axis.dilation).quotient;
}

// The most taps that any phase has.
template <typename Int>
CONVT_HOST_DEVICE inline Int most_taps(const AxisPhases<Int>& axis) {
  return axis.tap_step.divide(axis.kernel - 1).quotient + 1;
}

}  // namespace convt
