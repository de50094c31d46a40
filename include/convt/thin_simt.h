// What the plan and the `thin_simt` kernel agree on: the filters that it is compiled for, how outputs are
// divided among thread blocks, and the launch parameters of one problem.
#pragma once

#include <cstddef>
#include <cstdint>

#include "convt/macros.h"
#include "convt/problem.h"

namespace convt {

inline constexpr int kThinSimtWarps = 4;    // of a thread block: they divide the channels between them
inline constexpr int kThinSimtColumns = 4;  // bases (convt/phases.h) of a thread, neighbours along W
inline constexpr int kThinSimtQuads = 32;   // such fours of a thread block, one of each lane

// A filter as both axes have it, and the output channels of a group: constants of a kernel. And the part of
// the padding along W that is one: output o sits at o + padding - cropped, and its base that much nearer to
// its inputs. With all of a usual padding cropped, fours of bases end where rows of inputs do.
struct ThinSimtFilter {
  int kernel, stride, couts, cropped;

  constexpr int taps() const { return (kernel + stride - 1) / stride; }  // of a phase, at most, along an axis
  constexpr int weights() const { return couts * kernel * kernel; }      // of an input channel
  constexpr int pitch() const { return (weights() + 3) / 4 * 4; }
  // Bases of a thread along H: two where sums and inputs leave registers over.
  constexpr int rows() const { return couts * stride * stride <= 6 && taps() <= 3 ? 2 : 1; }
  constexpr int sums() const { return couts * stride * stride * kThinSimtColumns * rows(); }  // of a thread
  // Columns of inputs before a thread's bases, and behind them.
  constexpr int before() const { return (kernel - 1 - cropped) / stride; }
  constexpr int behind() const { return (stride - 1 + cropped) / stride; }
  // Along W, the phase that a tap reaches, and the columns from such an output's base to the input that the
  // tap multiplies.
  CONVT_HOST_DEVICE constexpr int phase_of(int tap) const {
    return (tap - cropped + kernel * stride) % stride;
  }
  CONVT_HOST_DEVICE constexpr int columns_to(int tap) const {
    return (phase_of(tap) + cropped - tap) / stride;
  }
  constexpr int inputs() const { return (rows() + taps() - 1) * (before() + kThinSimtColumns + behind()); }
  // Channels whose inputs a thread holds.
  constexpr int buffers() const { return inputs() <= 12 && sums() <= 48 ? 3 : 2; }
  // Thread blocks of a multiprocessor for which registers suffice.
  constexpr int resident() const { return taps() > 2 && sums() + buffers() * inputs() > 80 ? 3 : 4; }
  // Channels whose products may be summed before the sum is added to a total; and so many at a time, a
  // multiple of buffers(), unless they are the last.
  constexpr int most_channels() const { return kMaxSummedProducts / (taps() * taps()); }
  constexpr int channels() const { return most_channels() / buffers() * buffers(); }
};

// Last layers of generators (kernels of 3 to 5), of super-resolution networks (9). Of the same filter, those
// that crop more come first.
inline constexpr ThinSimtFilter kThinSimtFilters[] = {
    {4, 2, 1, 1}, {4, 2, 2, 1}, {4, 2, 3, 1}, {4, 2, 4, 1}, {3, 2, 1, 1}, {3, 2, 3, 1},
    {5, 2, 3, 2}, {4, 2, 1, 0}, {4, 2, 2, 0}, {4, 2, 3, 0}, {4, 2, 4, 0}, {3, 2, 1, 0},
    {3, 2, 3, 0}, {5, 2, 1, 0}, {5, 2, 3, 0}, {9, 2, 1, 0}, {9, 3, 1, 0}, {9, 4, 1, 0}};
inline constexpr int kThinSimtFilterCount =
    static_cast<int>(sizeof(kThinSimtFilters) / sizeof(kThinSimtFilters[0]));

struct ThinSimtLaunch {
  int filter = 0;                    // of kThinSimtFilters
  int first_row = 0, first_col = 0;  // the first bases; the column is a multiple of four
  int row_sets = 1, col_sets = 1;    // of rows() and of four bases, that cover an image
  int64_t tiles = 1, groups = 1;     // of 32 fours; of a group
  bool dense_weight = false;         // the weights of input channels follow each other in memory
  size_t shared_bytes = 0, shared_limit = 0;

  const ThinSimtFilter& shape() const { return kThinSimtFilters[filter]; }
  int64_t blocks() const { return tiles * groups; }
};

// The thread block's shared memory, in bytes from its start:
//
//   weight   [channel][pitch] float
//   totals   [warp][output channel][row][phase along H][quad][base][phase along W] float
//   places   [quad] 16 bytes: where its outputs lie
struct ThinSimtShared {
  size_t totals, warp_totals, places, bytes;  // warp_totals: of a warp
};

inline ThinSimtShared thin_simt_shared(const ThinSimtFilter& filter, int64_t channels) {
  ThinSimtShared s;
  s.totals = sizeof(float) * static_cast<size_t>(channels * filter.pitch());
  s.warp_totals = sizeof(float) * static_cast<size_t>(filter.sums() * kThinSimtQuads);
  s.places = s.totals + kThinSimtWarps * s.warp_totals;
  s.bytes = s.places + size_t{16} * kThinSimtQuads;
  return s;
}

}  // namespace convt
