// The choice of kernel: a pure function of the problem and the device.
#pragma once

#include <cstdint>
#include <string>

#include "convt/col2im.h"
#include "convt/depthwise.h"
#include "convt/implicit_gemm.h"
#include "convt/phase_gemm.h"
#include "convt/pixel_gemm.h"
#include "convt/problem.h"
#include "convt/scatter_gemm.h"
#include "convt/thin.h"
#include "convt/thin_simt.h"
#include "convt/tile_mma.h"
#include "convt/tile_simt.h"
#include "convt/tile_wgmma.h"

namespace convt {

// What the plan needs to know of a GPU.
struct DeviceLimits {
  int compute_capability = 80;  // 10 * major + minor
  int sm_count = 108;
  int64_t shared_bytes_per_block = 0;  // the opt-in limit
  int64_t shared_bytes_per_sm = 0;
  bool has_wgmma = false;  // warpgroup instructions, and code that uses them
};

enum class Kernel {
  kNone,  // an empty output: nothing to launch
  kGeneric,
  kDepthwise,
  kThin,
  kThinSimt,
  kTileSimt,
  kTileMma,
  kTileWgmma,
  kCol2im,
  kImplicitGemm,
  kHaloGemm,
  kPixelGemm,
  kScatterGemm,
  kPhaseGemm,
};

const char* kernel_name(Kernel kernel);

struct Plan {
  Kernel kernel = Kernel::kNone;
  DepthwiseLaunch depthwise;         // when kernel is kDepthwise
  ThinLaunch thin;                   // when kernel is kThin
  ThinSimtLaunch thin_simt;          // when kernel is kThinSimt
  TileSimtLaunch tile_simt;          // when kernel is kTileSimt
  TileMmaLaunch tile_mma;            // when kernel is kTileMma
  TileWgmmaLaunch tile_wgmma;        // when kernel is kTileWgmma
  Col2imLaunch col2im;               // when kernel is kCol2im
  ImplicitGemmLaunch implicit_gemm;  // when kernel is kImplicitGemm
  ImplicitGemmLaunch halo_gemm;      // when kernel is kHaloGemm
  PixelGemmLaunch pixel_gemm;        // when kernel is kPixelGemm
  ScatterLaunch scatter_gemm;        // when kernel is kScatterGemm
  PhaseGemmLaunch phase_gemm;        // when kernel is kPhaseGemm
};

// Chooses the kernel and its configuration. `forced` is the name of a kernel, or null or empty for the best;
// thin:3, tile_mma:3, tile_wgmma:3, col2im:3, implicit_gemm:3, halo_gemm:3, pixel_gemm:3, scatter_gemm:3 and
// phase_gemm:3 are the launches with the fourth least estimate, for sweeps. Throws std::invalid_argument when
// the forced kernel or launch does not exist or cannot compute the problem.
Plan make_plan(const Problem& problem, const DeviceLimits& device, const char* forced);

// One line: the kernel's name, then what was chosen as key=value.
std::string describe(const Plan& plan);

// Whether a library built for `archs` (such as "8.0 9.0a 12.0+PTX") holds code for a GPU. Machine code runs
// on later minor versions of its major version, an `a` target on exactly its own, PTX on everything later.
bool has_code_for(const std::string& archs, int compute_capability);

// Whether a list names an architecture, such as "9.0a".
bool names_arch(const std::string& archs, const std::string& arch);

}  // namespace convt
