// The phases of convt/phases.h against the definition of the operator: input i and tap k meet in output
// i * stride + k * dilation - padding.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <numeric>
#include <random>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "convt/phases.h"

namespace {

using Pairs = std::vector<std::pair<int64_t, int64_t>>;  // (tap, input)

struct Axis {
  int64_t input, kernel, stride, padding, dilation;

  std::string text() const {
    std::ostringstream out;
    out << "input " << input << ", kernel " << kernel << ", stride " << stride << ", padding " << padding
        << ", dilation " << dilation;
    return out.str();
  }
  // Without padding at the high end and with the largest output_padding.
  int64_t output() const {
    return (input - 1) * stride + dilation * (kernel - 1) + 1 - padding + std::max(stride, dilation) - 1;
  }
};

// Every tap that reaches output o, with the input it reads; the input may lie beyond the edges.
Pairs by_definition(const Axis& axis, int64_t o) {
  Pairs pairs;
  for (int64_t k = 0; k < axis.kernel; ++k) {
    const int64_t distance = o + axis.padding - k * axis.dilation;
    const int64_t remainder = ((distance % axis.stride) + axis.stride) % axis.stride;
    if (remainder == 0) pairs.emplace_back(k, (distance - remainder) / axis.stride);
  }
  return pairs;
}

template <typename Int>
Pairs by_phase(const convt::AxisPhases<Int>& phases, const Axis& axis, int64_t o) {
  const Int t = static_cast<Int>(o + axis.padding), base = t / phases.stride;
  const convt::Phase<Int> phase = convt::phase_of(phases, static_cast<Int>(t % phases.stride));
  Pairs pairs;
  for (Int i = 0; i < phase.taps; ++i) {
    pairs.emplace_back(phase.first_tap + i * phases.tap_step,
                       base - (phase.first_shift + i * phases.shift_step));
  }
  return pairs;
}

template <typename Int>
void check_constants(const convt::AxisPhases<Int>& phases, const Axis& axis) {
  const int64_t gcd = std::gcd(axis.stride, axis.dilation);
  CHECK(phases.stride == axis.stride && phases.dilation == axis.dilation && phases.kernel == axis.kernel,
        axis.text());
  CHECK(phases.gcd == gcd, axis.text());
  CHECK(phases.tap_step == axis.stride / gcd && phases.shift_step == axis.dilation / gcd, axis.text());
  CHECK(phases.inverse >= 0 && phases.inverse < std::max<int64_t>(phases.tap_step, 1), axis.text());
  CHECK(int64_t{phases.inverse} * (phases.shift_step % phases.tap_step) % phases.tap_step ==
            1 % phases.tap_step,
        axis.text());
}

template <typename Int>
void check_axis(const Axis& axis) {
  const auto phases = convt::make_axis_phases<Int>(
      static_cast<Int>(axis.stride), static_cast<Int>(axis.dilation), static_cast<Int>(axis.kernel));
  check_constants(phases, axis);
  for (int64_t o = 0; o < axis.output(); ++o) {
    CHECK(by_phase(phases, axis, o) == by_definition(axis, o), axis.text() + ", output " + std::to_string(o));
  }
  // The bounds that tiles rely on are reached, and never passed.
  int64_t taps = 0, most_taps = 0, largest_shift = 0;
  for (Int residue = 0; residue < phases.stride; ++residue) {
    const auto phase = convt::phase_of(phases, residue);
    taps += phase.taps;
    most_taps = std::max<int64_t>(most_taps, phase.taps);
    if (phase.taps == 0) continue;
    CHECK(phase.first_shift >= 0, axis.text());
    largest_shift =
        std::max<int64_t>(largest_shift, phase.first_shift + (phase.taps - 1) * phases.shift_step);
  }
  CHECK(taps == axis.kernel, axis.text());
  CHECK(most_taps == convt::most_taps(phases), axis.text());
  CHECK(largest_shift == convt::largest_shift(phases), axis.text());
}

// Strides and dilations of any size, around outputs that some tap reaches.
template <typename Int>
void check_huge_axis(const Axis& axis, std::mt19937_64& random) {
  const auto phases = convt::make_axis_phases<Int>(
      static_cast<Int>(axis.stride), static_cast<Int>(axis.dilation), static_cast<Int>(axis.kernel));
  check_constants(phases, axis);
  for (int trial = 0; trial < 20; ++trial) {
    const int64_t i = static_cast<int64_t>(random() % static_cast<uint64_t>(axis.input));
    const int64_t k = static_cast<int64_t>(random() % static_cast<uint64_t>(axis.kernel));
    const int64_t o = i * axis.stride + k * axis.dilation - axis.padding + trial % 3 - 1;
    if (o < 0) continue;
    const std::string context = axis.text() + ", output " + std::to_string(o);
    CHECK(by_phase(phases, axis, o) == by_definition(axis, o), context);
    if (trial % 3 == 1) CHECK(!by_phase(phases, axis, o).empty(), context);
  }
}

}  // namespace

int main() {
  std::mt19937_64 random(20240229);
  const auto draw = [&](int64_t low, int64_t high) {
    return low + static_cast<int64_t>(random() % static_cast<uint64_t>(high - low + 1));
  };
  constexpr int kAxes = 24000;
  for (int trial = 0; trial < kAxes; ++trial) {
    Axis axis{draw(1, 9), draw(1, 12), draw(1, 17), 0, draw(1, 9)};
    axis.padding =
        draw(0, std::max<int64_t>(0, (axis.input - 1) * axis.stride + axis.dilation * (axis.kernel - 1)));
    check_axis<int64_t>(axis);
    if (trial % 4 == 0) check_axis<int>(axis);
  }
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  for (int trial = 0; trial < 2000; ++trial) {
    Axis axis{draw(1, 1000), draw(1, 64), draw(1, kMost), draw(0, 100), draw(1, kMost)};
    if (trial % 5 == 0) axis.dilation = axis.stride;
    if (trial % 7 == 0) axis.stride = kMost;
    if (trial % 11 == 0) axis.dilation = kMost;
    check_huge_axis<int64_t>(axis, random);
    // All coordinates, and the square of the stride, below 2^31.
    const Axis narrow{draw(1, 1000), draw(1, 8), draw(1, 46340), draw(0, 100), draw(1, 1 << 26)};
    check_huge_axis<int>(narrow, random);
  }
  return check::result();
}
