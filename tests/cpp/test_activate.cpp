// The activations of convt/activate.h against their definitions in long double, as torch has them. In float32
// the formulas are the device's, but for the two instructions that approximate a power of 2 and a reciprocal.
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "check.h"
#include "convt/activate.h"

namespace {

using convt::Activation;
using convt::ActivationKind;
using Long = long double;

// What of an error grows with x.
enum class Error {
  kConstant,     // a share of the result
  kExponential,  // for negative x, as that of exp(x)
  kCubic,        // for negative x, as that of exp(x^3)
  kAbsolute,     // beside 1 + erf
};

struct Case {
  const char* name;
  Activation activation;
  Long (*definition)(const Activation&, Long);
  Error error = Error::kConstant;
};

// Of a result f(x).
Long tolerance(Error error, Long x, Long result, Long unit) {
  const Long below = std::fmax(-x, Long{0});
  switch (error) {
    case Error::kConstant:
      return 12 * unit * std::fabs(result);
    case Error::kExponential:
      return (12 + below) * unit * std::fabs(result);
    case Error::kCubic:
      return (12 + 4 * below + below * below * below / 6) * unit * std::fabs(result);
    case Error::kAbsolute:
      return x > 1 ? 12 * unit * x : 4 * unit * std::fabs(x);
  }
  return 0;
}

Long sigmoid(Long x) { return 1 / (1 + std::exp(-x)); }

const std::vector<Case>& cases() {
  using Kind = ActivationKind;
  static const std::vector<Case> all = {
      {"none", {Kind::kNone, 0, 0, 1.5, 0}, [](const Activation&, Long x) { return x; }},
      {"relu", {Kind::kRelu}, [](const Activation&, Long x) { return x > 0 ? x : 0; }},
      {"leaky_relu",
       {Kind::kLeakyRelu, 0.2},
       [](const Activation& f, Long x) { return x > 0 ? x : f.a * x; }},
      {"elu", {Kind::kElu, 1.5}, [](const Activation& f, Long x) { return x > 0 ? x : f.a * std::expm1(x); }},
      {"silu", {Kind::kSilu}, [](const Activation&, Long x) { return x * sigmoid(x); }, Error::kExponential},
      {"gelu",
       {Kind::kGelu},
       [](const Activation&, Long x) { return x / 2 * std::erfc(-x * std::sqrt(Long{0.5})); },
       Error::kAbsolute},
      {"gelu_tanh",
       {Kind::kGeluTanh},
       [](const Activation&, Long x) {
         const Long pi = std::acos(Long{-1});
         return x * sigmoid(2 * std::sqrt(2 / pi) * (x + Long(0.044715) * x * x * x));
       },
       Error::kCubic},
      {"mish",
       {Kind::kMish},
       [](const Activation&, Long x) { return x * std::tanh(std::log1p(std::exp(x))); },
       Error::kExponential},
      {"sigmoid",
       {Kind::kSigmoid},
       [](const Activation&, Long x) { return sigmoid(x); },
       Error::kExponential},
      {"tanh", {Kind::kTanh}, [](const Activation&, Long x) { return std::tanh(x); }},
      {"hardtanh",
       {Kind::kHardtanh, -0.5, 2},
       [](const Activation& f, Long x) { return std::fmin(std::fmax(x, Long{f.a}), Long{f.b}); }},
      {"hardswish",
       {Kind::kHardswish},
       [](const Activation&, Long x) { return x * std::fmin(std::fmax(x + 3, Long{0}), Long{6}) / 6; }},
  };
  return all;
}

// Values of every magnitude, and some where the functions change.
template <typename Real>
std::vector<Real> values() {
  std::vector<Real> all = {
      0, 3, 6, 20, 88, 89, 100, 1000, Real(1e19), Real(1e30), std::numeric_limits<Real>::max() / 2};
  for (int power = -40; power <= 12; ++power) {
    for (int i = 0; i < 64; ++i) all.push_back(std::ldexp(Real(64 + i) / 64, power));
  }
  const size_t count = all.size();
  for (size_t i = 0; i < count; ++i) all.push_back(-all[i]);
  return all;
}

// Results below `least` may be zero.
template <typename Real>
void check_accuracy(Long least) {
  constexpr Long kUnit = std::numeric_limits<Real>::epsilon() / 2;
  for (const Case& of : cases()) {
    for (const bool scales : {false, true}) {
      Activation activation = of.activation;
      if (scales) activation.scale = 0.75, activation.shift = 0.5;
      const auto p = convt::activation_params<Real>(activation);
      CHECK(!p.is_identity(), of.name);
      for (const Real x : values<Real>()) {
        const Long before = of.definition(activation, x), y = convt::activate(p, x);
        const Long expected = before * activation.scale + activation.shift;
        const Long allowed = tolerance(of.error, x, before, kUnit) * activation.scale +
                             2 * kUnit * std::fabs(expected) + least;
        CHECK(y == expected || std::fabs(y - expected) <= allowed,
              std::string(of.name) + "(" + std::to_string(x) +
                  ") = " + std::to_string(static_cast<double>(y)) + ", not " +
                  std::to_string(static_cast<double>(expected)) + ", by " +
                  std::to_string(static_cast<double>(std::fabs(y - expected) / allowed)) +
                  " of what is allowed");
      }
    }
  }
}

template <typename Real>
void check_special_values() {
  constexpr Real kInfinity = std::numeric_limits<Real>::infinity(),
                 kNan = std::numeric_limits<Real>::quiet_NaN();
  for (const Case& of : cases()) {
    for (const Real scale : {Real{1}, Real{-2}, Real{0}}) {
      for (const Real shift : {Real{0}, Real{-1}, kInfinity}) {
        Activation activation = of.activation;
        activation.scale = scale;
        activation.shift = shift;
        if (activation.is_identity()) continue;
        const auto p = convt::activation_params<Real>(activation);
        CHECK(std::isnan(convt::activate(p, kNan)), of.name);
        for (const Real x : {kInfinity, -kInfinity}) {
          const Real y = convt::activate(p, x);
          const Long expected = of.definition(activation, x) * scale + shift;
          CHECK(y == expected || (std::isnan(y) && std::isnan(expected)), of.name);
        }
      }
    }
  }
  Activation linear;
  linear.scale = 2;
  CHECK(std::signbit(convt::activate(convt::activation_params<Real>(linear), Real{-0.0f})), "-0 * 2");
}

// Several values at a time give what one at a time gives, in their places.
void check_several() {
  for (const Case& of : cases()) {
    const auto p = convt::activation_params<float>(of.activation);
    float two[8], four[8];
    for (int i = 0; i < 8; ++i) two[i] = four[i] = 0.7f * static_cast<float>(i) - 2.5f;
    convt::activate<2>(p, two);
    convt::activate<4>(p, four);
    for (int i = 0; i < 8; ++i) {
      const float y = convt::activate(p, 0.7f * static_cast<float>(i) - 2.5f);
      CHECK(two[i] == y && four[i] == y, of.name);
    }
  }
}

}  // namespace

int main() {
  CHECK(convt::activation_params<float>(Activation{}).is_identity(), "default");
  check_accuracy<float>(1e-35L);
  check_accuracy<double>(1e-290L);
  check_special_values<float>();
  check_special_values<double>();
  check_several();
  return check::result();
}
