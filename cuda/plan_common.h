// What the files of the plan share.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <limits>

#include "convt/alignment.h"
#include "convt/plan.h"

namespace convt {

constexpr int64_t kMaxGrid = std::numeric_limits<int32_t>::max();
// Shared memory that the runtime reserves in every block.
constexpr int64_t kReservedSharedBytes = 1024;
// The output channels of a group up to which `thin` may compute many pixels, and its launches may walk.
constexpr int64_t kThinMostCouts = 64;
// Neighbours along W that some kernels read at once.
constexpr int64_t kRowVector = 4;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int64_t next_power_of_two(int64_t value) {
  int64_t power = 1;
  while (power < value) power *= 2;
  return power;
}

// Whether all the numbers are multiples of `vector`.
inline bool divides(int64_t vector, std::initializer_list<int64_t> numbers) {
  return std::all_of(numbers.begin(), numbers.end(), [vector](int64_t n) { return n % vector == 0; });
}

// Why the input cannot all be read in vectors of kRowVector elements, or null.
inline const char* row_vectors_obstacle(const Problem& problem) {
  ActivationStrides in = problem.input_stride;
  // Distances of a dimension of one do not matter.
  if (problem.batch == 1) in.n = 0;
  if (problem.h.input == 1) in.h = 0;
  if (problem.cin() == 1) in.c = 0;
  const bool reads = in.w == 1 && divides(kRowVector, {in.n, in.c, in.h, problem.w.input}) &&
                     is_aligned(problem.input, kRowVector * element_size(problem.dtype));
  return reads ? nullptr : "it reads four neighbours along W at once";
}

// The phases of an axis whose coordinates fit in 32 bits.
inline AxisPhases<int> narrow_phases(const Axis& axis) {
  return make_axis_phases<int>(static_cast<int>(axis.stride), static_cast<int>(axis.dilation),
                               static_cast<int>(axis.kernel));
}

// Phases of an axis that have any taps: the residues k * d mod s repeat with period s / g.
inline int phases_reached(const AxisPhases<int>& axis) { return std::min<int>(axis.kernel, axis.tap_step); }

// The bases (convt/phases.h) that have outputs, of an axis whose coordinates fit in 32 bits.
struct Bases {
  int first, count;
};

inline Bases bases_of(const Axis& axis) {
  const auto base = [&axis](int64_t output) {
    return static_cast<int>((output + axis.padding) / axis.stride);
  };
  return {base(0), base(axis.output - 1) - base(0) + 1};
}

// What the searches for launches of the tensor-core kernels share.

// How the kernels read the input: NHWC, or element by element along C, unless neighbours along W lie side by
// side.
bool reads_channels_last(const Problem& problem);

// Numbers that tensor cores multiply for each operand: two where the products of float32 are to be as
// accurate as its own.
int operand_parts(const Problem& problem);

// The ways to number outputs: from the first output on, and from the first base on where padding is no
// multiple of the stride (AxisTaps::crop).
enum class Crop { kNone, kPadding };
bool is_distinct(Crop crop, const Problem& problem);

// Fills `taps` for points of so many inputs and phase sets of set_size; false if an offset leaves 32 bits.
bool make_axis_taps(const Axis& axis, int crop, int set_size, int inputs, AxisTaps* taps);

// Sets the taps for phase sets of set_h x set_w, and the grid, of points that have `inputs_w` inputs along W;
// false if an offset leaves 32 bits.
bool set_taps(const Problem& problem, Crop crop, int set_h, int set_w, TileMmaLaunch& launch,
              int inputs_w = 1);

// Whether all phases of every set have the same offsets, so that they may share a block of rows: otherwise a
// row multiplies inputs that its output must not see, by zeros.
bool phases_agree(const AxisTaps& taps);

// Sets launch.max_offsets, and returns the number of offsets summed over the phase sets.
int sum_offsets(TileMmaLaunch& launch);

// Sets the number of tiles from their sizes.
void set_tiles(const Problem& problem, TileMmaLaunch& launch);

// Sets how the input of a tile is read: load_vector and, if it may be, flat_rows.
void set_loads(const Problem& problem, bool may_be_flat, TileMmaLaunch& launch);

// Why no tensor-core kernel can compute a problem, or null.
const char* tensor_core_obstacle(const Problem& problem, const DeviceLimits& device);

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

// The same of `thin`, which has no obstacle of its own.
using ThinVisitor = std::function<void(const ThinLaunch&, double)>;
void visit_thin(const Problem& problem, const DeviceLimits& device, const ThinVisitor& visit);

// The same of `thin_simt`, which has one launch.
const char* thin_simt_obstacle(const Problem& problem, const DeviceLimits& device);
using ThinSimtVisitor = std::function<void(const ThinSimtLaunch&, double)>;
void visit_thin_simt(const Problem& problem, const DeviceLimits& device, const ThinSimtVisitor& visit);

// The same of `col2im`.
const char* col2im_obstacle(const Problem& problem, const DeviceLimits& device);
using Col2imVisitor = std::function<void(const Col2imLaunch&, double)>;
void visit_col2im(const Problem& problem, const DeviceLimits& device, const Col2imVisitor& visit);

// The same of `implicit_gemm`.
const char* implicit_gemm_obstacle(const Problem& problem, const DeviceLimits& device);
using ImplicitGemmVisitor = std::function<void(const ImplicitGemmLaunch&, double)>;
void visit_implicit_gemm(const Problem& problem, const DeviceLimits& device,
                         const ImplicitGemmVisitor& visit);

// The same of `halo_gemm`.
const char* halo_gemm_obstacle(const Problem& problem, const DeviceLimits& device);
void visit_halo_gemm(const Problem& problem, const DeviceLimits& device, const ImplicitGemmVisitor& visit);

// The same of `pixel_gemm`.
const char* pixel_gemm_obstacle(const Problem& problem, const DeviceLimits& device);
using PixelGemmVisitor = std::function<void(const PixelGemmLaunch&, double)>;
void visit_pixel_gemm(const Problem& problem, const DeviceLimits& device, const PixelGemmVisitor& visit);

// The same of `scatter_gemm`.
const char* scatter_gemm_obstacle(const Problem& problem, const DeviceLimits& device);
using ScatterVisitor = std::function<void(const ScatterLaunch&, double)>;
void visit_scatter_gemm(const Problem& problem, const DeviceLimits& device, const ScatterVisitor& visit);

// The same of `phase_gemm`.
const char* phase_gemm_obstacle(const Problem& problem, const DeviceLimits& device);
using PhaseGemmVisitor = std::function<void(const PhaseGemmLaunch&, double)>;
void visit_phase_gemm(const Problem& problem, const DeviceLimits& device, const PhaseGemmVisitor& visit);

// Why `depthwise` cannot compute a problem, or null; and its launch where it can.
const char* depthwise_obstacle(const Problem& problem, const DeviceLimits& device);
DepthwiseLaunch plan_depthwise(const Problem& problem, const DeviceLimits& device);

}  // namespace convt
