// The widths of copies, as constants.
#pragma once

#include <cuda_runtime_api.h>

namespace convt {

inline constexpr int kLeastCopyBytes = 4;

// Calls `visit` with a constant of one of the widths, in bytes, that copies have: 16, 8, 4 and 2.
template <int kBytes>
struct Width {
  static constexpr int value = kBytes;
};

template <typename Visit>
__device__ inline void with_width(int bytes, const Visit& visit) {
  switch (bytes) {
    case 16:
      return visit(Width<16>{});
    case 8:
      return visit(Width<8>{});
    case 4:
      return visit(Width<4>{});
    default:
      return visit(Width<2>{});
  }
}

// The same of kLeast bytes or more: there is no code for less.
template <int kLeast, typename Visit>
__device__ inline void with_width_from(int bytes, const Visit& visit) {
  with_width(bytes, [&visit](auto width) {
    constexpr int kBytes = decltype(width)::value;
    visit(Width<(kBytes < kLeast ? kLeast : kBytes)>{});
  });
}

}  // namespace convt
