// What the files of the plan share.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>

#include "convt/plan.h"

namespace convt {

constexpr int64_t kMaxGrid = std::numeric_limits<int32_t>::max();
// Coordinates inside the tiled kernels are 32-bit; this leaves room for sums of two of them.
constexpr int64_t kMaxCoordinate = int64_t{1} << 30;
// Shared memory that the runtime reserves in every block.
constexpr int64_t kReservedSharedBytes = 1024;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int64_t next_power_of_two(int64_t value) {
  int64_t power = 1;
  while (power < value) power *= 2;
  return power;
}

inline bool fits_32_bits(const Axis& axis) {
  return axis.input < kMaxCoordinate && axis.output + axis.padding < kMaxCoordinate &&
         axis.stride < kMaxCoordinate && axis.kernel * axis.dilation + axis.stride < kMaxCoordinate;
}

// Fills `taps`; false if an offset leaves 32 bits.
bool make_axis_taps(const Axis& axis, int crop, int set_size, AxisTaps* taps);

// Sets how the input of a tile is read: load_vector and, if it may be, flat_rows.
void set_loads(const Problem& problem, bool may_be_flat, TileMmaLaunch& launch);

// Why `tile_mma` cannot compute a problem, or null.
const char* tile_mma_obstacle(const Problem& problem, const DeviceLimits& device);

// Calls `visit` with every launch of `tile_mma` that computes the problem on the device, and the cycles that
// it should take.
using TileMmaVisitor = std::function<void(const TileMmaLaunch&, double)>;
void visit_tile_mma(const Problem& problem, const DeviceLimits& device, const TileMmaVisitor& visit);

// The same of `tile_wgmma`.
const char* tile_wgmma_obstacle(const Problem& problem, const DeviceLimits& device);
using TileWgmmaVisitor = std::function<void(const TileWgmmaLaunch&, double)>;
void visit_tile_wgmma(const Problem& problem, const DeviceLimits& device, const TileWgmmaVisitor& visit);

}  // namespace convt
