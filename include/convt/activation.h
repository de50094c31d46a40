// What may follow a transposed convolution in the same launch: an activation, then a scale and a shift.
#pragma once

namespace convt {

enum class ActivationKind {
  kNone,
  kRelu,
  kLeakyRelu,  // a: slope of negative values
  kElu,        // a: alpha
  kSilu,
  kGelu,      // by the error function
  kGeluTanh,  // by its approximation
  kMish,
  kSigmoid,
  kTanh,
  kHardtanh,  // a: least, b: largest value
  kHardswish,
};

// y = scale * activation(x) + shift, of the convolution's result x as the output's type has it: the same
// values as from the two operators one after the other. Computed in float32, float64 in float64.
struct Activation {
  ActivationKind kind = ActivationKind::kNone;
  double a = 0, b = 0;
  double scale = 1, shift = 0;

  constexpr bool is_identity() const { return kind == ActivationKind::kNone && scale == 1 && shift == 0; }
};

}  // namespace convt
