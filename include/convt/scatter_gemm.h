// What the plan and the `scatter_gemm` kernel agree on: how outputs are divided among teams of warps, and the
// launch parameters of one problem.
#pragma once

#include <cstddef>
#include <cstdint>

namespace convt {

inline constexpr int kScatterMaxWarps = 8;  // of a thread block
inline constexpr int kScatterPixels = 32;   // of a warp, neighbours along W
inline constexpr int kScatterCouts = 16;    // of a slice
inline constexpr int kScatterSlots = 2;     // of a team: one is filled while the other is copied
inline constexpr int kScatterMaxTeamWarps = 4;
// Channel steps, 32 bytes of every pixel, that are compiled: a warp keeps all channels of its pixels.
inline constexpr int kScatterSteps[] = {2, 4, 8};
inline constexpr int kScatterMaxSteps = 8;

// Along each axis the outputs of an input pixel, stride * pixel - padding + [0, stride), are those of no
// other: the filter, dilated, is not longer than the stride.
//
// An item is a row of input pixels of an image and a strip of its columns, 32 for each warp of a team. Its
// outputs are computed in slices: 16 output channels, and one row of the output. A thread block stays with
// `couts` output channels, whose weight it keeps in shared memory; its teams take items in turn.
struct ScatterLaunch {
  int element_size = 2;
  int parts = 1;  // that operands are split into: two of IEEE float32
  int steps = 2;  // channel steps compiled
  // Both taps along W are multiplied together, and a pixel's two outputs stored side by side: a filter of two
  // columns with a stride of two.
  bool pairs = false;
  int teams = 2, team_warps = 4;
  int couts = kScatterCouts;         // of a thread block, a multiple of 16
  int slots = 2;                     // slices of a team that are on their way
  int pitch = 16;                    // bytes from row to row of a slice
  int first_row = 0, first_col = 0;  // input pixels before them have no outputs; a multiple of four
  bool fills = false;                // some columns are reached by no tap: they are laid out beforehand
  int64_t rows = 1, strips = 1;      // of an image
  int64_t cout_tiles = 1, groups = 1, items = 1;
  int shares = 1;  // thread blocks that divide the items of an output channel tile
  size_t shared_bytes = 0, shared_limit = 0;

  int warps() const { return teams * team_warps; }
  int pixels() const { return kScatterPixels * team_warps; }
  int64_t blocks() const { return cout_tiles * groups * shares; }
};

// The thread block's shared memory, in bytes from its start:
//
//   weight     [tap][block of 16 output channels][step][part][lane] 16 bytes: A fragments; of pairs [row of
//              the filter][block][step][part][tap along W][lane]
//   slots      [team][slot][16 output channels][pitch]
//   bias       [output channel] float
struct ScatterShared {
  size_t slots, bias, bytes;
};

inline ScatterShared scatter_shared(const ScatterLaunch& launch, int64_t taps) {
  ScatterShared s;
  s.slots = static_cast<size_t>(taps) * (launch.couts / kScatterCouts) * launch.steps * launch.parts * 512;
  s.bias = s.slots + static_cast<size_t>(launch.teams) * kScatterSlots * kScatterCouts * launch.pitch;
  s.bytes = s.bias + sizeof(float) * launch.couts;
  return s;
}

}  // namespace convt
