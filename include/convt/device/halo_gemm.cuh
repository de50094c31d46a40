// halo_gemm: implicit_gemm (convt/device/implicit_gemm.cuh) of float32, as it lies. Tensor cores want
// channels side by side in shared memory, rounded or split, and to lay the input out like this is a pass over
// memory. Here the operands change places. Rows of a product are output places, its columns output channels,
// and the rows come from registers, which may be filled in any order and computed on the way:
//
//   A   a halo of the input, as tensor copies bring it: rounded to TF32, or whole. Lanes read fragments of 16
//       places and 8 channels, and split them in IEEE. The taps of a row of the filter read the same halo,
//       each from another column on; so do those of two phases along W that are multiplied together.
//         NCHW   [image][row][chunk channel][column], read word by word. Copies begin at multiples of 16
//                bytes, so there are up to three columns more on the left. The halo's width is such that the
//                four channels and eight places of lanes that read together are in different banks
//                (plan_implicit_gemm.cpp). A copy takes as long for a short row as for one of 128 bytes: rows
//                that follow each other in memory may be copied as one, and lanes then take zeros for what
//                lies beside the image.
//         NHWC   [image][row][column][chunk channel], in swizzled lines of 128 bytes, read by ldmatrix: a row
//                of eight words of 16 bits is one of four words of 32
//   B   the weight, [output channel][chunk channel] of a tap, in lines of 128 bytes
//
// A thread block's warpgroups, all but the last, divide the places of a tile, and read the next fragments
// while they multiply. Of the last one a thread loads weights, another one halos, and two warps prepare the
// next piece of work.
//
// IEEE float32: turn_operands has split the weight, and lanes split the input. As in implicit_gemm, sums of
// few products are taken over by fp32 sums, and those with second parts are apart.
#pragma once

#include "convt/device/implicit_gemm.cuh"
#include "convt/device/wgmma.cuh"

namespace convt {
namespace implicit_gemm {

inline constexpr int kPreparers = 64;  // threads

// How halos lie: rows of NCHW by themselves, or parts of long rows; lines of channels of NHWC.
enum class HaloLayout { kRows, kLongRows, kLines };

template <int kIndex, int kOperandParts, HaloLayout kLayout>
struct HaloConfig {
  static constexpr bool kLongRows = kLayout == HaloLayout::kLongRows, kLines = kLayout == HaloLayout::kLines;
  static constexpr ImplicitGemmConfig kSizes = kHaloGemmConfigs[kIndex];
  static constexpr int kTileRows = kSizes.rows;  // output channels: columns of products
  static constexpr int kPixels = kSizes.pixels;
  static constexpr int kWarpgroups = kSizes.groups(), kMultiplyingWarps = 4 * kWarpgroups;
  static constexpr int kBlockThreads = 128 * kWarpgroups + 128;
  static constexpr int kResidentBlocks = kWarpgroups == 1 ? 2 : 1;  // of a multiprocessor
  static constexpr int kMultiplierRegisters = kWarpgroups == 1   ? 216
                                              : kWarpgroups == 2 ? kMultiplyRegisters
                                              : kWarpgroups == 3 ? 160
                                                                 : 104;
  static constexpr int kOthersRegisters = kWarpgroups == 3 ? 32 : kLoadRegisters;
  static constexpr int kColumns = kPixels / kWarpgroups;  // places of a warpgroup
  static constexpr int kPlaceTiles = kColumns / kRows;    // products that take them
  static constexpr int kRowTaps = kSizes.row_taps;
  static constexpr int kWeightLines = kTileRows * kRowTaps;       // columns of a product
  static constexpr int kSumColumns = kPlaceTiles * kWeightLines;  // of all products
  static constexpr int kParts = kOperandParts;
  static_assert(kRowTaps == 1 || (kRowTaps % 2 == 1 && kColumns == kRows && !kLongRows));
  static constexpr unsigned kPassedBytes = static_cast<unsigned>(halo_gemm_passed_bytes(kSizes));
  static constexpr unsigned kPlacePitch = static_cast<unsigned>(halo_gemm_place_pitch(kSizes));
  // Rows i and i + 8 of a warp's 16 are neighbours along W: of taps together most sums move on to a
  // neighbour.
  static constexpr bool kNeighbours = kRowTaps > 1 && !kLines;
  static constexpr bool kPairs = !kLines && kSizes.fits_halos(2, kParts);
  // That outputs may leave in.
  static constexpr bool kRuns = kLayout == HaloLayout::kRows && halo_gemm_stores_runs(kSizes, kParts);
  // Products of a place tile whose fragments are read together: two tiles of places and two phases, or two
  // parts, leave registers for fewer.
  static constexpr int kStepsAtOnce = kPlaceTiles == 2 && (kParts > 1 || kSumColumns == 128) ? 2 : kSteps;
  static constexpr int kTurns = kSteps / kStepsAtOnce;
  static constexpr bool kHalos = true, kBlocks = false, kNarrow = false, kSplits = false;
  static constexpr bool kDividesRows = false, kDividesPixels = true;
};

// The taps of a piece of work along W, of one phase or of two, and the columns of a halo that they read.
template <typename C, typename T>
struct HaloTaps {
  PhaseTaps first, second;
  int column = 0;       // where the halo begins, for place 0 of an image's row
  int offsets[2] = {};  // of each phase's first tap's input, from there; that of the next tap lies before it

  __device__ HaloTaps(const Params<T>& p, const Work& work, int place)
      : first(taps_along_w(p, work.phase_w)), second(first) {
    if (p.phases_together == 1) {
      second.count = 0;
    } else {
      second = taps_along_w(p, work.phase_w + 1);
    }
    const auto least = [&p](const PhaseTaps& taps) {
      return taps.shift - (taps.count - 1) * p.phases_w.shift_step;
    };
    const int before = second.count == 0  ? least(first)
                       : first.count == 0 ? least(second)
                                          : min(least(first), least(second));
    constexpr int kAlignment = C::kLines ? 1 : kTensorAlignment / static_cast<int>(sizeof(T));
    column = (place + before) & ~(kAlignment - 1);
    offsets[0] = place + first.shift - column;
    offsets[1] = place + second.shift - column;
  }
  __device__ int count() const { return first.count + second.count; }
};

// A place in a ring of stages.
struct Turn {
  int stage = 0, parity;

  __device__ void next(int stages) {
    if (++stage == stages) stage = 0, parity ^= 1;
  }
};

// The addresses of the rings' barriers.
struct HaloBarriers {
  unsigned full, empty, halo_full, halo_empty, work_full, work_empty;
};

// Arrives once for all lanes of the warp.
__device__ inline void arrive_as_warp(unsigned barrier) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) arrive(barrier);
}

// Calls visit(work) for this block's works.
template <typename C, typename T, typename Visit>
__device__ inline void visit_works(const Params<T>& p, const Visit& visit) {
  for (int number = first_work<C>(p); number < p.works; number += p.clusters) visit(locate<C>(p, number));
}

// Calls visit(row of the filter, shift along H, chunk) for each halo of a piece of work.
template <typename C, typename T, typename Visit>
__device__ inline void visit_halos(const Params<T>& p, const Work& work, const HaloTaps<C, T>& taps,
                                   const Visit& visit) {
  const PhaseTaps h = taps_along_h(p, work.phase_h);
  if (taps.count() == 0) return;
#pragma unroll 1
  for (int i = 0; i < h.count; ++i) {
#pragma unroll 1
    for (int chunk = 0; chunk < p.chunks; ++chunk)
      visit(h.first + i * p.phases_h.tap_step, h.shift - i * p.phases_h.shift_step, chunk);
  }
}

template <typename C, typename T>
__device__ inline void load_weights(const Params<T>& p, unsigned stages, const HaloBarriers& barriers) {
  const Loader<C, T> loader{p};
  prefetch_map(p.weight_map);
  if (p.after_turning) wait_for_previous_kernel();
  Turn turn = {0, 1};
  const auto load_tap = [&](const Work& work, int tap_h, int tap_w, int chunk) {
    wait(barriers.empty + 8 * turn.stage, turn.parity);
    const unsigned full = barriers.full + 8 * turn.stage;
    arrive_and_expect(full, p.expected_bytes);
    loader.weight(work, tap_h, tap_w, chunk * Loader<C, T>::kChunk,
                  stages + turn.stage * static_cast<unsigned>(p.shared.stage_bytes), full);
    turn.next(p.stages);
  };
  const auto load = [&](const Work& work) {
    if constexpr (C::kRowTaps > 1) {
      // In the order in which a warpgroup takes the rows of the input.
      const PhaseTaps h = taps_along_h(p, work.phase_h);
#pragma unroll 1
      for (int chunk = 0; chunk < p.chunks; ++chunk) {
#pragma unroll 1
        for (int i = h.count - 1; i >= 0; --i) load_tap(work, h.first + i * p.phases_h.tap_step, 0, chunk);
      }
    } else {
      const HaloTaps<C, T> taps(p, work, 0);
      visit_halos(p, work, taps, [&](int tap_h, int, int chunk) {
#pragma unroll 1
        for (int i = 0; i < taps.count(); ++i) {
          const int tap_w = i < taps.first.count
                                ? taps.first.first + i * p.phases_w.tap_step
                                : taps.second.first + (i - taps.first.count) * p.phases_w.tap_step;
          load_tap(work, tap_h, tap_w, chunk);
        }
      });
    }
  };
  if (p.keeps_weight) {
    const int number = first_work<C>(p);
    if (number < p.works) load(locate<C>(p, number));
  } else {
    visit_works<C>(p, load);
  }
}

