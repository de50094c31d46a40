// The activation of convt/activation.h as it is computed: formulas for the host and the device.
#pragma once

#include <cmath>
#include <limits>

#include "convt/activation.h"
#include "convt/macros.h"

namespace convt {

// What a kernel knows of it. Every kernel holds the code of all kinds, so kinds that others contain are
// left out: a ReLU clamps, nothing but a scale is a slope of one. Its size leaves the parameters after it
// aligned, as those are read in pairs.
template <typename Real>
struct alignas(8) ActivationParams {
  ActivationKind kind = ActivationKind::kNone;  // kNone: nothing is applied
  Real a = 0, b = 0;
  Real scale = 1, shift = 0;

  CONVT_HOST_DEVICE bool is_identity() const { return kind == ActivationKind::kNone; }
};

template <typename Real>
ActivationParams<Real> activation_params(const Activation& activation) {
  ActivationParams<Real> p;
  if (activation.is_identity()) return p;
  p.kind = activation.kind;
  p.a = static_cast<Real>(activation.a);
  p.b = static_cast<Real>(activation.b);
  p.scale = static_cast<Real>(activation.scale);
  // x + -0 is x, also where x is -0.
  p.shift = activation.shift == 0 ? Real{-0.0f} : static_cast<Real>(activation.shift);
  switch (activation.kind) {
    case ActivationKind::kNone:
      p.kind = ActivationKind::kLeakyRelu;
      p.a = 1;
      break;
    case ActivationKind::kRelu:
      p.kind = ActivationKind::kHardtanh;
      p.a = 0;
      p.b = std::numeric_limits<Real>::infinity();
      break;
    case ActivationKind::kSilu:
    case ActivationKind::kSigmoid:
    case ActivationKind::kMish:
      p.a = 1;
      p.b = 0;
      break;
    case ActivationKind::kGeluTanh:
      p.a = Real(1.5957691216057308);  // 2 sqrt(2 / pi)
      p.b = Real(1.5957691216057308 * 0.044715);
      break;
    case ActivationKind::kElu:
      p.b = 1;
      break;
    case ActivationKind::kTanh:
      p.b = 2;
      break;
    default:
      break;
  }
  return p;
}

// 1 / x for x >= 1, in float32 with an error of one unit in the last place, and 0 for less than 1e-38: a
// division would be as much code as all the rest.
CONVT_HOST_DEVICE inline float reciprocal(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1 / x;
#endif
}
CONVT_HOST_DEVICE inline double reciprocal(double x) { return 1 / x; }

// exp(x), expm1(x) for x <= 0, and erfc(x) for x >= 0: in float32 in as few instructions as an epilogue can
// afford, with an error of 4e-7 of exp for |x| < 4, which grows with |x|, of 6e-7 of expm1, and of 2e-7
// beside erfc (Abramowitz and Stegun, 7.1.26).
CONVT_HOST_DEVICE inline float exponential(float x) {
  const float power = x * 1.4426950408889634f;
#if defined(__CUDA_ARCH__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(power));
  return y;
#else
  return std::exp2(power);
#endif
}
CONVT_HOST_DEVICE inline double exponential(double x) { return std::exp(x); }

CONVT_HOST_DEVICE inline float exponential_minus_1(float x) {
  const float series =
      x + x * x * (1.0f / 2 + x * (1.0f / 6 + x * (1.0f / 24 + x * (1.0f / 120 + x * (1.0f / 720)))));
  return x > -0.35f ? series : exponential(x) - 1;
}
CONVT_HOST_DEVICE inline double exponential_minus_1(double x) { return std::expm1(x); }

CONVT_HOST_DEVICE inline float complementary_error(float x) {
  const float t = reciprocal(1 + 0.3275911f * x);
  const float series =
      t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
  return series * exponential(-x * x);
}
CONVT_HOST_DEVICE inline double complementary_error(double x) { return std::erfc(x); }

// Of which the compiler knows nothing: it makes no table of what follows, nor copies for each value.
CONVT_HOST_DEVICE inline bool unknown(bool value) {
#if defined(__CUDA_ARCH__)
  int number = value;
  asm volatile("" : "+r"(number));
  return number != 0;
#else
  return value;
#endif
}

// Kinds whose code is short.
template <typename Real>
CONVT_HOST_DEVICE Real leaky_relu(const ActivationParams<Real>& p, Real x) {
  return x > 0 ? x : p.a * x;
}
template <typename Real>
CONVT_HOST_DEVICE Real clamp(const ActivationParams<Real>& p, Real x) {
  x = x <= p.a ? p.a : x;
  return x >= p.b ? p.b : x;
}

// The others, for each of kCount values. Forms share code, and nothing cancels where torch's does:
//
//   gelu           x/2 * erfc(-x / sqrt(2))      for 1 + erf, 1 - erfc(x / sqrt(2)) / 2 for positive x
//   gelu_tanh      x * sigmoid(2 u)              for (1 + tanh(u)) / 2
//   mish           x / (1/2 + e + 1/2 / (1 + 2 e)), e = exp(-x), for tanh(log(1 + exp(x)))
//   tanh           -m / (2 + m), m = expm1(-2 |x|)
//
// Results smaller than 1e-35 may be zero.
template <int kCount, typename Real>
CONVT_HOST_DEVICE void curves(const ActivationParams<Real>& p, Real (&x)[kCount]) {
  const auto each = [&x](const auto& function) {
    CONVT_UNROLL
    for (Real& value : x) value = function(value);
  };
  const auto is = [&p](ActivationKind kind) { return unknown(p.kind == kind); };
  if (is(ActivationKind::kHardswish)) {
    each([](Real v) { return v * (std::fmin(std::fmax(v + 3, Real{0}), Real{6}) * Real(1.0 / 6.0)); });
  } else if (is(ActivationKind::kGelu)) {
    each([](Real v) {
      const Real tail = Real{0.5} * complementary_error(std::fabs(v) * Real(0.70710678118654752440));
      return v * (v > 0 ? 1 - tail : tail);
    });
  } else if (unknown(p.kind == ActivationKind::kElu || p.kind == ActivationKind::kTanh)) {
    const bool tanh = is(ActivationKind::kTanh);
    each([&p, tanh](Real v) {
      const Real m = exponential_minus_1(p.b * -std::fabs(v));
      const Real of_elu = v > 0 ? v : p.a * m, of_tanh = std::copysign(m * reciprocal(2 + m), v);
      return tanh ? of_tanh : of_elu;
    });
  } else {
    const bool mish = is(ActivationKind::kMish), sigmoid = is(ActivationKind::kSigmoid);
    each([&p, mish, sigmoid](Real v) {
      // Where p.b is zero its product must be, too.
      const Real e = exponential(-v * (p.a + p.b * std::fmin(v * v, Real{1e30f})));
      Real divisor = e + 1;
      if (mish) divisor = (e + Real{0.5}) + Real{0.5} * reciprocal(1 + 2 * e);
      return (sigmoid ? 1 : v) * reciprocal(divisor);
    });
  }
}

// Applies it to each of kCount values. Those of long formulas are computed kAtOnce at a time in a loop, in
// which they move up by as many registers.
template <int kAtOnce, int kCount, typename Real>
CONVT_HOST_DEVICE void activate(const ActivationParams<Real>& p, Real (&x)[kCount]) {
  static_assert(kCount % kAtOnce == 0);
  if (unknown(p.kind == ActivationKind::kLeakyRelu)) {
    CONVT_UNROLL
    for (Real& value : x) value = leaky_relu(p, value);
  } else if (unknown(p.kind == ActivationKind::kHardtanh)) {
    CONVT_UNROLL
    for (Real& value : x) value = clamp(p, value);
  } else {
    CONVT_NO_UNROLL
    for (int turn = 0; turn < kCount / kAtOnce; ++turn) {
      Real y[kAtOnce];
      CONVT_UNROLL
      for (int i = 0; i < kAtOnce; ++i) y[i] = x[i];
      curves(p, y);
      CONVT_UNROLL
      for (int i = 0; i < kCount - kAtOnce; ++i) x[i] = x[i + kAtOnce];
      CONVT_UNROLL
      for (int i = 0; i < kAtOnce; ++i) x[kCount - kAtOnce + i] = y[i];
    }
  }
  CONVT_UNROLL
  for (Real& value : x) value = value * p.scale + p.shift;
}

// Applies it to one value.
template <typename Real>
CONVT_HOST_DEVICE Real activate(const ActivationParams<Real>& p, Real x) {
  Real values[1] = {x};
  activate<1>(p, values);
  return values[0];
}

}  // namespace convt
