// What the plan and the `implicit_gemm` kernel agree on: how outputs are divided among thread blocks, and the
// launch parameters of one problem.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "convt/macros.h"
#include "convt/phases.h"
#include "convt/problem.h"

namespace convt {

// A thread block multiplies `rows` output channels with at most `pixels` pixels of a phase. Two warpgroups
// divide the rows between them or, where there are 64, the pixels; or they take turns: one stores its tile
// while the other multiplies the next one.
struct ImplicitGemmConfig {
  int rows, pixels;
  bool alternates;
  // Of halo_gemm, whose warpgroups divide the pixels always. A single one leaves room for a second thread
  // block, which multiplies while this one stores.
  bool single = false;
  // Of halo_gemm: taps of a row of the filter that products take together. Their columns are [tap][output
  // channel] then, and a warpgroup's sums are of 64 inputs of one row, of which as many outputs are complete
  // but for one less than the taps.
  int row_taps = 1;

  constexpr int groups() const { return row_taps > 1 ? pixels / 64 : single ? 1 : 2; }
  // Of a warpgroup.
  constexpr int columns() const { return alternates || single || rows == 128 ? pixels : pixels / 2; }
  // Warpgroups between which a tile's pixels are divided.
  constexpr int shares() const { return pixels / columns(); }
  // Of halo_gemm, whether a warpgroup has registers for the sums of a tile: of `phases`, or for those of
  // split operands, which are there twice more.
  constexpr bool fits_halos(int phases, int parts) const {
    const int sums = rows * pixels / groups(), least = 64 * 64;
    // Four warpgroups have no registers for split operands, and two are slower than they where there are.
    if (row_taps > 1) return phases == 1 && parts == (groups() > 2 ? 1 : 2);
    // Products of smaller tiles wait for shared memory: they are for split operands.
    if (rows == 64 && sums == least) return parts > 1;
    return parts > 1 ? sums <= least : sums * phases <= 128 * 128;
  }
};

// The configurations compiled. The plan refers to them by index.
inline constexpr ImplicitGemmConfig kImplicitGemmConfigs[] = {
    {128, 256, false}, {128, 128, false}, {64, 256, false}, {128, 128, true}, {64, 256, true}};
inline constexpr int kImplicitGemmConfigCount =
    static_cast<int>(sizeof(kImplicitGemmConfigs) / sizeof(kImplicitGemmConfigs[0]));
// Those of halo_gemm.
inline constexpr ImplicitGemmConfig kHaloGemmConfigs[] = {
    {128, 256, false},          {128, 128, false},          {64, 256, false},
    {64, 128, false, true},     {32, 128, false, true},     {64, 64, false, true},
    {64, 192, false, false, 3}, {32, 256, false, false, 3}, {32, 128, false, false, 3}};
inline constexpr int kHaloGemmConfigCount =
    static_cast<int>(sizeof(kHaloGemmConfigs) / sizeof(kHaloGemmConfigs[0]));

inline constexpr int kImplicitGemmGroups = 2;  // warpgroups that multiply
inline constexpr int kImplicitGemmLine = 128;  // bytes
inline constexpr int kImplicitGemmBlock = 64;  // pixels that lie side by side, of NCHW
inline constexpr int kImplicitGemmMaxStages = 8;
inline constexpr int kImplicitGemmColumnStep = 16;  // of the columns of a product
inline constexpr int kImplicitGemmMaxSplits = 8;    // blocks of a cluster
inline constexpr int kImplicitGemmWarpRows = 16;    // of a product
inline constexpr int kHaloGemmRowColumns = 72;      // of halos of NCHW whose taps are taken together
inline constexpr int kHaloGemmWorks = 2;            // pieces of work that halo_gemm prepares
inline constexpr size_t kHaloGemmWorkBytes = 64;    // of each, besides places and biases

// Outputs are numbered by places and phases along each axis: output o is phase o mod stride of place o div
// stride, and has the same taps as the same phase of any other place. A piece of work is some output channels
// of one phase, or of two neighbours along W, of a tile of places:
//
//   lines    of NHWC: `images` x `rows` x `cols` places, or `cols` successive pixels where `flat`
//   blocks   of NCHW: successive blocks of 64 columns of a row or, where `flat`, of an image's pixels
//
// Flat tiles take pixels as they follow each other in memory, where every output sees the one input that has
// its place.
//
// Of NCHW, neighbouring phases can be rows of one product: where `fold`, a power of two, divides stride,
// filter, padding and output along an axis, the outputs of a channel are those of `fold` channels of a
// smaller problem, side by side (`folded`). Everything but the weight's layout and the stores sees the
// smaller problem.
//
// Where a folded problem has one phase left, its outputs are boxes of the output. Each warp puts those of its
// rows together in shared memory, and tensor copies write them while the next products are summed.
struct ImplicitGemmBox {
  int count = 0;                       // of a warpgroup's places, in their order; 0 where lines are stored
  int images = 1, rows = 1, cols = 1;  // places of one
  // Elements of the output that are a row of a copy. Of whole rows of images, which follow each other in
  // memory, as many as suit copies, whatever the length of the output's rows.
  int side = 0;
  bool whole_rows = false;
  bool halves = false;  // eight of a warp's rows are put together at a time, not all 16