// Where the box of a halo begins.
template <typename C>
__device__ inline BoxPlace halo_box(int channel, int column, int row, int image, int group) {
  return C::kLines ? BoxPlace{channel, column, row, image, group}
                   : BoxPlace{column, channel, row, image, group};
}

// A stage of halos that may be filled: where it lies, and the barrier that its copies count towards.
struct HaloStage {
  unsigned to, full;
};

template <typename T>
__device__ inline HaloStage next_halo(const Params<T>& p, unsigned halos, const HaloBarriers& barriers,
                                      Turn& turn) {
  wait(barriers.halo_empty + 8 * turn.stage, turn.parity);
  const HaloStage stage = {halos + turn.stage * static_cast<unsigned>(p.shared.halo_bytes),
                           barriers.halo_full + 8 * turn.stage};
  arrive_and_expect(stage.full, p.halo_bytes);
  turn.next(p.halo_stages);
  return stage;
}

// Of taps together: rows of the input, of which each warpgroup takes those of its own row of outputs.
template <typename C, typename T>
__device__ inline void load_rows(const Params<T>& p, unsigned halos, const HaloBarriers& barriers) {
  prefetch_map(p.input_map);
  Turn turn = {0, 1};
  visit_works<C>(p, [&](const Work& work) {
    const Origin at = locate_lines(p, work.tile);
    const HaloTaps<C, T> taps(p, work, at.w);
    const PhaseTaps h = taps_along_h(p, work.phase_h);
    if (h.count == 0) return;
    const int first = at.h + h.shift - (h.count - 1), rows = p.rows + h.count - 1;
#pragma unroll 1
    for (int chunk = 0; chunk < p.chunks; ++chunk) {
#pragma unroll 1
      for (int row = 0; row < rows; ++row) {
        const HaloStage stage = next_halo(p, halos, barriers, turn);
        copy_box(stage.to, p.input_map,
                 halo_box<C>(chunk * Loader<C, T>::kChunk, taps.column, first + row, at.image, work.group),
                 stage.full);
      }
    }
  });
}

template <typename C, typename T>
__device__ inline void load_halos(const Params<T>& p, unsigned halos, const HaloBarriers& barriers) {
  prefetch_map(p.input_map);
  const bool long_rows = p.halo_pitch > 0;
  const int copies = long_rows ? p.rows / p.halo_rows : 1;
  const unsigned box_bytes = static_cast<unsigned>(p.halo_cols) * kLine;  // of a row, or part of a long one
  Turn turn = {0, 1};
  visit_works<C>(p, [&](const Work& work) {
    const Origin at = locate_lines(p, work.tile);
    const HaloTaps<C, T> taps(p, work, at.w);
    visit_halos(p, work, taps, [&](int, int shift, int chunk) {
      HaloStage stage = next_halo(p, halos, barriers, turn);
      BoxPlace place =
          halo_box<C>(chunk * Loader<C, T>::kChunk, taps.column, at.h + shift, at.image, work.group);
      if (long_rows) {
        place.at[0] += place.at[2] * p.halo_pitch;
        place.at[2] = 0;
      }
#pragma unroll 1
      for (int i = 0; i < copies; ++i) {
        copy_box(stage.to, p.input_map, place, stage.full);
        stage.to += p.images * box_bytes;
        place.at[0] += p.halo_rows * p.halo_pitch;
      }
    });
  });
}

// A flat tile whose outputs leave in runs: its first image, and its pixels of each.
struct RunTile {
  int image, first, pixels;
};

// What multiplying warps have to know of a piece of work. Its divisions take a thousand cycles: others do
// them ahead.
struct HaloWork {
  Work work;
  int steps;                // of all phases
  int taps[2], offsets[2];  // of phases along W: HaloTaps; of taps together, the first are those along H
  int columns[2];           // of the image, which the first tap reads for column 0 of the tile
  RunTile runs;
};

// Shared memory of works: slots that are filled and read in turns.
template <typename C>
struct HaloWorks {
  HaloWork works[kHaloGemmWorks];
  int64_t places[kHaloGemmWorks][C::kPixels];
  float bias[kHaloGemmWorks][C::kTileRows];
  static_assert(sizeof(HaloWork) <= kHaloGemmWorkBytes);
};

// Where a place's outputs lie among the runs of a channel, as find_run packs it into what is a place of the
// output else: those of its first phases along H and W, and from one phase along H to the next. In bytes.
struct RunPlace {
  unsigned at, step;

  __device__ explicit RunPlace(int64_t packed)
      : at(static_cast<unsigned>(packed)), step(static_cast<unsigned>(packed >> 32)) {}
};

// Of place n of a tile: the pixels of an image's row that the tile has are a run for each phase along H.
template <typename T>
__device__ inline int64_t find_run(const Params<T>& p, const RunTile& tile, int n) {
  const auto by_part = p.cols.divide(n);
  const auto by_image = p.rows.divide(by_part.quotient);
  const int image = by_image.quotient, pixel = by_image.remainder * p.cols + by_part.remainder;
  if (image >= min(p.images, p.batch - tile.image) || pixel >= tile.pixels) return kNowhere;
  const int row = p.image_w.divide(tile.first + pixel).quotient * p.image_w - tile.first;
  const int begin = max(row, 0), end = min(row + p.image_w, tile.pixels);
  const int log2_fold = p.log2_fold_h + p.log2_fold_w;
  const int at = ((image * p.rows * p.cols + begin) << log2_fold) + ((pixel - begin) << p.log2_fold_w);
  const int step = (end - begin) << p.log2_fold_w;
  return (int64_t{step} << 32 | at) * static_cast<int>(sizeof(T));
}

// Prepares works, by two warps.
template <typename C, typename T>
__device__ inline void prepare_works(const Params<T>& p, HaloWorks<C>& slots, const HaloBarriers& barriers) {
  const int thread = static_cast<int>(threadIdx.x) % kPreparers;
  const int log2_fold = p.log2_fold_h + p.log2_fold_w;
  Turn turn = {0, 1};
  for (int number = first_work<C>(p); number < p.works; number += p.clusters) {
    const Work work = locate<C>(p, number);
    const Origin origin = locate_lines(p, work.tile);
    const int first_pixel = origin.h * p.halo_pitch;
    const RunTile runs = {origin.image, first_pixel, min(p.rows * p.cols, p.image_pixels - first_pixel)};
    wait(barriers.work_empty + 8 * turn.stage, turn.parity);
    if (thread == 0) {
      const HaloTaps<C, T> taps(p, work, origin.w);
      HaloWork& slot = slots.works[turn.stage];
      slot.work = work;
      slot.runs = runs;
      const int rows = taps_along_h(p, work.phase_h).count;
      slot.steps = rows * taps.count() / C::kRowTaps * p.chunks;
      slot.taps[0] = C::kRowTaps > 1 ? rows : taps.first.count;
      slot.taps[1] = taps.second.count;
      // Of taps together, from that of the last one on.
      for (int i = 0; i < 2; ++i) slot.offsets[i] = taps.offsets[i] - (C::kRowTaps - 1);
      slot.columns[0] = origin.w + taps.first.shift;
      slot.columns[1] = origin.w + taps.second.shift;
    }
    for (int i = thread; i < C::kPixels; i += kPreparers) {
      if constexpr (C::kRowTaps == 1) {
        const bool in_runs = C::kRuns && p.run_pitch > 0;
        slots.places[turn.stage][i] = in_runs ? find_run(p, runs, i) : find_place<C>(p, work, i, true);
      } else {
        // The first outputs of a row are not complete.
        const int column = i % kRows - (C::kRowTaps - 1);
        slots.places[turn.stage][i] =
            find_place<C>(p, work, i / kRows * p.cols + max(column, 0), column >= 0);
      }
    }
    for (int i = thread; i < C::kTileRows; i += kPreparers) {
      const int cout = work.cout + i;
      const bool exists = p.bias != nullptr && cout < p.cout_per_group;
      const int64_t channel = (int64_t{work.group} * p.cout_per_group + cout) >> log2_fold;
      slots.bias[turn.stage][i] = exists ? p.bias[channel * p.bias_stride] : 0.0f;
    }
    // Each thread by itself, so that racecheck sees what it wrote.
    arrive(barriers.work_full + 8 * turn.stage);
    turn.next(kHaloGemmWorks);
  }
}

