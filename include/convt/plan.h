// The choice of kernel: a pure function of the problem and the device.
#pragma once

#include <cstdint>
#include <string>

#include "convt/problem.h"
#include "convt/tile_mma.h"
#include "convt/tile_simt.h"

namespace convt {

// What the plan needs to know of a GPU.
struct DeviceLimits {
  int compute_capability = 80;  // 10 * major + minor
  int sm_count = 108;
  int64_t shared_bytes_per_block = 0;  // the opt-in limit
  int64_t shared_bytes_per_sm = 0;
};

enum class Kernel {
  kNone,  // an empty output: nothing to launch
  kGeneric,
  kTileSimt,
  kTileMma,
};

const char* kernel_name(Kernel kernel);

struct Plan {
  Kernel kernel = Kernel::kNone;
  TileSimtLaunch tile_simt;  // when kernel is kTileSimt
  TileMmaLaunch tile_mma;    // when kernel is kTileMma
};

// Chooses the kernel and its configuration. `forced` is the name of a kernel, or null or empty for the best.
// Throws std::invalid_argument when the forced kernel does not exist or cannot compute the problem.
Plan make_plan(const Problem& problem, const DeviceLimits& device, const char* forced);

// One line: the kernel's name, then what was chosen as key=value.
std::string describe(const Plan& plan);

// Whether a library built for `archs` (such as "8.0 9.0a 12.0+PTX") holds code for a GPU. Machine code runs
// on later minor versions of its major version, an `a` target on exactly its own, PTX on everything later.
bool has_code_for(const std::string& archs, int compute_capability);

}  // namespace convt