  int places() const { return images * rows * cols; }
  int product_rows() const { return kImplicitGemmWarpRows / (halves ? 2 : 1); }
};

struct ImplicitGemmLaunch {
  int config = 0;
  int element_size = 2;
  int parts = 1;               // that the operands are split into: two of IEEE float32
  int fold_h = 1, fold_w = 1;  // a row of a product: [output channel][phase along H][phase along W]
  bool blocks = false, flat = false;
  int images = 1, rows = 1, cols = 1;  // of a tile of lines
  AxisPhases<int> phases_h, phases_w;
  int64_t places_h = 1, places_w = 1;  // of an image
  int phases_together = 1;             // along W
  // Pieces of work: thread blocks of a cluster take `cluster_rows` tiles of output channels of
  // `cluster_pixels` tiles of places, and load for each other what they share.
  int cluster_rows = 1, cluster_pixels = 1;
  // Or the blocks of a cluster divide the chunks of one piece of work between them, and do no other.
  int splits = 1;
  int64_t cout_tiles = 1, tiles_w = 1, tiles_h = 1, image_tiles = 1, groups = 1;
  int64_t pixel_tiles = 1;
  int chunks = 1;  // of a line's channels
  int stages = 2;
  // What is laid out first, in the workspace: the input with its channels side by side, the weight with its
  // output channels (of float32, its channels); of split operands both, the second parts of all after the
  // first.
  bool turns_input = false, turns_weight = false;
  // Of halo_gemm, which copies halos of the input as they lie (convt/device/halo_gemm.cuh): `halo_cols`
  // columns, of which products take those of all taps of a row of the filter.
  bool halos = false;
  bool halo_lines = false;  // of NHWC: lines of channels
  int halo_cols = 0, halo_stages = 0;
  bool keeps_weight = false;  // each stage has its part for all works of a thread block
  // Of flat tiles whose phases are all columns of one product: the outputs of a channel are put together in
  // shared memory as they follow each other in an image, and bulk copies write such runs while the next
  // products are summed.
  bool halo_runs = false;
  // Where not zero, an image's rows are copied as parts of one long row, this many columns from one row of a
  // tile to the next: those of the image, or of a flat tile. A copy then brings `halo_rows` of them in one
  // piece, and products take zeros for what lies beside the image.
  int halo_pitch = 0, halo_rows = 1;
  int64_t padded_cin = 0, padded_cout = 0;  // multiples of 16 bytes
  size_t weight_offset = 0, workspace_bytes = 0;
  int store_elements = 1;  // of one instruction, at most 16 bytes
  ImplicitGemmBox box;
  size_t shared_bytes = 0, shared_limit = 0;
  int grid = 1;