template <typename C>
using HaloSums = float[C::kPlaceTiles][C::kWeightLines / 8][4];

// Which of a warp's 16 places row i of the upper or lower eight is.
template <typename C>
__device__ constexpr int warp_place(int lower, int i) {
  return C::kNeighbours ? 2 * i + lower : 8 * lower + i;
}

// The row of a tile, of all images, and the column of it that is row n of the products.
template <typename C, typename T>
__device__ inline Divisor<int>::Result halo_place(const Params<T>& p, int n) {
  if constexpr (C::kRowTaps == 1) {
    return p.cols.divide(n);
  } else {
    return {0, n % kRows};  // halos are rows
  }
}

// This lane's rows of the products, of halos of lines: where they lie, as lines. The lane passes the address
// of one row of each tile of places, for its upper or lower four channels.
template <typename C>
struct HaloLines {
  int at[C::kPlaceTiles];

  template <typename T>
  __device__ explicit HaloLines(const Params<T>& p) {
    const int thread = static_cast<int>(threadIdx.x) % 128, group = static_cast<int>(threadIdx.x) / 128;
#pragma unroll
    for (int tile = 0; tile < C::kPlaceTiles; ++tile) {
      const int n = group * C::kColumns + tile * kRows + thread / 32 * kWarpRows + thread % kWarpRows;
      const auto by_row = halo_place<C>(p, n);
      at[tile] = by_row.quotient < p.images * p.rows ? by_row.quotient * p.halo_cols + by_row.remainder : 0;
    }
  }
};

// The same of NCHW.
template <typename C>
struct HaloRows {
  unsigned at[C::kPlaceTiles][2];  // where they lie in a halo, for its first channel and no shift: in bytes
  unsigned columns = 0;            // of the tile, a byte each
  static_assert(2 * C::kPlaceTiles <= 4 && C::kPixels <= 256);

  template <typename T>
  __device__ explicit HaloRows(const Params<T>& p) {
    const int thread = static_cast<int>(threadIdx.x) % 128, group = static_cast<int>(threadIdx.x) / 128;
    constexpr int kChunk = kLine / static_cast<int>(sizeof(T));
#pragma unroll
    for (int i = 0; i < 2 * C::kPlaceTiles; ++i) {
      const int n = group * C::kColumns + i / 2 * kRows + thread / 32 * kWarpRows +
                    warp_place<C>(i % 2, thread % 32 / 4);
      const auto by_row = halo_place<C>(p, n);
      const bool exists = by_row.quotient < p.images * p.rows;
      const int column = exists ? by_row.remainder : 0;
      int box = exists ? by_row.quotient : 0, part = 0;
      if (C::kRowTaps == 1 && p.halo_pitch > 0) {
        const auto by_image = p.rows.divide(box);
        part = by_image.remainder % p.halo_rows;
        box = by_image.remainder / p.halo_rows * p.images + by_image.quotient;
      }
      const int element = (box * kChunk + thread % 4) * p.halo_cols + part * p.halo_pitch + column;
      at[i / 2][i % 2] = static_cast<unsigned>(element * static_cast<int>(sizeof(T)));
      columns |= static_cast<unsigned>(column) << 8 * i;
    }
  }
};

// Rings that are read.
struct HaloRing {
  unsigned stages, halos;
  HaloBarriers barriers;
  Turn turn = {0, 0}, halo = {0, 0}, work = {0, 0};
};

template <typename C>
using HaloPlaces = std::conditional_t<C::kLines, HaloLines<C>, HaloRows<C>>;

// Fragments of A, in registers.
template <typename C>
using HaloWords = unsigned[C::kPlaceTiles][C::kStepsAtOnce][4];

// Of rows that were copied with what lies between them: makes zeros of what lies beside the image.
template <typename C, typename T>
__device__ inline void clear_outside(const Params<T>& p, const HaloRows<C>& rows, int first_column,
                                     HaloWords<C>& words) {
#pragma unroll
  for (int i = 0; i < 2 * C::kPlaceTiles; ++i) {
    const int column = first_column + static_cast<int>(rows.columns >> 8 * i & 0xff);
    const bool inside = 0 <= column && column < p.input_w;
#pragma unroll
    for (auto& fragment : words[i / 2]) {
#pragma unroll
      for (int k = i % 2; k < 4; k += 2) fragment[k] = inside ? fragment[k] : 0;
    }
  }
}

// Reads part kTurn of a tap's and chunk's fragments from a halo: of its first channel and the tap's column at
// `from`.
template <typename C, int kTurn, bool kOddColumns = false, typename T>
__device__ inline void read_fragments(const Params<T>& p, const HaloPlaces<C>& rows, unsigned from,
                                      HaloWords<C>& words) {
  if constexpr (C::kLines) {
    const unsigned upper = threadIdx.x % 32 / kWarpRows;
#pragma unroll
    for (int tile = 0; tile < C::kPlaceTiles; ++tile) {
      // Halos begin at multiples of eight lines.
      const unsigned line = from + static_cast<unsigned>(rows.at[tile] * kLine), swap = line / kLine % 8;
#pragma unroll
      for (int step = 0; step < C::kStepsAtOnce; ++step) {
        const unsigned piece = 2 * (kTurn * C::kStepsAtOnce + step) + upper;
        load_matrices(line + (piece ^ swap) * 16, words[tile][step]);
      }
    }
  } else {
    const unsigned pitch =  // of channels
        static_cast<unsigned>((C::kNeighbours ? kHaloGemmRowColumns : p.halo_cols) *
                              static_cast<int>(sizeof(T)));
#pragma unroll
    for (int step = 0; step < C::kStepsAtOnce; ++step) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int channel = 8 * (kTurn * C::kStepsAtOnce + step) + i / 2 * 4;
#pragma unroll
        for (int tile = 0; tile < C::kPlaceTiles; ++tile) {
          unsigned (&word)[4] = words[tile][step];
          if constexpr (!C::kNeighbours) {
            word[i] = load_word(rows.at[tile][i % 2] + (from + channel * pitch));
          } else if (i % 2 == 0) {
            const unsigned at = rows.at[tile][0] + from + channel * pitch;
            if constexpr (kOddColumns) {
              word[i] = load_word(at);
              word[i + 1] = load_word(at + 4);
            } else {
              const uint2 both = load_two_words(at);
              word[i] = both.x;
              word[i + 1] = both.y;
            }
          }
        }
      }
    }
  }
}

// Brings fragments from halos to registers, those of a tap and chunk of channels at a time.
template <typename C, int kPhases, typename T>
struct HaloReader {
  static constexpr int kSize = sizeof(T);
  static constexpr int kColumnBytes = C::kLines ? kLine : kSize;  // between neighbouring columns of a halo

  struct Fragments {
    HaloWords<C> words;
    int phase;
  };

  const Params<T>& p;
  HaloRing& ring;
  const HaloPlaces<C>& rows;
  int taps[kPhases], columns[kPhases];  // HaloWork
  unsigned offsets[kPhases];            // in bytes
  int phase = 0, tap = 0;
  unsigned halo = 0, from = 0;  // the halo that is read, and where it is
  unsigned finished = 0;        // the barrier of one whose words are on their way

  __device__ HaloReader(const Params<T>& params, HaloRing& halos, const HaloPlaces<C>& own_rows,
                        const HaloWork& work)
      : p(params), ring(halos), rows(own_rows) {
#pragma unroll
    for (int i = 0; i < kPhases; ++i) {
      taps[i] = work.taps[i];
      columns[i] = work.columns[i];
      offsets[i] = static_cast<unsigned>(work.offsets[i] * kColumnBytes);
    }
  }

  __device__ int of_phase(const int (&numbers)[kPhases]) const {
    return kPhases == 2 && phase == 1 ? numbers[kPhases - 1] : numbers[0];
  }

  __device__ void begin_phase(int number) {
    phase = number;
    tap = 0;
    from = halo + (kPhases == 2 && number == 1 ? offsets[kPhases - 1] : offsets[0]);
  }

