// How wide accesses may be, by the sizes, distances and addresses that they depend on.
#pragma once

#include <cstdint>

namespace convt {

// The largest power of two, at most `most`, that divides all of the numbers.
template <typename... Numbers>
int common_power_of_two(int most, Numbers... numbers) {
  int power = most;
  while (((static_cast<int64_t>(numbers) % power != 0) || ...)) power /= 2;
  return power;
}

inline bool is_aligned(const void* pointer, int64_t bytes) {
  return reinterpret_cast<intptr_t>(pointer) % bytes == 0;
}

// The widest access, of `bytes` at most, that the address allows.
inline int aligned_bytes(const void* pointer, int bytes) {
  return common_power_of_two(bytes, reinterpret_cast<intptr_t>(pointer));
}

}  // namespace convt