  const ImplicitGemmConfig& sizes() const {
    return halos ? kHaloGemmConfigs[config] : kImplicitGemmConfigs[config];
  }
  // Of a warpgroup's products: the least that hold its share of a tile of lines; of blocks, all. And the
  // lines of a stage.
  int columns() const {
    if (blocks) return sizes().columns();
    const int step = kImplicitGemmColumnStep * sizes().shares();
    return (images * rows * cols + step - 1) / step * kImplicitGemmColumnStep;
  }
  int lines() const { return halos ? 0 : columns() * sizes().shares(); }
  int chunk() const { return kImplicitGemmLine / element_size; }
  size_t halo_bytes() const {
    // Of taps together, a row that warpgroups share.
    const int copied = sizes().row_taps > 1 ? 1 : images * (rows / halo_rows);
    return size_t{1} * copied * halo_cols * kImplicitGemmLine;
  }
  int fold() const { return fold_h * fold_w; }
  bool shares_copies() const { return cluster_rows * cluster_pixels > 1; }
  int cluster() const { return cluster_rows * cluster_pixels * splits; }
  int64_t phases() const { return int64_t{phases_h.stride} * phases_w.stride / phases_together; }
  int64_t cout_groups() const { return (cout_tiles + cluster_rows - 1) / cluster_rows; }
  int64_t pixel_groups() const { return (pixel_tiles + cluster_pixels - 1) / cluster_pixels; }
  // Of a cluster.
  int64_t works() const { return cout_groups() * pixel_groups() * phases() * groups; }
};

// The problem whose output channels are [output channel][fold_h][fold_w]. Its weight lies as the problem's
// where those follow each other in memory; else the strides of output channels and taps are zero.
inline Problem folded(const Problem& problem, int fold_h, int fold_w) {
  Problem smaller = problem;
  const int64_t fold = int64_t{fold_h} * fold_w;
  if (fold == 1) return smaller;
  const auto shrink = [](Axis& axis, int by) {
    for (int64_t* size : {&axis.output, &axis.kernel, &axis.stride, &axis.padding, &axis.output_padding})
      *size /= by;
  };
  shrink(smaller.h, fold_h);
  shrink(smaller.w, fold_w);
  smaller.cout_per_group *= fold;
  const WeightStrides& w = problem.weight_stride;
  const bool dense = (fold_w == 1 || w.kw == 1) && (fold_h == 1 || w.kh == fold_w) &&
                     (problem.cout_per_group == 1 || w.cout == fold);
  smaller.weight_stride = {w.cin, dense ? 1 : 0, dense ? w.kh * fold_h : 0, dense ? w.kw * fold_w : 0};
  return smaller;
}

// The block's shared memory, in bytes from its start, which is a multiple of 1024:
//
//   stages     [stages] weight, then input, in lines of 128 bytes whose 16-byte pieces are swapped, piece i
//              of line j in place i ^ j % 8. Of 16-bit types the weight is [64 rows][chunk channel][64
//              rows], the input [pixel][chunk channel] or, of blocks, [64 pixels][chunk channel][64 pixels].
//              Of float32 both are [part][row or pixel][chunk channel].
//   halos      of halo_gemm, whose stages have no input: [stages of them][image][row][chunk channel][column]
//              or, of parts of long rows, [part][image][chunk channel][column]; of NHWC [image][row][column]
//              [chunk channel], in lines as those of the stages
//   output     [warpgroup] lines of the output, padded; or [warpgroup][warp] boxes of it; of taps together,
//              what one warp passes to the next before lines; or, of all warpgroups, runs of the output:
//              [output channel][image][place], with all phases of the places
//   places     [warpgroup][columns] 8 bytes: where they lie in the output; 4 bytes: where in a box. Of
//              halo_gemm, HaloWorks
//   barriers   [stages] full, [stages] empty; the same of the halos
struct ImplicitGemmShared {
  size_t weight_bytes, stage_bytes, output, output_bytes, places, barriers, bytes;  // output_bytes: of one
  size_t halos, halo_bytes;
};

inline constexpr size_t kImplicitGemmOutputPitch = kImplicitGemmLine + 16;
// Of a warpgroup: 16 lines of each warp, or a line for each of 64 pixels.
inline constexpr size_t kImplicitGemmOutputBytes = 64 * kImplicitGemmOutputPitch;

// Of taps together, for each warpgroup: what one warp passes to the next; and then lines of the output, of
// NCHW those of some output channels, of 64 places each, of NHWC those of 32 places.
constexpr size_t halo_gemm_passed_bytes(const ImplicitGemmConfig& sizes) {
  return size_t{4} * (sizes.row_taps - 1) * sizes.rows * sizeof(float);
}
inline constexpr int kHaloGemmLineCouts = 32;
inline constexpr size_t kHaloGemmLinePitch = 68 * sizeof(float);
constexpr size_t halo_gemm_place_pitch(const ImplicitGemmConfig& sizes) {
  return (size_t{1} * sizes.rows + 8) * sizeof(float);
}

// Where outputs leave in runs, those of some columns of the products are put together at a time, in one of
// two buffers: copies read the other.
inline constexpr int kHaloGemmRunBuffers = 2, kHaloGemmRunColumns = 32;
// Tiles of fewer places gained nothing, and nor did those whose operands are split.
constexpr bool halo_gemm_stores_runs(const ImplicitGemmConfig& sizes, int parts) {
  return sizes.rows == 128 && sizes.pixels == 256 && parts == 1;
}
// From the runs of an output channel to those of the next. The four lanes that have the same place write
// eight bytes each, of four channels or of two: they lie in different banks.
inline size_t halo_gemm_run_pitch(const ImplicitGemmLaunch& launch) {
  const size_t bytes = size_t{1} * launch.images * launch.rows * launch.cols * launch.fold() * sizeof(float);
  const size_t banks = launch.fold() == 2 ? 32 : 64;
  return (bytes + kImplicitGemmLine - 1 - banks) / kImplicitGemmLine * kImplicitGemmLine + banks;
}
// Of a buffer.
inline size_t halo_gemm_run_bytes(const ImplicitGemmLaunch& launch) {
  return kHaloGemmRunColumns / launch.fold() * halo_gemm_run_pitch(launch);
}

// Of a warp's boxes, a multiple of what tensor copies begin at.
inline size_t implicit_gemm_box_bytes(const ImplicitGemmLaunch& launch) {
  const ImplicitGemmBox& box = launch.box;
  const size_t bytes = size_t{1} * box.product_rows() * box.count * box.places() * launch.element_size;
  return (bytes + kImplicitGemmLine - 1) / kImplicitGemmLine * kImplicitGemmLine;
}

// Slices of a row's outputs: 128 bytes, of all phases together, of so many columns of the products.
CONVT_HOST_DEVICE constexpr int implicit_gemm_slices(int columns, int element_size, int phases = 1) {
  const int places = kImplicitGemmLine / element_size / phases;
  return (columns + places - 1) / places;
}

// Of the sums that a block takes over from others with which it divides channels, in the stages.
inline size_t implicit_gemm_split_bytes(const ImplicitGemmLaunch& launch) {
  const int slice = kImplicitGemmLine / launch.element_size;  // columns
  const int slices = implicit_gemm_slices(launch.columns(), launch.element_size);
  const size_t own = static_cast<size_t>((slices + launch.splits - 1) / launch.splits);
  return static_cast<size_t>(launch.splits - 1) * own * slice * 64 * sizeof(float) * kImplicitGemmGroups;
}

inline ImplicitGemmShared implicit_gemm_shared(const ImplicitGemmLaunch& launch) {
  const ImplicitGemmConfig& sizes = launch.sizes();
  ImplicitGemmShared s;
  const size_t line_bytes = static_cast<size_t>(launch.parts) * kImplicitGemmLine;
  s.weight_bytes = sizes.rows * sizes.row_taps * line_bytes;
  s.stage_bytes = s.weight_bytes + launch.lines() * line_bytes;
  s.halos = launch.stages * s.stage_bytes;
  const size_t halo_alignment = launch.halo_lines ? 1024 : kImplicitGemmLine;
  s.halo_bytes = (launch.halo_bytes() + halo_alignment - 1) / halo_alignment * halo_alignment;
  s.output = (s.halos + launch.halo_stages * s.halo_bytes + 1023) / 1024 * 1024;
  s.output_bytes = std::max(kImplicitGemmOutputBytes, 4 * implicit_gemm_box_bytes(launch));
  if (sizes.row_taps > 1) {
    const size_t lines =
        launch.halo_lines ? 32 * halo_gemm_place_pitch(sizes) : kHaloGemmLineCouts * kHaloGemmLinePitch;
    s.output_bytes = halo_gemm_passed_bytes(sizes) + lines;
  }
  if (launch.halo_runs) {
    const size_t buffers = kHaloGemmRunBuffers * halo_gemm_run_bytes(launch);
    const size_t each = buffers / sizes.groups() + kImplicitGemmLine - 1;
    s.output_bytes = std::max(s.output_bytes, each / kImplicitGemmLine * kImplicitGemmLine);
  }
  s.places = s.output + sizes.groups() * s.output_bytes;
  const size_t halo_works =
      kHaloGemmWorks * (kHaloGemmWorkBytes + size_t{8} * sizes.pixels + size_t{4} * sizes.rows);
  s.barriers = s.places + (launch.halos ? halo_works : size_t{8} * kImplicitGemmGroups * sizes.columns());
  const int rings = launch.stages + (launch.halos ? launch.halo_stages + kHaloGemmWorks : 0);
  s.bytes = s.barriers + size_t{16} * rings;
  return s;
}

}  // namespace convt