  // Part kTurn of a tap's and chunk's; the next one is the next to be read.
  template <int kTurn>
  __device__ void read(Fragments& a) {
    if (kTurn == 0 && halo == 0) {
      wait(ring.barriers.halo_full + 8 * ring.halo.stage, ring.halo.parity);
      halo = ring.halos + ring.halo.stage * static_cast<unsigned>(p.shared.halo_bytes);
      begin_phase(kPhases == 2 && taps[0] == 0 ? 1 : 0);
    }
    read_fragments<C, kTurn>(p, rows, from, a.words);
    a.phase = phase;
    if constexpr (C::kLongRows)
      clear_outside(p, rows, of_phase(columns) - tap * p.phases_w.shift_step, a.words);
    if constexpr (kTurn < C::kTurns - 1) return;
    from -= static_cast<unsigned>(p.phases_w.shift_step * kColumnBytes);
    if (++tap < of_phase(taps)) return;
    if (kPhases == 2 && phase == 0 && taps[kPhases - 1] > 0) return begin_phase(1);
    halo = 0;
    finished = ring.barriers.halo_empty + 8 * ring.halo.stage;
    ring.halo.next(p.halo_stages);
  }

  // Gives back a halo that has been read, once products take the last of its words: an arrival does not wait
  // for loads on their way.
  __device__ void give_back_halo() {
    if (finished == 0) return;
    arrive_as_warp(finished);
    finished = 0;
  }
};

// Waits until a stage's weight is there, and tells where it lies for part kTurn of its channels.
template <typename C, int kTurn, typename T>
__device__ inline unsigned wait_for_weight(const Params<T>& p, const HaloRing& ring) {
  if (kTurn == 0) wait(ring.barriers.full + 8 * ring.turn.stage, ring.turn.parity);
  const unsigned stage = ring.stages + ring.turn.stage * static_cast<unsigned>(p.shared.stage_bytes);
  return wgmma_swizzled_descriptor(stage, 0) + kTurn * C::kStepsAtOnce * kLineStep;
}

// Splits fragments into two parts.
template <typename C>
__device__ inline void split_fragments(const HaloWords<C>& words, HaloWords<C> (&parts)[2]) {
  OrdinaryTest ordinary;
#pragma unroll
  for (const auto& tile : words) {
#pragma unroll
    for (const auto& fragment : tile) {
#pragma unroll
      for (const unsigned bits : fragment) ordinary.add(bits);
    }
  }
  const auto split = [&](auto are_ordinary) {
#pragma unroll
    for (int tile = 0; tile < C::kPlaceTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < C::kStepsAtOnce; ++i) {
        const unsigned (&x)[4] = words[tile][i];
        uint4 both[2];
        split_words<decltype(are_ordinary)::value>(make_uint4(x[0], x[1], x[2], x[3]), both);
#pragma unroll
        for (int part = 0; part < 2; ++part) {
          unsigned (&to)[4] = parts[part][tile][i];
          to[0] = both[part].x, to[1] = both[part].y, to[2] = both[part].z, to[3] = both[part].w;
        }
      }
    }
  };
  if (ordinary.passes()) {
    split(std::true_type{});
  } else {
    split(std::false_type{});
  }
}

// The sums of a step's products, and apart those with second parts.
template <typename C>
struct SplitSums {
  HaloSums<C> few, small;

  __device__ void add_to(HaloSums<C>& sums) {
#pragma unroll
    for (int tile = 0; tile < C::kPlaceTiles; ++tile) {
      hold(few[tile]);
      hold(small[tile]);
      for_each(few[tile], sums[tile], [](float& sum, float& total) { total += sum; });
      for_each(small[tile], sums[tile],
               [](float& sum, float& total) { total += sum * (1 / kSecondPartScale); });
    }
  }
};

// Multiplies split fragments with a weight that lies at descriptor `weight`, and its second part behind it.
template <typename C>
__device__ inline void multiply_parts(HaloWords<C> (&parts)[2], unsigned weight, SplitSums<C>& sums) {
  constexpr unsigned kWeightPart = C::kWeightLines * kLine / 16;
#pragma unroll
  for (int i = 0; i < C::kStepsAtOnce; ++i) {
    const unsigned b = weight + i * kLineStep;
#pragma unroll
    for (int tile = 0; tile < C::kPlaceTiles; ++tile) {
      multiply_fragment<C::kWeightLines>(sums.small[tile], parts[1][tile][i], b, i > 0);
      multiply_fragment<C::kWeightLines>(sums.small[tile], parts[0][tile][i], b + kWeightPart, 1);
      multiply_fragment<C::kWeightLines>(sums.few[tile], parts[0][tile][i], b, i > 0);
    }
  }
}

// Sums the products of a piece of work whose operands are split, the input on its way, as implicit_gemm's
// multiply_split has them: the products of a step, at most 32 of a sum, are summed by themselves, and so are
// those with second parts.
template <typename C, int kPhases, typename T>
__device__ inline void multiply_split_halos(const Params<T>& p, const HaloWork& work, HaloRing& ring,
                                            const HaloPlaces<C>& rows, HaloSums<C>& first,
                                            HaloSums<C>& second) {
  using Reader = HaloReader<C, kPhases, T>;
  const int steps = work.steps;
  Reader reader(p, ring, rows, work);
  typename Reader::Fragments whole;
  const auto multiply_turn = [&](bool is_last, auto turn) {
    constexpr int kTurn = decltype(turn)::value, kLast = C::kTurns - 1;
    HaloWords<C> parts[2];
    split_fragments<C>(whole.words, parts);
    const int phase = whole.phase;
    const unsigned weight = wait_for_weight<C, kTurn>(p, ring);
    SplitSums<C> split;
    wgmma_fence();
    multiply_parts<C>(parts, weight, split);
    wgmma_commit();
    reader.give_back_halo();
    if (kTurn < kLast || !is_last) reader.template read<(kTurn < kLast ? kTurn + 1 : 0)>(whole);
    wgmma_wait<0>();
    if (kPhases == 2 && phase == 1) {
      split.add_to(second);
    } else {
      split.add_to(first);
    }
    if (kTurn < kLast) return;
    give_back(p, ring.barriers.empty + 8 * ring.turn.stage);
    ring.turn.next(p.stages);
  };
  static_assert(C::kTurns <= 2);
  reader.template read<0>(whole);
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    multiply_turn(step + 1 == steps, std::integral_constant<int, 0>{});
    if constexpr (C::kTurns == 2) multiply_turn(step + 1 == steps, std::integral_constant<int, 1>{});
  }
}

// The same of taps together: a step is a chunk of channels of a row of the filter, and of a row of the input,
// which most warpgroups take, each with another row of the filter. What steps need is in registers: constants
// that are read again after each barrier cost as much as the products of small tiles.
template <typename C, bool kOddColumns, typename T>
__device__ inline void multiply_row_taps(const Params<T>& p, const HaloWork& work, HaloRing& ring,
                                         const HaloPlaces<C>& rows, bool waits_for_weight,
                                         HaloSums<C>& sums) {
  const int steps = work.steps, taps = work.taps[0], stages = p.stages, halo_stages = p.halo_stages;
  // Of a chunk's rows, those that this warpgroup does not take. Rows of outputs that there are not are
  // others.
  const int before = min(static_cast<int>(threadIdx.x) / 128, p.rows - 1), after = p.rows - 1 - before;
  const bool keeps_weight = p.keeps_weight;
  const unsigned stage_bytes = static_cast<unsigned>(p.shared.stage_bytes);
  const unsigned halo_bytes = static_cast<unsigned>(p.shared.halo_bytes);
  const unsigned first =
      ring.halos + static_cast<unsigned>(work.offsets[0]) * (C::kLines ? kLine : sizeof(T));
  const auto give_back_row = [&] {
    arrive_as_warp(ring.barriers.halo_empty + 8 * ring.halo.stage);
    ring.halo.next(halo_stages);
  };
  // Arrivals are those of one turn of a ring: only once a row is there may the next one's turn end.
  const auto pass = [&](int count) {
#pragma unroll 1
    for (; count > 0; --count) {
      wait(ring.barriers.halo_full + 8 * ring.halo.stage, ring.halo.parity);
      give_back_row();
    }
  };
  pass(before);
  int tap = 0;
  if constexpr (C::kParts == 2) clear(sums[0]);
  // Other warpgroups multiply while one reads.
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    wait(ring.barriers.halo_full + 8 * ring.halo.stage, ring.halo.parity);
    HaloWords<C> words;
    read_fragments<C, 0, kOddColumns>(p, rows, first + ring.halo.stage * halo_bytes, words);
    [[maybe_unused]] HaloWords<C> parts[2];
    if constexpr (C::kParts == 2) split_fragments<C>(words, parts);
    if (waits_for_weight) wait(ring.barriers.full + 8 * ring.turn.stage, ring.turn.parity);
    const unsigned weight = wgmma_swizzled_descriptor(ring.stages + ring.turn.stage * stage_bytes, 0);
    [[maybe_unused]] SplitSums<C> split;
    wgmma_fence();
    if constexpr (C::kParts == 2) {
      multiply_parts<C>(parts, weight, split);
    } else {
#pragma unroll
      for (int i = 0; i < C::kStepsAtOnce; ++i)
        multiply_fragment<C::kWeightLines>(sums[0], words[0][i], weight + i * kLineStep, i > 0 ? 1 : step);
    }
    wgmma_commit();
    // As give_back_halo.
    give_back_row();
    if (++tap == taps) {
      tap = 0;
      pass(step + 1 == steps ? after : after + before);
    }
    wgmma_wait<0>();
    if constexpr (C::kParts == 2) {
      split.add_to(sums);
    } else {
      hold(sums[0]);
    }
    if (!keeps_weight) arrive_as_warp(ring.barriers.empty + 8 * ring.turn.stage);
    ring.turn.next(stages);
  }
  // All works take the same stages.
  if (keeps_weight) ring.turn.parity = 0;
}

