// The division without a division instruction of convt/divisor.h against the built-in one.
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "convt/divisor.h"

namespace {

template <typename Int>
void check_pair(Int dividend, Int divisor) {
  const auto result = convt::Divisor<Int>(divisor).divide(dividend);
  CHECK(result.quotient == dividend / divisor && result.remainder == dividend % divisor,
        std::to_string(dividend) + " / " + std::to_string(divisor));
}

template <typename Int>
void check_type() {
  constexpr Int kMost = std::numeric_limits<Int>::max();
  std::vector<Int> edges;
  for (int bit = 0; bit < std::numeric_limits<Int>::digits; ++bit) {
    const Int power = Int{1} << bit;
    for (const Int near : {power - 1, power, power + 1, kMost / power, kMost - power}) edges.push_back(near);
  }
  edges.push_back(kMost);
  for (const Int divisor : edges) {
    if (divisor < 1) continue;
    CHECK(static_cast<Int>(convt::Divisor<Int>(divisor)) == divisor, std::to_string(divisor));
    for (const Int dividend : edges) {
      if (dividend >= 0) check_pair(dividend, divisor);
    }
  }
  std::mt19937_64 random(11);
  // Every magnitude as often as any other.
  const auto draw = [&] {
    return static_cast<Int>((random() & static_cast<uint64_t>(kMost)) >>
                            random() % std::numeric_limits<Int>::digits);
  };
  for (int trial = 0; trial < 2000000; ++trial) {
    const Int divisor = draw();
    if (divisor == 0) continue;
    check_pair(draw(), divisor);
    // Around multiples of the divisor, where an estimate is off first.
    const Int multiple = draw() / divisor * divisor;
    check_pair(multiple, divisor);
    if (multiple > 0) check_pair(multiple - 1, divisor);
  }
}

}  // namespace

int main() {
  check_type<int32_t>();
  check_type<int64_t>();
  return check::result();
}
