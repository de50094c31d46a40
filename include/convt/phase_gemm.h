// What the plan and the `phase_gemm` kernel agree on: how outputs are divided among thread blocks and warps,
// and the launch parameters of one problem.
#pragma once

#include <cstddef>
#include <cstdint>

#include "convt/phases.h"

namespace convt {

inline constexpr int kPhaseGemmWarps = 4;    // of a thread block
inline constexpr int kPhaseGemmPlaces = 32;  // of a warp's product, neighbours along W
inline constexpr int kPhaseGemmCouts = 16;   // of a warp's product
inline constexpr int kPhaseGemmSlots = 2;    // one is filled while the other is copied
// Bytes that a step takes when it has no second vector: all that a lane may read from there.
inline constexpr int kPhaseGemmZeroBytes = 272;
inline constexpr int kPhaseGemmMaxPhases = 256;
inline constexpr int kPhaseGemmQuad = 4;  // neighbours along W that are read at once

// How the input is read: 16 bytes of a pixel's channels, four neighbours along W of a channel, or single
// elements.
enum class PhaseGemmLoads { kVectors, kQuads, kElements };

// Thread blocks that a multiprocessor has registers for.
constexpr int phase_gemm_resident(int parts, bool channels_last) {
  return parts == 1 && !channels_last ? 5 : 4;
}

// A place is an input pixel, or one beside the image, and stride_h * stride_w outputs, its phases: those
// whose coordinates o + padding lie in [stride * place, stride * (place + 1)) (the bases of convt/phases.h).
//
// A thread block stays with one or more whole groups, or with some output channels of one, and keeps their
// weight in shared memory. It takes items in turn: `rows` x `cols` places of an image, whose input, with the
// halo of the filter, is brought to shared memory once. A slice is one row of the item's outputs.
struct PhaseGemmLaunch {
  int element_size = 2;
  int parts = 1;  // that operands are split into: two of IEEE float32
  bool channels_last = false;
  int rows = 1, cols = kPhaseGemmPlaces;  // of an item; a multiple of kPhaseGemmPlaces along W
  int groups = 1;                         // of a thread block
  int blocks = 1;                         // of kPhaseGemmCouts output channels, of each of them
  int channels = 1;                       // output channels of a thread block, or the least there are
  int chunks = 1;                         // 16 bytes of channels of a group
  int steps = 1;                          // of all phases; two taps and chunks each
  PhaseGemmLoads loads = PhaseGemmLoads::kElements;
  int pitch = 0;       // of NCHW, in bytes from a slice's output channel to the next
  int halo_w = 0;      // pixels before the item's first place that are brought too; of quads whole ones
  bool fills = false;  // some columns are reached by no tap of any row
  AxisPhases<int> phases_h, phases_w;
  int first_row = 0, first_col = 0;              // the least place that has outputs
  int64_t place_rows = 1;                        // places along H that have outputs
  int64_t bands = 1, strips = 1;                 // of an image
  int64_t tiles = 1, cout_tiles = 1, items = 1;  // tiles: of groups, or of one group's output channels
  int shares = 1;                                // thread blocks that divide the items of a tile
  size_t shared_bytes = 0, shared_limit = 0;

  size_t load_bytes() const {
    return static_cast<size_t>(loads == PhaseGemmLoads::kVectors ? 16
                               : loads == PhaseGemmLoads::kQuads ? kPhaseGemmQuad * element_size
                                                                 : element_size);
  }
  int64_t blocks_of_grid() const { return tiles * shares; }
};

// The thread block's shared memory, in bytes from its start:
//
//   planes   [part][group][chunk][row][column] 16 bytes: the item's input and its halo, 8 channels of 16 bits
//            or 4 of float32
//   weight   [step][group][block of 16 output channels][part][lane] 16 bytes: A fragments
//   slots    [slot] of NCHW [output channel][pitch], of NHWC [output column][output channel]
//   zeros
//   table    [step][2] where the inputs of a step's vectors lie, counted from a place's own in the first
//   plane begins   [phase] the first step, and behind the last phase the number of steps bias     [output
//   channel] float line     [output channel] element: the bias, rounded
struct PhaseGemmShared {
  int input_rows, input_cols, plane;  // of the item; plane: pixels from plane to plane
  int pitch;                          // bytes from a slot's output channel to the next, or column to column
  int slot_bytes;
  size_t weight, slots, zeros, table, begins, bias, line, bytes;
};

inline PhaseGemmShared phase_gemm_shared(const PhaseGemmLaunch& launch) {
  constexpr size_t kPiece = 16;
  const auto whole_pieces = [](size_t bytes) { return (bytes + kPiece - 1) / kPiece * kPiece; };
  const int size = launch.element_size, stride_w = launch.phases_w.stride;
  PhaseGemmShared s;
  s.input_rows = launch.rows + largest_shift(launch.phases_h);
  s.input_cols = launch.cols + launch.halo_w;
  // An odd number: neighbouring chunks of a pixel lie in different banks.
  s.plane = s.input_rows * s.input_cols | 1;
  const int row_bytes = launch.cols * stride_w * size;
  if (launch.channels_last) {
    s.pitch = launch.channels * size;
    s.slot_bytes = static_cast<int>(whole_pieces(static_cast<size_t>(row_bytes) * launch.channels + kPiece));
  } else {
    s.pitch = launch.pitch;
    s.slot_bytes = launch.channels * s.pitch;
  }
  s.weight = kPiece * s.plane * launch.parts * launch.groups * launch.chunks;
  s.slots = s.weight + size_t{512} * launch.steps * launch.groups * launch.blocks * launch.parts;
  s.zeros = s.slots + static_cast<size_t>(kPhaseGemmSlots) * s.slot_bytes;
  s.table = s.zeros + kPhaseGemmZeroBytes;
  s.begins = s.table + 2 * sizeof(int) * launch.steps;
  s.bias = s.begins + sizeof(int) * (static_cast<size_t>(launch.phases_h.stride) * stride_w + 1);
  s.line = whole_pieces(s.bias + sizeof(float) * launch.channels);
  s.bytes = s.line + static_cast<size_t>(size) * launch.channels;
  return s;
}

}  // namespace convt