// Sums the products of a piece of work, of both phases where there are two: `second` is not touched else.
template <typename C, int kPhases, typename T>
__device__ inline void multiply_halos(const Params<T>& p, const HaloWork& work, HaloRing& ring,
                                      const HaloPlaces<C>& rows, bool waits_for_weight, HaloSums<C>& first,
                                      HaloSums<C>& second) {
  using Reader = HaloReader<C, kPhases, T>;
  const int steps = work.steps;
  if constexpr (C::kRowTaps > 1) {
    if (steps > 0) {
      if (C::kNeighbours && work.offsets[0] % 2 != 0)
        return multiply_row_taps<C, true>(p, work, ring, rows, waits_for_weight, first);
      return multiply_row_taps<C, false>(p, work, ring, rows, waits_for_weight, first);
    }
  }
#pragma unroll
  for (auto& tile : first) clear(tile);
  if constexpr (kPhases == 2) {
#pragma unroll
    for (auto& tile : second) clear(tile);
  }
  if (steps == 0) return;
  if constexpr (C::kParts == 2) return multiply_split_halos<C, kPhases>(p, work, ring, rows, first, second);
  Reader reader(p, ring, rows, work);
  // The next fragments are read while these are multiplied.
  typename Reader::Fragments own, next;
  const auto multiply_turn = [&](HaloSums<C>& sums, bool is_last, auto turn, auto& a, auto& b) {
    constexpr int kTurn = decltype(turn)::value, kLast = C::kTurns - 1;
    const unsigned weight = wait_for_weight<C, kTurn>(p, ring);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < C::kStepsAtOnce; ++i) {
#pragma unroll
      for (int tile = 0; tile < C::kPlaceTiles; ++tile)
        multiply_fragment<C::kWeightLines>(sums[tile], a.words[tile][i], weight + i * kLineStep, 1);
    }
    wgmma_commit();
    reader.give_back_halo();
    if (kTurn < kLast || !is_last) reader.template read<(kTurn < kLast ? kTurn + 1 : 0)>(b);
    wgmma_wait<0>();
#pragma unroll
    for (auto& tile : sums) hold(tile);
    if (kTurn < kLast) return;
    give_back(p, ring.barriers.empty + 8 * ring.turn.stage);
    ring.turn.next(p.stages);
  };
  // A step of the phase that `a` is of; with one turn the next fragments are in `b` then, else in `a`.
  const auto multiply_step = [&](int step, auto& a, auto& b) {
    const bool is_last = step + 1 == steps;
    const auto multiply_phase = [&](HaloSums<C>& sums) {
      constexpr std::integral_constant<int, 0> kFirst;
      multiply_turn(sums, is_last, kFirst, a, b);
      if constexpr (C::kTurns == 2) multiply_turn(sums, is_last, std::integral_constant<int, 1>{}, b, a);
    };
    if constexpr (kPhases == 2) {
      if (a.phase == 1) return multiply_phase(second);
    }
    multiply_phase(first);
  };
  static_assert(C::kTurns <= 2);
  reader.template read<0>(own);
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    multiply_step(step, own, next);
    if constexpr (C::kTurns == 1) {
      if (++step < steps) multiply_step(step, next, own);
    }
  }
}

// ---------------------------------------------------------------- store

__device__ inline float2 load_floats(unsigned from) {
  const uint2 x = load_two_words(from);
  return make_float2(__uint_as_float(x.x), __uint_as_float(x.y));
}

__device__ inline void store_floats(unsigned to, float x, float y) {
  store_shared(to, __float_as_uint(x), __float_as_uint(y));
}

// Lays out, of 64 places, the columns from 8 * `block` on, with the bias added, as copy_slice finds them: in
// lines of 128 bytes of an output channel, of which a warp copies 16.
//
//   one phase      two lines for each of 32 output channels, of 32 places each; warps 0 and 1 copy the first
//   two phases     a warp's 16 places, those of both phases, for each of 16 output channels
template <int kPhases, int kBlocks>
__device__ __forceinline__ void lay_place_rows(unsigned lines, unsigned bias, int block,
                                               const float (&first)[kBlocks][4],
                                               const float (&second)[kBlocks][4]) {
  constexpr unsigned kPitch = static_cast<unsigned>(kImplicitGemmOutputPitch);
  const int thread = afresh(static_cast<int>(threadIdx.x)) % 128, warp = thread / 32, lane = thread % 32;
  const int line = (kPhases == 1 ? warp / 2 * 32 : warp * kWarpRows) + lane % 4 * 2;
  const int place = (kPhases == 1 ? warp % 2 * kWarpRows : 0) + lane / 4;
  lines += line * kPitch + place * 4 * kPhases;
  bias += (8 * block + lane % 4 * 2) * 4;
#pragma unroll
  for (int j = 0; j < 4 / kPhases; ++j) {
    const float2 add = load_floats(bias + j * 32);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const unsigned to = lines + (8 * j + i % 2) * kPitch + i / 2 * 8 * 4 * kPhases;
      const float x = first[block + j][i] + (i % 2 == 0 ? add.x : add.y);
      if constexpr (kPhases == 1) {
        store_shared(to, __float_as_uint(x));
      } else {
        const float y = second[block + j][i] + (i % 2 == 0 ? add.x : add.y);
        store_floats(to, x, y);
      }
    }
  }
}

// The same of folded phases: a line is 64 columns of a place, or all of them where there are fewer.
template <int kBlocks>
__device__ __forceinline__ void lay_place_columns(unsigned line, unsigned bias, int block,
                                                  const float (&sums)[kBlocks][4]) {
  constexpr unsigned kPitch = ChannelLines<float>::kPitch;
  const int lane = afresh(static_cast<int>(threadIdx.x)) % 32;
  line += lane / 4 * kPitch + lane % 4 * 8;
  bias += (8 * block + lane % 4 * 2) * 4;
#pragma unroll
  for (int j = 0; j < (kBlocks < 8 ? kBlocks : 8); ++j) {
    const float2 add = load_floats(bias + j * 32);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      store_floats(line + half * 8 * kPitch + j * 32, sums[block + j][2 * half] + add.x,
                   sums[block + j][2 * half + 1] + add.y);
    }
  }
}

// Stores sums from registers, in pairs that lie side by side: two columns of folded phases, or else both
// phases of a place. The eight places of lanes with the same columns are whole sectors then, if they follow
// each other.
template <int kPhases, typename C, typename T>
__device__ inline void store_pairs(const Params<T>& p, T* output, int couts, const int64_t* places,
                                   unsigned bias, const HaloSums<C>& first, const HaloSums<C>& second) {
  static_assert(std::is_same_v<T, float>);
  constexpr int kPlaces = 2 * C::kPlaceTiles;
  const int thread = afresh(static_cast<int>(threadIdx.x)) % 128, lane = thread % 32;
  const int log2_fold = p.log2_fold_h + p.log2_fold_w, fold_w = 1 << p.log2_fold_w;
  // How many of a lane's couples of columns exist; of second ones, and of second phases too.
  T* to[kPlaces];
  int exist[kPlaces], second_exist[kPlaces];
#pragma unroll
  for (int i = 0; i < kPlaces; ++i) {
    const int64_t place = places[i / 2 * kRows + thread / 32 * kWarpRows + i % 2 * 8 + lane / 4];
    exist[i] = place == kNowhere ? 0 : couts;
    second_exist[i] = (place & kLastPhaseMissing) != 0 ? 0 : exist[i];
    to[i] = output + (place & ~kLastPhaseMissing);
  }
  const auto offset = [&](int cout) {
    const int phase = cout & ((1 << log2_fold) - 1);
    return (cout >> log2_fold) * p.output_stride.c + (phase >> p.log2_fold_w) * p.fold_row +
           (phase & (fold_w - 1));
  };
  const auto store = [](T* at, float x, float y) { *reinterpret_cast<float2*>(at) = make_float2(x, y); };
#pragma unroll
  for (int j = 0; j < C::kTileRows / 8; ++j) {
    const int cout = 8 * j + lane % 4 * 2;
    const float2 add = load_floats(bias + cout * 4);
    const int64_t at = offset(cout);
    if (kPhases == 2 && p.log2_fold_w == 0) {
      const int64_t next = offset(cout + 1);
#pragma unroll
      for (int i = 0; i < kPlaces; ++i) {
        const float (&x)[4] = first[i / 2][j], (&y)[4] = second[i / 2][j];
        const int k = i % 2 * 2;
        if (cout < exist[i]) store(to[i] + at, x[k] + add.x, y[k] + add.x);
        if (cout + 1 < exist[i]) store(to[i] + next, x[k + 1] + add.y, y[k + 1] + add.y);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kPlaces; ++i) {
        const float (&x)[4] = first[i / 2][j], (&y)[4] = second[i / 2][j];
        const int k = i % 2 * 2;
        if (cout < exist[i]) store(to[i] + at, x[k] + add.x, x[k + 1] + add.y);
        if (kPhases == 2 && cout < second_exist[i])
          store(to[i] + at + fold_w, y[k] + add.x, y[k + 1] + add.y);
      }
    }
  }
}

// Stores 64 places of taps together, of NCHW: through lines of an output channel each, which warps copy, so
// that a row of outputs leaves in one piece. Some channels at a time: `sums` are [eight channels][lane's
// four].
template <typename C, typename T>
__device__ inline void store_row_lines(const Params<T>& p, T* to, int couts, unsigned lines,
                                       const int64_t* places, const float (&sums)[C::kTileRows / 2]) {
  constexpr int kPasses = C::kTileRows / kHaloGemmLineCouts, kBlocks = kHaloGemmLineCouts / 8;
  constexpr unsigned kPitch = static_cast<unsigned>(kHaloGemmLinePitch);
  const int thread = afresh(static_cast<int>(threadIdx.x)) % 128, warp = thread / 32, lane = thread % 32;
  const bool pairs = p.halo_stores_pairs;
  const int64_t first = places[pairs ? 2 * lane : lane], second = places[pairs ? 2 * lane + 1 : lane + 32];
  const unsigned own =
      lines + lane % 4 * 2 * kPitch + static_cast<unsigned>(warp * kWarpRows + lane / 4 * 2) * 4;
  const unsigned from = lines + warp * kPitch + static_cast<unsigned>(pairs ? 8 * lane : 4 * lane);
  to += warp * p.output_stride.c;
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    // What the pass before laid out has been copied; all copies of the work before ended before add_row_taps.
    if (pass > 0) sync_lines<false>();
#pragma unroll
    for (int j = 0; j < kBlocks; ++j) {
      const float (&x)[4] = reinterpret_cast<const float (&)[4]>(sums[4 * (pass * kBlocks + j)]);
      store_floats(own + 8 * j * kPitch, x[0], x[2]);
      store_floats(own + (8 * j + 1) * kPitch, x[1], x[3]);
    }
    sync_lines<false>();
#pragma unroll
    for (int i = 0; i < kHaloGemmLineCouts; i += 4, to += 4 * p.output_stride.c) {
      if (pass * kHaloGemmLineCouts + i + warp >= couts) break;
      const unsigned line = from + i * kPitch;
      if (pairs) {
        if (second != kNowhere) *reinterpret_cast<float2*>(to + first) = load_floats(line);
      } else {
        if (first != kNowhere) to[first] = __uint_as_float(load_word(line));
        if (second != kNowhere) to[second] = __uint_as_float(load_word(line + 128));
      }
    }
  }
}

// The same of NHWC: a place's output channels leave in one piece, through lines of a place each of a warp, of
// which those of its upper and lower eight take turns.
template <typename C, typename T>
__device__ inline void store_row_places(T* to, int couts, unsigned lines, const int64_t* places,
                                        const float (&sums)[C::kTileRows / 2]) {
  constexpr int kLanes = C::kTileRows / 4;  // that copy a place
  constexpr unsigned kPitch = C::kPlacePitch;
  const int thread = afresh(static_cast<int>(threadIdx.x)) % 128, warp = thread / 32, lane = thread % 32;
  lines += warp * 8 * kPitch;
  const unsigned own = lines + lane / 4 * kPitch + lane % 4 * 8;
  const int cout = lane % kLanes * 4;
#pragma unroll
  for (int lower = 0; lower < 2; ++lower) {
    __syncwarp();
#pragma unroll
    for (int j = 0; j < C::kTileRows / 8; ++j)
      store_floats(own + j * 32, sums[4 * j + 2 * lower], sums[4 * j + 2 * lower + 1]);
    __syncwarp();
#pragma unroll
    for (int i = lane / kLanes; i < 8; i += 32 / kLanes) {
      const int64_t place = places[warp * kWarpRows + 8 * lower + i];
      const uint4 x = load_words(lines + i * kPitch + cout * 4);
      if (place != kNowhere && cout < couts) *reinterpret_cast<uint4*>(to + place + cout) = x;
    }
  }
}

// Stores the sums of taps together.
template <typename C, typename T>
__device__ inline void store_row_taps(const Params<T>& p, const Work& work, unsigned lines,
                                      const int64_t* places, unsigned bias, const HaloSums<C>& sums) {
  const int thread = afresh(static_cast<int>(threadIdx.x)) % 128, lane = thread % 32;
  const int64_t stride = p.output_stride.c;
  bias += lane % 4 * 8;
  const int couts = p.cout_per_group - work.cout;
  T* to = p.output + (int64_t{work.group} * p.cout_per_group + work.cout) * stride;
  float all[C::kTileRows / 2];
#pragma unroll
  for (int j = 0; j < C::kTileRows / 8; ++j) {
    const float2 add = load_floats(bias + j * 32);
#pragma unroll
    for (int i = 0; i < 4; ++i) all[4 * j + i] = sums[0][j][i] + (i % 2 == 0 ? add.x : add.y);
  }
  if (!p.activation.is_identity()) activate_sums<T, 1>(p.activation, all);
  lines += C::kPassedBytes;
  if constexpr (C::kNeighbours) return store_row_lines<C>(p, to, couts, lines, places, all);
  if (p.store_elements == 4) return store_row_places<C>(to, couts, lines, places, all);
  // Lines begin anywhere.
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int64_t place = places[thread / 32 * kWarpRows + warp_place<C>(i / 2, lane / 4)];
    const int cout = lane % 4 * 2 + i % 2;
    if (place == kNowhere) continue;
#pragma unroll
    for (int j = 0; j < C::kTileRows / 8; ++j) {
      if (8 * j + cout < couts) to[place + (8 * j + cout) * stride] = all[4 * j + i];
    }
  }
}

// A run of some output channels of a tile: elements in the output, from the first of them on, and bytes in
// shared memory.
struct Run {
  int64_t to;
  int cout;
  unsigned from;
  int bytes;
};

// Of an image, a tile has the end of a row, whole rows, and the beginning of another row: of parts of rows
// each phase along H is a run, whole rows are one. Without phases along H all pixels follow each other.
template <typename T>
__device__ inline Run locate_run(const Params<T>& p, const RunTile& tile, int number) {
  constexpr int kSize = sizeof(T);
  const int width = p.image_w, fold_h = 1 << p.log2_fold_h, log2_fold = p.log2_fold_h + p.log2_fold_w;
  const auto begin = p.image_w.divide(tile.first);
  const bool parts = fold_h > 1 && (begin.remainder > 0 || tile.pixels < width);
  const int head = parts ? min(width - begin.remainder, tile.pixels) : 0;
  const int rows = p.image_w.divide(tile.pixels - head).quotient;
  const int whole = fold_h == 1 ? tile.pixels : rows * width, tail = tile.pixels - head - whole;

  const auto by_image = p.runs_of_image.divide(number);
  const auto by_cout = p.run_images.divide(by_image.quotient);
  const int run = by_image.remainder, image = by_cout.remainder, cout = by_cout.quotient;
  const bool is_head = run < fold_h, is_whole = run == fold_h;
  const int phase = is_head ? run : is_whole ? 0 : run - fold_h - 1;
  const int pixel = is_head ? 0 : is_whole ? head : head + whole;
  const int count = is_head ? head : is_whole ? whole : tail;
  const int row = begin.quotient + (is_head || head == 0 ? 0 : 1) + (is_head || is_whole ? 0 : rows);
  const int column = is_head || head == 0 ? begin.remainder : 0;
  const bool exists = tile.image + image < p.batch;
  const int at = ((image * p.rows * p.cols + pixel) << log2_fold) + phase * (count << p.log2_fold_w);
  const int64_t out_row = (int64_t{row} << p.log2_fold_h) + phase;
  return {cout * p.output_stride.c + (tile.image + image) * p.output_stride.n + out_row * p.fold_row +
              (column << p.log2_fold_w),
          cout, static_cast<unsigned>(cout) * p.run_pitch + static_cast<unsigned>(at * kSize),
          exists ? (count << (is_whole ? log2_fold : p.log2_fold_w)) * kSize : 0};
}

// Stores the sums of a flat tile as runs, from shared address `runs` on. Stores from registers write parts of
// sectors where rows have no whole number of them; runs are as long as rows or images allow, and leave while
// the next products are summed. A lane's two columns are neighbouring phases along W.
template <typename C, typename T>
__device__ inline void store_runs(const Params<T>& p, const HaloWork& work, unsigned runs,
                                  const int64_t* places, unsigned bias, const HaloSums<C>& sums) {
  constexpr int kPlaces = 2 * C::kPlaceTiles, kWarps = C::kMultiplyingWarps, kThreads = 32 * kWarps;
  constexpr int kColumns = kHaloGemmRunColumns, kBarrier = 1 + C::kWarpgroups;  // sync_lines has others
  // Turns begin with the first buffer.
  static_assert(C::kTileRows % (kHaloGemmRunBuffers * kColumns) == 0);
  const int thread = afresh(static_cast<int>(threadIdx.x)), lane = thread % 32;
  const int log2_fold = p.log2_fold_h + p.log2_fold_w, some_couts = kColumns >> log2_fold;
  const int fold_h = 1 << p.log2_fold_h, fold_w = 1 << p.log2_fold_w;
  unsigned to[kPlaces], step[kPlaces];
  bool exists[kPlaces];
#pragma unroll
  for (int i = 0; i < kPlaces; ++i) {
    const int64_t place = places[i / 2 * kRows + thread % 128 / 32 * kWarpRows + i % 2 * 8 + lane / 4];
    const RunPlace run(place);
    exists[i] = place != kNowhere;
    to[i] = run.at;
    step[i] = run.step;
  }
  const int64_t channels = int64_t{work.work.group} * p.cout_per_group + work.work.cout;
  T* output = p.output + (channels >> log2_fold) * p.output_stride.c;
  int couts = (p.cout_per_group - work.work.cout) >> log2_fold;
  // A warp starts copies one after the other, so warps share them. What copies need is computed by all lanes
  // at once and, of the first ones, once.
  const int first = lane * kWarps + thread / 32, count = some_couts * p.run_images * p.runs_of_image;
  const auto copy = [&](const Run& run, unsigned buffer) {
    if (run.bytes > 0 && run.cout < couts) copy_bulk(output + run.to, buffer + run.from, run.bytes);
  };
  Run own = {};
  if (first < count) own = locate_run(p, work.runs, first);
#pragma unroll
  for (int pass = 0; pass < C::kTileRows / kColumns; ++pass) {
    const unsigned buffer = runs + pass % kHaloGemmRunBuffers * some_couts * p.run_pitch;
    float2 add[kColumns / 8];
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j)
      add[j] = load_floats(bias + (pass * kColumns + 8 * j + lane % 4 * 2) * 4);
    wait_for_bulk_reads_but<kHaloGemmRunBuffers - 1>();  // by the threads that started the copies
    sync_threads<kThreads>(kBarrier);
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j) {
      const int column = 8 * j + lane % 4 * 2;
      const unsigned at = buffer + (column >> log2_fold) * p.run_pitch + (column & (fold_w - 1)) * 4;
      const unsigned phase = column >> p.log2_fold_w & (fold_h - 1);
#pragma unroll
      for (int i = 0; i < kPlaces; ++i) {
        const float (&x)[4] = sums[i / 2][pass * kColumns / 8 + j];
        const int k = i % 2 * 2;
        if (exists[i]) store_floats(to[i] + (at + phase * step[i]), x[k] + add[j].x, x[k + 1] + add[j].y);
      }
    }
    if (!p.activation.is_identity()) {
      sync_threads<kThreads>(kBarrier);
      activate_bytes<kThreads>(p.activation, static_cast<T*>(__cvta_shared_to_generic(buffer)),
                               static_cast<int>(some_couts * p.run_pitch), thread);
    }
    fence_for_bulk_copies();
    sync_threads<kThreads>(kBarrier);
    copy(own, buffer);
#pragma unroll 1
    for (int i = first + kThreads; i < count; i += kThreads) copy(locate_run(p, work.runs, i), buffer);
    commit_bulk_copies();
    couts -= some_couts;
    output += some_couts * p.output_stride.c;
  }
}

template <int kPhases, typename C, typename T>
__device__ inline void store_places(const Params<T>& p, const Work& work, unsigned lines,
                                    const int64_t* places, unsigned bias, const HaloSums<C>& first,
                                    const HaloSums<C>& second) {
  constexpr int kTiles = C::kPlaceTiles;
  const int thread = afresh(static_cast<int>(threadIdx.x)) % 128, warp = thread / 32;
  const int log2_fold = p.log2_fold_h + p.log2_fold_w, couts = p.cout_per_group - work.cout;
  T* const output =
      p.output + ((int64_t{work.group} * p.cout_per_group + work.cout) >> log2_fold) * p.output_stride.c;
  if (p.halo_stores_pairs) return store_pairs<kPhases, C>(p, output, couts, places, bias, first, second);
  with_own_rows(p, [&](auto own_rows) {
    if constexpr (decltype(own_rows)::value) {
      constexpr int kCouts = 32 / kPhases, kTurns = C::kTileRows / kCouts;
      // Of the lines that this warp copies.
      const int slice = kPhases == 1 ? warp / 2 : warp, before = slice * kCouts;
#pragma unroll 1
      for (int i = 0; i < kTiles * kTurns; ++i) {
        const int cout = i % kTurns * kCouts;
        if (cout >= couts) continue;
        sync_lines<kPhases == 2>();
        with_constant<kTiles * kTurns>(i, [&](int at) {
          lay_place_rows<kPhases>(lines, bias, at % kTurns * kCouts / 8, first[at / kTurns],
                                  second[at / kTurns]);
        });
        sync_lines<kPhases == 2>();
        copy_slice<kPhases, true>(
            p, lines, i / kTurns * 2 * kPhases + slice,
            Destination<T>{output + (cout - before) * p.output_stride.c, couts - cout + before, places});
      }
    } else {
      constexpr int kLineColumns = C::kTileRows < kRows ? C::kTileRows : kRows;
      constexpr int kPlaces = 32 / kPhases, kSlices = kRows / kPlaces, kTurns = C::kTileRows / kLineColumns;
#pragma unroll 1
      for (int i = 0; i < kTiles * kTurns; ++i) {
        const int cout = i % kTurns * kLineColumns;
        if (cout >= couts) continue;
#pragma unroll 1
        for (int slice = 0; slice < kSlices; ++slice) {
          sync_lines<false>();
          if (warp * kWarpRows / kPlaces == slice) {
            const unsigned line = lines + warp * kWarpRows % kPlaces * ChannelLines<T>::kPitch;
            with_constant<kTiles * kTurns>(i, [&](int at) {
              const int block = at % kTurns * 8;
              lay_place_columns(line, bias, block, first[at / kTurns]);
              if constexpr (kPhases == 2)
                lay_place_columns(line + kPlaces * ChannelLines<T>::kPitch, bias, block, second[at / kTurns]);
            });
          }
          sync_lines<false>();
          copy_slice<kPhases, false>(p, lines, i / kTurns * kSlices + slice,
                                     Destination<T>{output + (cout >> log2_fold) * p.output_stride.c,
                                                    min(couts - cout, kLineColumns), places});
        }
      }
    }
  });
}

// Adds what the taps of a row give to the same output: input i and tap k belong to output i + k of the
// warpgroup's row of 64. What passes a warp's 16 goes to the next warp, through `lines`.
template <typename C>
__device__ inline void add_row_taps(unsigned lines, HaloSums<C>& sums) {
  constexpr int kBlocks = C::kTileRows / 8, kPassed = C::kRowTaps - 1;
  const int thread = afresh(static_cast<int>(threadIdx.x)) % 128, lane = thread % 32;
  static_assert(kPassed <= 8);
  const unsigned own =
      lines + static_cast<unsigned>((thread / 32 * kPassed * C::kTileRows + lane % 4 * 2) * 4);
  float (&block)[C::kWeightLines / 8][4] = sums[0];
  float totals[kBlocks][4];
#pragma unroll
  for (int j = 0; j < kBlocks; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) totals[j][i] = block[kPassed * kBlocks + j][i];
  }
  sync_lines<false>();
#pragma unroll
  for (int tap = kPassed; tap > 0; --tap) {
#pragma unroll
    for (int j = 0; j < kBlocks; ++j) {
      // On by one output: to the lower eight rows and the next four lanes' upper ones, or to the next four
      // lanes and the first ones' lower eight.
      float passed[4];
#pragma unroll
      for (int i = C::kNeighbours ? 2 : 0; i < 4; ++i)
        passed[i] = __shfl_sync(~0u, totals[j][i], (lane + 28) % 32);
      if (lane < 4) {
        store_floats(own + static_cast<unsigned>(((tap - 1) * C::kTileRows + 8 * j) * 4), passed[2],
                     passed[3]);
      }
      float moved[4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if constexpr (C::kNeighbours) {
          moved[i] = lane < 4 ? 0.0f : passed[2 + i];
          moved[2 + i] = totals[j][i];
        } else {
          moved[i] = lane < 4 ? 0.0f : passed[i];
          moved[2 + i] = lane < 4 ? passed[i] : passed[2 + i];
        }
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) totals[j][i] = moved[i] + block[(tap - 1) * kBlocks + j][i];
    }
  }
  sync_lines<false>();
  // Of the warp before, for this one's first outputs: output i got what passed with tap i + 1.
  const auto passed_to = [&](int output, int j) {
    if (thread < 32 || output >= kPassed) return make_float2(0.0f, 0.0f);
    return load_floats(own + static_cast<unsigned>(((output - kPassed) * C::kTileRows + 8 * j) * 4));
  };
#pragma unroll
  for (int j = 0; j < kBlocks; ++j) {
    const float2 upper = passed_to(warp_place<C>(0, lane / 4), j);
    block[j][0] = totals[j][0] + upper.x;
    block[j][1] = totals[j][1] + upper.y;
    const float2 lower =
        warp_place<C>(1, 0) < kPassed ? passed_to(warp_place<C>(1, lane / 4), j) : make_float2(0.0f, 0.0f);
    block[j][2] = totals[j][2] + lower.x;
    block[j][3] = totals[j][3] + lower.y;
  }
}

// ----------------------------------------------------------------

template <typename C, typename T>
__device__ __forceinline__ void multiply_halo_works(const Params<T>& p, HaloRing ring, unsigned output,
                                                    const HaloWorks<C>& slots) {
  const int group = static_cast<int>(threadIdx.x) / 128;
  const unsigned lines = output + group * static_cast<unsigned>(p.shared.output_bytes);
  const HaloPlaces<C> rows(p);
  for (int number = first_work<C>(p); number < p.works; number += p.clusters) {
    const int slot = ring.work.stage;
    wait(ring.barriers.work_full + 8 * slot, ring.work.parity);
    const HaloWork& work = slots.works[slot];
    const int64_t* const places = slots.places[slot] + group * C::kColumns;
    const unsigned bias = shared_address(slots.bias[slot]);
    HaloSums<C> sums;
    if (p.phases_together == 1) {
      const bool waits_for_weight = !p.keeps_weight || number == first_work<C>(p);
      multiply_halos<C, 1>(p, work, ring, rows, waits_for_weight, sums, sums);
      if constexpr (C::kRowTaps > 1) {
        add_row_taps<C>(lines, sums);
        store_row_taps<C>(p, work.work, lines, places, bias, sums);
      } else {
        const bool in_runs = C::kRuns && p.run_pitch > 0;
        if constexpr (C::kRuns) {
          if (in_runs) store_runs<C>(p, work, output, places, bias, sums);
        }
        if (!in_runs) store_places<1, C>(p, work.work, lines, places, bias, sums, sums);
      }
    } else if constexpr (C::kPairs) {
      HaloSums<C> others;
      multiply_halos<C, 2>(p, work, ring, rows, true, sums, others);
      store_places<2, C>(p, work.work, lines, places, bias, sums, others);
    }
    arrive_as_warp(ring.barriers.work_empty + 8 * slot);
    ring.work.next(kHaloGemmWorks);
  }
  if constexpr (C::kRuns) wait_for_bulk_reads();
}

template <typename C, typename T>
__global__ void __launch_bounds__(C::kBlockThreads, C::kResidentBlocks)
    halo_gemm_kernel(const __grid_constant__ Params<T> p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) unsigned char shared[];
  const unsigned stages = shared_address(shared), halos = stages + static_cast<unsigned>(p.shared.halos);
  HaloBarriers barriers;
  barriers.full = stages + static_cast<unsigned>(p.shared.barriers);
  barriers.empty = barriers.full + 8 * p.stages;
  barriers.halo_full = barriers.empty + 8 * p.stages;
  barriers.halo_empty = barriers.halo_full + 8 * p.halo_stages;
  barriers.work_full = barriers.halo_empty + 8 * p.halo_stages;
  barriers.work_empty = barriers.work_full + 8 * kHaloGemmWorks;
  HaloWorks<C>& slots = *reinterpret_cast<HaloWorks<C>*>(shared + p.shared.places);
  const int thread = static_cast<int>(threadIdx.x), blocks = p.cluster_rows * p.cluster_pixels;
  if (thread == 0) {
    constexpr int kWarps = C::kMultiplyingWarps;
    for (int i = 0; i < p.stages; ++i) {
      init_barrier(barriers.full + 8 * i, 1);
      init_barrier(barriers.empty + 8 * i, kWarps * blocks);
    }
    for (int i = 0; i < p.halo_stages; ++i) {
      init_barrier(barriers.halo_full + 8 * i, 1);
      init_barrier(barriers.halo_empty + 8 * i, kWarps);
    }
    for (int i = 0; i < kHaloGemmWorks; ++i) {
      init_barrier(barriers.work_full + 8 * i, kPreparers);
      init_barrier(barriers.work_empty + 8 * i, kWarps);
    }
    fence_barriers();
  }
  __syncthreads();
  // As in implicit_gemm_kernel.
  if (blocks > 1) sync_cluster();
  constexpr int kMultiplying = 32 * C::kMultiplyingWarps;
  static_assert(128 * C::kOthersRegisters + kMultiplying * C::kMultiplierRegisters <=
                C::kBlockThreads * (65536 / (C::kBlockThreads * C::kResidentBlocks) / 8 * 8));
  if (thread < kMultiplying) {
    claim_registers<C::kMultiplierRegisters>();
    multiply_halo_works<C>(p, {stages, halos, barriers}, stages + static_cast<unsigned>(p.shared.output),
                           slots);
  } else {
    release_registers<C::kOthersRegisters>();
    const int warp = (thread - kMultiplying) / 32;
    if (warp == 0) {
      if (elect_thread()) load_weights<C>(p, stages, barriers);
    } else if (warp == 1) {
      if (elect_thread()) {
        if constexpr (C::kRowTaps > 1) {
          load_rows<C>(p, halos, barriers);
        } else {
          load_halos<C>(p, halos, barriers);
        }
      }
    } else {
      prepare_works(p, slots, barriers);
    }
    __syncwarp();
  }
  if (blocks > 1) sync_cluster();
#endif
}

// Calls the instantiation for launch.config.
template <typename T, int kParts = 1, int kIndex = 0>
cudaError_t launch_halo_gemm_for(const Problem& problem, const ImplicitGemmLaunch& launch,
                                 const void* workspace, cudaStream_t stream) {
  if constexpr (kIndex == kHaloGemmConfigCount) {
    return cudaErrorInvalidValue;
  } else {
    if (launch.config != kIndex || launch.parts != kParts)
      return launch_halo_gemm_for<T, kParts, kIndex + 1>(problem, launch, workspace, stream);
    if constexpr (!kHaloGemmConfigs[kIndex].fits_halos(1, kParts)) {
      return cudaErrorInvalidValue;
    } else {
      const auto launch_layout = [&](auto layout) {
        using C = HaloConfig<kIndex, kParts, decltype(layout)::value>;
        return launch_kernel<C>(halo_gemm_kernel<C, T>, problem, launch, workspace, stream);
      };
      using Layout = HaloLayout;
      if (launch.halo_lines) return launch_layout(std::integral_constant<Layout, Layout::kLines>{});
      // Of a flat tile nothing lies beside the image.
      if constexpr (kHaloGemmConfigs[kIndex].row_taps == 1) {
        if (launch.halo_pitch > 0 && !launch.flat)
          return launch_layout(std::integral_constant<Layout, Layout::kLongRows>{});
      }
      return launch_layout(std::integral_constant<Layout, Layout::kRows>{});
    }
  }
}

}  // namespace implicit_gemm
}  // namespace convt
