// tile_wgmma: the products of tile_mma on Hopper's warpgroup instructions (wgmma, compute capability 9.0a).
//
// Tiles, phases, planes and stores are those of tile_mma (convt/device/tile_mma.cuh); what differs is who
// does what. The tensor cores read both operands from shared memory, where a tap is an address offset of the
// planes. A thread block stays on its SM; its warps have three tasks:
//
//   6 stage input     chunk after chunk, into a ring of plane buffers: NHWC by asynchronous copies, NCHW by
//                     asynchronous copies of rows that they then turn into planes; they round or split
//                     float32
//   2 load the weight either once, where all of it fits, or a group of channel steps at a time into a ring of
//                     buffers, by bulk copies; the two blocks of a cluster share what they load
//   8 multiply        as two warpgroups: 64 x 256 or 128 x 128 sums stay in the registers of each (64 x 128
//                     of split operands, and those of the last few products); it stores them while the other
//                     multiplies
//
// The two take different tiles, or different rows or pixels of the same tile.
#pragma once

#include <algorithm>
#include <type_traits>

#include "convt/device/activation.cuh"
#include "convt/device/async_copy.cuh"
#include "convt/device/channel_planes.cuh"
#include "convt/device/scalar.cuh"
#include "convt/device/tile_epilogue.cuh"
#include "convt/device/tile_params.cuh"
#include "convt/device/wgmma.cuh"
#include "convt/kernels.h"
#include "convt/tile_wgmma.h"

namespace convt {
namespace tile_wgmma {

using namespace tile_mma;  // NOLINT: its pieces, and the same names for the same things

inline constexpr int kRows = kTileWgmmaRows, kGroups = kTileWgmmaGroups, kSlice = kTileWgmmaSlice;
inline constexpr int kStagers = kTileWgmmaStagers;                  // threads
inline constexpr int kHelpers = kStagers + 32 * kTileWgmmaLoaders;  // that do not multiply
// Of a thread. float32 is staged through more registers, and its sums are stored through fewer.
template <typename T, typename Config>
inline constexpr int kHelperRegisters = sizeof(T) == 2        ? 56
                                        : Config::kParts == 1 ? 64
                                                              : 72;
template <typename T, typename Config>
inline constexpr int kMultiplierRegisters = 256 - kHelperRegisters<T, Config>;
inline constexpr int kGroupSteps = kTileWgmmaGroupSteps;

// Vectors that a stager splits at a time.
template <typename Config>
inline constexpr int kSplitAtOnce = Config::kParts == 1 ? 3 : 4;

static_assert(kSlice == kWgmmaSumColumns);

template <typename T>
struct WgmmaParams : Params<T> {
  TileWgmmaDivision division;
  int stages, row_stages, weight_stages;
  int weight_streams;                        // one that both warpgroups read, or one for each
  int group_steps;                           // channel steps that are multiplied together
  int cluster, clusters;                     // thread blocks of a cluster, and how many
  int turns;                                 // of a cluster's blocks: pieces of work side by side
  int chunk_bytes, row_bytes, weight_bytes;  // of one buffer of planes, of rows, of the weight
  unsigned notes_offset, steps_offset, weight_offset;
  int64_t row_tile_stride, chunk_stride;  // of the packed weight, in bytes
  Divisor<int> staged_vectors;            // of a row
  int staged_exact;                       // columns of a row that are turned
  int turned_pitch;                       // pixels from a turned row to the next
  int odd_pixel, even_pixel;              // pixels from a turned column 4 i to 4 i + 1, and to 4 i + 2
  // Elements of the output: a pixel on, from a numbered row to the next, and past an image's rows.
  int pixel_step, row_step;
  int64_t image_step;
  bool phases_in_halves, keeps_planes, keeps_weight;
  bool stores_pieces;  // of lines that are aligned
  Divisor<int> stride_h, stride_w;
  unsigned* not_a_number;  // is set where an output is; null if nobody asks

  __device__ bool divides(TileWgmmaDivision by) const { return division == by; }
};

template <int kIndex, bool kLast, int kOperandParts = 1>
struct Config {
  static constexpr int kParts = kOperandParts;
  static constexpr int kStepBytes = kParts * kTileWgmmaStepBytes;
  static constexpr bool kChannelsLast = kLast;  // of the output
  static constexpr int kRowTiles = kTileWgmmaConfigs[kIndex].row_tiles;
  static constexpr int kPixels = kTileWgmmaConfigs[kIndex].pixels;
  // Of NCHW, two row tiles hold the phases along W of the same output channels and are stored together.
  static constexpr int kJoined = kLast ? 1 : kRowTiles;
  static constexpr int kSlices = kPixels / kSlice;
};

template <typename Config>
using UnitSums = WgmmaSums[Config::kSlices][Config::kRowTiles];

// A lane's value, of which the compiler then knows that all lanes of the warp have it: descriptors are read
// from registers that a warp shares.
template <typename Value>
__device__ inline Value uniform(Value value, int lane = 0) {
  return __shfl_sync(~0u, value, lane);
}

// A place in a ring of buffers: both sides walk it in the same order.
struct RingPlace {
  int slot = 0, parity = 0;

  __device__ void advance(int count, int stages) {
    slot += count;
    while (slot >= stages) {
      slot -= stages;
      parity ^= 1;
    }
  }

  __device__ void next(int stages) {
    if (++slot == stages) {
      slot = 0;
      parity ^= 1;
    }
  }
};

// The block's shared memory. Its address is a constant, which takes no register where a pointer would.
__device__ inline unsigned char* block_shared() {
  extern __shared__ __align__(128) unsigned char shared[];
  return shared;
}

// The barriers of a ring of buffers.
struct Ring {
  int first, stages;  // of its buffers among those of all rings

  __device__ unsigned full(int slot) const { return shared_address(block_shared()) + 8 * (2 * first + slot); }
  __device__ unsigned empty(int slot) const { return full(stages + slot); }
};

template <typename T>
__device__ inline Ring plane_ring(const WgmmaParams<T>& p) {
  return {0, p.stages};
}

template <typename T>
__device__ inline Ring weight_ring(const WgmmaParams<T>& p, int stream) {
  return {p.stages + stream * p.weight_stages, p.weight_stages};
}

template <typename T>
__device__ inline unsigned char* plane_buffer(const WgmmaParams<T>& p, int slot) {
  return block_shared() + p.shared.planes_offset + slot * p.chunk_bytes;
}

template <typename T>
__device__ inline unsigned char* row_buffer(const WgmmaParams<T>& p, int slot) {
  return block_shared() + p.shared.rows_offset + slot * p.row_bytes;
}

template <typename T>
__device__ inline unsigned char* output_lines(const WgmmaParams<T>& p, int thread) {
  return block_shared() + p.shared.output_offset + (thread - kHelpers) / 32 * p.shared.output_bytes;
}

template <typename T>
__device__ inline unsigned weight_buffer(const WgmmaParams<T>& p, int stream, int slot) {
  return shared_address(block_shared()) + p.weight_offset +
         (stream * p.weight_stages + slot) * p.weight_bytes;
}

// A warp's tile, kept in shared memory while registers are scarce.
template <typename T>
struct TileNote {
  const WgmmaParams<T>& p;

  __device__ unsigned address() const {
    return shared_address(block_shared()) + p.notes_offset +
           afresh(static_cast<int>(threadIdx.x)) / 32 * kTileWgmmaNoteBytes;
  }

  __device__ void write(const Tile& tile) const {
    const unsigned at = address();
    __syncwarp();
    asm volatile("st.shared.v4.s32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(tile.group), "r"(tile.image),
                 "r"(tile.grid_h), "r"(tile.grid_w)
                 : "memory");
    asm volatile("st.shared.v2.s32 [%0], {%1, %2};" ::"r"(at + 16), "r"(tile.first_row_tile),
                 "r"(tile.end_row_tile)
                 : "memory");
    __syncwarp();
  }

  // Four more values, put aside and brought back.
  __device__ void put_aside(int place, int a, int b, int c, int d) const {
    __syncwarp();
    asm volatile("st.shared.v4.s32 [%0], {%1, %2, %3, %4};" ::"r"(address() + 32 + 16 * place), "r"(a),
                 "r"(b), "r"(c), "r"(d)
                 : "memory");
    __syncwarp();
  }

  __device__ void bring_back(int place, int& a, int& b, int& c, int& d) const {
    const uint4 values = load_words(address() + 32 + 16 * place);
    a = static_cast<int>(values.x);
    b = static_cast<int>(values.y);
    c = static_cast<int>(values.z);
    d = static_cast<int>(values.w);
  }

  // The fourth of the second four: the first row tile of the unit that is being stored.
  __device__ int unit() const { return static_cast<int>(load_word(address() + 60)); }

  __device__ Tile read() const {
    const unsigned at = address();
    const uint4 place = load_words(at), rows = load_words(at + 16);
    Tile tile;
    tile.group = static_cast<int>(place.x);
    tile.image = static_cast<int>(place.y);
    tile.grid_h = static_cast<int>(place.z);
    tile.grid_w = static_cast<int>(place.w);
    tile.first_row_tile = static_cast<int>(rows.x);
    tile.end_row_tile = static_cast<int>(rows.y);
    return tile;
  }
};

// Of this block in a cluster of two.
__device__ inline int cluster_rank() { return afresh(static_cast<int>(blockIdx.x)) & 1; }

// The blocks of a cluster take the same row tiles of neighbouring tiles of pixels in a turn.
template <typename T>
__device__ inline Tile tile_of_turn(const WgmmaParams<T>& p, int turn) {
  if (p.cluster == 1) return locate_tile(p, turn);
  const auto by_rows = p.tiles_m.divide(turn);
  const int pixel_tile = 2 * by_rows.quotient + cluster_rank();
  return locate_tile(p, pixel_tile * p.tiles_m + by_rows.remainder);
}

// The turns that one of the warpgroups takes part in, and the row tiles that it multiplies in each: unit
// after unit of kRowTiles row tiles.
template <typename Config>
struct Schedule {
  template <typename T>
  __device__ static int first_turn(const WgmmaParams<T>& p, int warpgroup) {
    return static_cast<int>(blockIdx.x) / p.cluster +
           (p.divides(TileWgmmaDivision::kTiles) ? warpgroup * p.clusters : 0);
  }

  template <typename T>
  __device__ static int turn_step(const WgmmaParams<T>& p) {
    return p.clusters * (p.divides(TileWgmmaDivision::kTiles) ? kGroups : 1);
  }

  // Both warpgroups go through the same number of rounds.
  template <typename T>
  __device__ static int rounds(const WgmmaParams<T>& p, const Tile& tile) {
    const int units = (tile.end_row_tile - tile.first_row_tile + Config::kRowTiles - 1) / Config::kRowTiles;
    return p.divides(TileWgmmaDivision::kRowTiles) ? (units + kGroups - 1) / kGroups : units;
  }

  // The first row tile of a round; in the last round there may be none.
  template <typename T>
  __device__ static int row_tile(const WgmmaParams<T>& p, const Tile& tile, int round, int warpgroup) {
    const int unit = p.divides(TileWgmmaDivision::kRowTiles) ? round * kGroups + warpgroup : round;
    return tile.first_row_tile + unit * Config::kRowTiles;
  }
};

// The channel steps of a row tile in one chunk, 0 if the row tile does not exist, and the place of their
// entries in the table.
struct TileSteps {
  int count = 0, first = 0;

  template <typename T>
  __device__ TileSteps(const WgmmaParams<T>& p, int end_row_tile, int number) {
    if (number >= end_row_tile) return;
    const RowTile<T> row_tile(p, number);
    count = p.taps_h.offsets(row_tile.set_h) * p.taps_w.offsets(row_tile.set_w) * p.chunk_steps;
    first = first_offset(p, row_tile.set_h, row_tile.set_w) * p.chunk_steps;
  }
};

// ---------------------------------------------------------------- weight

// Copies the whole weight, in the order of a work's products, without the gaps of the packed weight.
template <typename T, typename Config>
__device__ inline void load_whole_weight(const WgmmaParams<T>& p) {
  const Ring ring = weight_ring(p, 0);
  unsigned weight = weight_buffer(p, 0, 0);
  const unsigned char* const packed = reinterpret_cast<const unsigned char*>(p.packed_weight);
  arrive_and_expect(ring.full(0), p.weight_bytes);
  for (int first = 0; first < p.row_tiles; first += Config::kRowTiles) {
    for (int chunk = 0; chunk < p.chunks; ++chunk) {
      for (int number = first; number < min(first + Config::kRowTiles, p.row_tiles); ++number) {
        const int bytes = TileSteps(p, p.row_tiles, number).count * Config::kStepBytes;
        if (bytes == 0) continue;
        copy_bulk(weight, packed + number * p.row_tile_stride + chunk * p.chunk_stride, bytes, ring.full(0));
        weight += bytes;
      }
    }
  }
}

// Copies what warpgroup `warpgroup` multiplies, in its order.
template <typename T, typename Config>
__device__ inline void load_weight(const WgmmaParams<T>& p, int warpgroup) {
  const Ring ring = weight_ring(p, warpgroup);
  const unsigned char* const packed = reinterpret_cast<const unsigned char*>(p.packed_weight);
  RingPlace place;
  for (int turn = Schedule<Config>::first_turn(p, warpgroup); turn < p.turns;
       turn += Schedule<Config>::turn_step(p)) {
    const Tile tile = tile_of_turn(p, turn);
    const int rounds = Schedule<Config>::rounds(p, tile);
    for (int round = 0; round < rounds; ++round) {
      const int number = Schedule<Config>::row_tile(p, tile, round, warpgroup);
      int counts[Config::kRowTiles];
#pragma unroll
      for (int block = 0; block < Config::kRowTiles; ++block)
        counts[block] = TileSteps(p, tile.end_row_tile, number + block).count;
      const unsigned char* const unit =
          packed + (static_cast<int64_t>(tile.group) * p.row_tiles + number) * p.row_tile_stride;
      for (int chunk = 0; chunk < p.chunks; ++chunk) {
#pragma unroll
        for (int block = 0; block < Config::kRowTiles; ++block) {
          const unsigned char* source = unit + block * p.row_tile_stride + chunk * p.chunk_stride;
          for (int left = counts[block]; left > 0; left -= p.group_steps) {
            const int bytes = min(left, p.group_steps) * Config::kStepBytes;
            wait(ring.empty(place.slot), place.parity ^ 1);
            arrive_and_expect(ring.full(place.slot), bytes);
            if (p.cluster == 1) {
              copy_bulk(weight_buffer(p, warpgroup, place.slot), source, bytes, ring.full(place.slot));
            } else {
              const int half = bytes / 2, before = cluster_rank() * half;
              copy_bulk_to_both(weight_buffer(p, warpgroup, place.slot) + before, source + before, half,
                                ring.full(place.slot));
            }
            source += bytes;
            place.next(p.weight_stages);
          }
        }
      }
    }
  }
}

// ---------------------------------------------------------------- input

// The first staged column is a multiple of the copies' width: so many lie before a tile's first.
template <typename T>
__device__ inline int columns_before(const WgmmaParams<T>& p, const Tile& tile) {
  if (p.input_channels_last || p.flat_rows) return 0;
  return (tile.grid_w + p.taps_w.least_offset) * p.taps_w.inputs &
         (p.load_bytes / static_cast<int>(sizeof(T)) - 1);
}

// The chunks that are staged for a block, in their order.
template <typename T, typename Config>
struct Staging {
  const WgmmaParams<T>& p;
  TileNote<T> note;
  int turn, round = 0, chunk = 0;

  __device__ explicit Staging(const WgmmaParams<T>& params)
      : p(params), note{params}, turn(static_cast<int>(blockIdx.x) / params.cluster) {
    open();
  }

  __device__ bool done() const { return turn >= p.turns; }

  // Starts to copy the next chunk to `stage`.
  __device__ void copy(unsigned char* stage) {
    const Tile tile = note.read();
    const T* const group_input =
        p.input + static_cast<int64_t>(tile.group) * p.cin_per_group * p.input_stride.c;
    stage_input<T, kStagers>(p, tile, group_input, chunk * p.chunk_steps * 2 * kChannelVector<T>, stage);
    if (++chunk < p.chunks) return;
    chunk = 0;
    if (!p.keeps_planes && ++round < Schedule<Config>::rounds(p, note.read())) return;
    round = 0;
    turn += p.clusters;
    open();
  }

 private:
  __device__ void open() {
    if (!done()) note.write(tile_of_turn(p, turn));
  }
};

// A stager's planes of this chunk are written: once all have said so, it is multiplied.
__device__ inline void announce(unsigned barrier) {
  fence_for_wgmma();
  arrive(barrier);
}

// float32, which is rounded or split where it lies: while the next chunk is copied, if the ring surely has a
// buffer for it. One may be given back only when the next chunk is multiplied, and where planes are kept for
// several rounds, only after all of a tile's chunks have been.
template <typename Config>
__device__ inline void stage_and_split_chunks(const WgmmaParams<float>& p) {
  Staging<float, Config> staging(p);
  const Ring ring = plane_ring(p);
  RingPlace copied, place;
  const int ahead = p.stages > 2 && (!p.keeps_planes || p.stages > p.chunks) ? 1 : 0;
  int left = 0;  // chunks that are copied and not split
  for (int turn = -ahead; turn < 0 || left > 0 || !staging.done(); ++turn) {
    if (!staging.done()) {
      wait(ring.empty(copied.slot), copied.parity ^ 1);
      staging.copy(plane_buffer(p, copied.slot));
      copied.next(p.stages);
      ++left;
    }
    commit_copies();  // also without copies: groups are counted
    if (turn < 0) continue;
    if (ahead == 0) {
      wait_for_copies_but<0>();
    } else {
      wait_for_copies_but<1>();
    }
    sync_threads<kStagers>(1);  // everybody's copies are here
    split_planes<Config::kParts, kStagers, kSplitAtOnce<Config>>(p, plane_buffer(p, place.slot));
    announce(ring.full(place.slot));
    place.next(p.stages);
    --left;
  }
}

template <typename T, typename Config>
__device__ inline void stage_pixel_chunks(const WgmmaParams<T>& p) {
  Staging<T, Config> staging(p);
  const Ring ring = plane_ring(p);
  RingPlace place;
  while (!staging.done()) {
    wait(ring.empty(place.slot), place.parity ^ 1);
    staging.copy(plane_buffer(p, place.slot));
    if (p.load_bytes >= kLeastCopyBytes) {
      arrive_after_copies(ring.full(place.slot));
    } else {
      announce(ring.full(place.slot));
    }
    place.next(p.stages);
  }
}

// Pixels of a row that are turned together, and the type that holds as many: twice as many would take too
// many registers.
inline constexpr int kTurnedPixels = 4;
template <typename T>
using TurnedPixels = std::conditional_t<sizeof(T) == 4, uint4, uint2>;

// Turns staged rows into planes, without the columns before the tile's first and past its last. Neighbouring
// threads take neighbouring planes.
template <typename T, int kParts>
__device__ inline void turn_exact_rows(const WgmmaParams<T>& p, int before, const unsigned char* rows,
                                       unsigned char* planes) {
  constexpr int kPixels = kTurnedPixels;
  const int units = p.planes * (p.shared.row_pitch / kPixels);
#pragma unroll 1
  for (int index = threadIdx.x; index < units; index += kStagers) {
    const auto by_plane = p.planes.divide(index);
    const auto by_row = p.staged_vectors.divide(by_plane.quotient);
    TurnedPixels<T> x[kChannelVector<T>];
    read_staged(p, rows, by_plane.remainder, by_plane.quotient * kPixels, x);
    const int col = by_row.remainder * kPixels - before;  // even, where points have two inputs
    uint4* const destination = reinterpret_cast<uint4*>(planes) + by_plane.remainder * p.shared.plane +
                               by_row.quotient * p.turned_pitch + p.taps_w.point_of(col);
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      if (static_cast<unsigned>(col + i) < static_cast<unsigned>(p.staged_exact)) {
        store_vector<T, kParts>(destination + i / 2 * p.even_pixel + i % 2 * p.odd_pixel, part_planes(p),
                                vector_of_pixel<T>(x, i));
      }
    }
  }
}

template <typename T, typename Config>
__device__ inline void stage_row_chunks(const WgmmaParams<T>& p) {
  Staging<T, Config> staging(p);
  const Ring ring = plane_ring(p);
  RingPlace place;
  int copied = 0;       // slot of the rows that are copied next
  int left = 0;         // chunks that are copied and not turned
  unsigned before = 0;  // columns before the tile's first, of each of them: 4 bits
  while (left > 0 || !staging.done()) {
    // The first chunks are only copied, so that copies stay ahead.
    const bool turns = left == p.row_stages - 1 || staging.done();
    if (turns) {
      if (p.row_stages == 2 || staging.done()) {
        wait_for_copies_but<0>();
      } else {
        wait_for_copies_but<1>();
      }
      // All rows are here, and all stagers have turned the chunk before.
      sync_threads<kStagers>(1);
    }
    if (!staging.done()) {
      before |= static_cast<unsigned>(columns_before(p, staging.note.read())) << 4 * left;
      staging.copy(row_buffer(p, copied));
      commit_copies();
      if (++copied == p.row_stages) copied = 0;
      ++left;
    }
    if (!turns) continue;
    wait(ring.empty(place.slot), place.parity ^ 1);
    const int turned = copied - left + (copied < left ? p.row_stages : 0);
    turn_exact_rows<T, Config::kParts>(p, static_cast<int>(before & 15), row_buffer(p, turned),
                                       plane_buffer(p, place.slot));
    announce(ring.full(place.slot));
    place.next(p.stages);
    before >>= 4;
    --left;
  }
}

// ---------------------------------------------------------------- products

// A warpgroup's weight: groups of channel steps in the order of its loader.
template <typename T, typename Config>
struct WeightReader {
  int warpgroup;
  RingPlace place;  // of the next group; its slot counts steps where the whole weight is kept

  __device__ WeightReader(const WgmmaParams<T>& p, int reader) : warpgroup(reader) {
    if (p.keeps_weight) wait(weight_ring(p, 0).full(0), 0);
  }

  __device__ int stream(const WgmmaParams<T>& p) const { return p.weight_streams == 1 ? 0 : warpgroup; }

  // Begins a work.
  __device__ void open(const WgmmaParams<T>& p) {
    if (p.keeps_weight) place.slot = 0;
  }

  // Waits for the next group of `steps` steps; returns the descriptor of its first.
  __device__ unsigned next(const WgmmaParams<T>& p, int steps) {
    unsigned address;
    if (p.keeps_weight) {
      address = weight_buffer(p, 0, 0) + place.slot * Config::kStepBytes;
      place.slot += steps;
    } else {
      address = weight_buffer(p, stream(p), place.slot);
      wait(weight_ring(p, stream(p)).full(place.slot), place.parity);
      place.next(p.weight_stages);
    }
    return wgmma_descriptor(address, kRows);
  }
};

// Starts the products of kSteps channel steps. `a` is the descriptor of the first step's weight; lane
// `first` + i has that of step i's planes.
template <int kSteps, typename T, typename Config>
__device__ inline void multiply_steps(UnitSums<Config>& sums, int block, unsigned a, unsigned planes,
                                      int first, int adds) {
  unsigned b[kSteps];
#pragma unroll
  for (int i = 0; i < kSteps; ++i) b[i] = uniform(planes, first + i);
  a = uniform(a);
  wgmma_fence();
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
#pragma unroll
    for (int s = 0; s < Config::kSlices; s += 2) {
      wgmma<T>(sums[s][block], sums[s + 1][block], a + i * (Config::kStepBytes / 16), b[i] + s * kSlice,
               i == 0 ? adds : 1);
    }
  }
  wgmma_commit();
}

// Calls `visit` for a group of `count` channel steps, as many at a time as there is code for: with their
// number, a constant, and the first.
template <typename Visit>
__device__ inline void for_steps(int count, const Visit& visit) {
  constexpr int kHalf = kGroupSteps / 2;
  if (count == kGroupSteps) return visit(std::integral_constant<int, kGroupSteps>{}, 0);
  int step = 0;
  if (count >= kHalf) {
    visit(std::integral_constant<int, kHalf>{}, 0);
    step = kHalf;
  }
#pragma unroll 1
  for (; step < count; ++step) visit(std::integral_constant<int, 1>{}, step);
}

// Starts the products of a group of `count` channel steps.
template <typename T, typename Config>
__device__ inline void multiply_group(UnitSums<Config>& sums, int block, unsigned a, unsigned planes,
                                      int count, int adds) {
  for_steps(count, [&](auto steps, int first) {
    multiply_steps<decltype(steps)::value, T, Config>(sums, block, a + first * (Config::kStepBytes / 16),
                                                      planes, first, first > 0 ? 1 : adds);
  });
}

// sums += the products of kSteps channel steps of split operands, whose second parts lie `part_planes`
// vectors on. Tensor cores cut sums off where they add, so that many products of one sign drift: these few
// are summed by themselves, those of a first and a second part before those of first parts.
template <int kSteps, typename T, typename Config>
__device__ inline void add_split_steps(UnitSums<Config>& sums, unsigned a, unsigned planes, int first,
                                       int part_planes) {
  static_assert(Config::kSlices == 2 && Config::kRowTiles == 1);
  constexpr int kStep = Config::kStepBytes / 16, kPart = kTileWgmmaStepBytes / 16;
  unsigned b[kSteps];
#pragma unroll
  for (int i = 0; i < kSteps; ++i) b[i] = uniform(planes, first + i);
  a = uniform(a);
  WgmmaSums few[2];
  const auto for_each_sum = [&](const auto& operation) {
#pragma unroll
    for (int s = 0; s < 2; ++s) {
#pragma unroll
      for (int j = 0; j < kSlice / 8; ++j) {
#pragma unroll
        for (int k = 0; k < 4; ++k) operation(few[s][j][k], sums[s][0][j][k]);
      }
    }
  };
  wgmma_fence();
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    wgmma<T>(few[0], few[1], a + i * kStep + kPart, b[i], i > 0);
    wgmma<T>(few[0], few[1], a + i * kStep, b[i] + part_planes, 1);
  }
  wgmma_commit();
  wgmma_wait<0>();
  for_each_sum([](float& sum, float&) { sum *= 1 / kSecondPartScale; });
  wgmma_fence();
#pragma unroll
  for (int i = 0; i < kSteps; ++i) wgmma<T>(few[0], few[1], a + i * kStep, b[i], 1);
  wgmma_commit();
  wgmma_wait<0>();
  for_each_sum([](float& sum, float& total) { total += sum; });
}

// The same for a group of `count` channel steps.
template <typename T, typename Config>
__device__ inline void add_split_group(UnitSums<Config>& sums, unsigned a, unsigned planes, int part_planes,
                                       int count) {
  for_steps(count, [&](auto steps, int first) {
    add_split_steps<decltype(steps)::value, T, Config>(sums, a + first * (Config::kStepBytes / 16), planes,
                                                       first, part_planes);
  });
}

// Buffers whose products are under way: they are given back once those are finished.
struct InUse {
  int weight = -1, planes = -1;  // slots

  template <typename T>
  __device__ void give_back(const WgmmaParams<T>& p, int stream) {
    if (threadIdx.x % 32 == 0) {
      if (weight >= 0) {
        const unsigned barrier = weight_ring(p, stream).empty(weight);
        arrive(barrier);
        if (p.cluster > 1) arrive_at(barrier, cluster_rank() ^ 1);
      }
      if (planes >= 0) arrive(plane_ring(p).empty(planes));
    }
    weight = planes = -1;
  }
};

// What the bias adds to this lane's rows of a unit.
template <typename T, typename Config>
struct Bias {
  T of[Config::kRowTiles][2];  // converted when it is added: nobody waits for the read

  __device__ void read(const WgmmaParams<T>& p, const Tile& tile, int number) {
#pragma unroll
    for (int block = 0; block < Config::kRowTiles; ++block) {
      of[block][0] = of[block][1] = narrow<T>(0.0f);
      if (p.bias == nullptr || number + block >= tile.end_row_tile) continue;
      const RowTile<T> row_tile(p, number + block);
      const int thread = afresh(static_cast<int>(threadIdx.x));
      const int warp = thread / 32 % 4, group = thread % 32 / 4;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int cout = p.phases_in_halves ? 8 * warp + group : 16 * warp + 8 * half + group;
        if (cout < row_tile.couts) {
          of[block][half] =
              p.bias[(static_cast<int64_t>(tile.group) * p.cout_per_group + row_tile.first_cout + cout) *
                     p.bias_stride];
        }
      }
    }
  }

  __device__ void add_to(UnitSums<Config>& sums) const {
#pragma unroll
    for (int block = 0; block < Config::kRowTiles; ++block) {
#pragma unroll
      for (int s = 0; s < Config::kSlices; ++s) {
#pragma unroll
        for (auto& c : sums[s][block]) {
#pragma unroll
          for (int i = 0; i < 4; ++i) c[i] += widen(of[block][i / 2]);
        }
      }
    }
  }
};

template <typename Config>
__device__ inline void clear(UnitSums<Config>& sums, int block) {
#pragma unroll
  for (int s = 0; s < Config::kSlices; ++s) {
#pragma unroll
    for (auto& c : sums[s][block]) c[0] = c[1] = c[2] = c[3] = 0.0f;
  }
}

// Whether one of a lane's sums is NaN or infinite.
template <typename Config>
__device__ inline bool any_not_finite(const UnitSums<Config>& sums) {
  float zeros[4] = {};
#pragma unroll
  for (const auto& slice : sums) {
#pragma unroll
    for (const auto& part : slice) {
#pragma unroll
      for (const auto& c : part) {
#pragma unroll
        for (int i = 0; i < 4; ++i) zeros[i] = fmaf(c[i], 0.0f, zeros[i]);
      }
    }
  }
  const float zero = zeros[0] + zeros[1] + (zeros[2] + zeros[3]);
  return zero != 0;  // NaN
}

template <typename Config>
__device__ inline void hold_unit(UnitSums<Config>& sums) {
#pragma unroll
  for (auto& slice : sums) {
#pragma unroll
    for (auto& part : slice) hold(part);
  }
}

// Applies the activation to the sums of a unit. Registers cannot be counted: a lane puts the sums of a slice,
// as T has them, into its warp's part of the shared memory, goes through them there, and brings them back.
template <typename T, typename Config>
__device__ inline void activate_unit(const WgmmaParams<T>& p, UnitSums<Config>& sums) {
  constexpr int kParts = Config::kSlices * Config::kRowTiles;
  const int thread = afresh(static_cast<int>(threadIdx.x));
  auto* const own = reinterpret_cast<ActivatedValues<T>*>(output_lines(p, thread)) + thread % 32;
  // What was laid out here before has been stored: pixels by any warp of the warpgroup.
  if constexpr (Config::kChannelsLast) {
    sync_threads<128>(2 + (thread - kHelpers) / 128);
  } else {
    __syncwarp();
  }
#pragma unroll 1
  for (int part = 0; part < kParts; ++part) {
    with_constant<kParts>(part, [&](int i) {
#pragma unroll
      for (int j = 0; j < kSlice / 8; ++j) {
        const float (&c)[4] = sums[i / Config::kRowTiles][i % Config::kRowTiles][j];
        own[32 * j] = {narrow<T>(c[0]), narrow<T>(c[1]), narrow<T>(c[2]), narrow<T>(c[3])};
      }
    });
#pragma unroll 1
    for (int j = 0; j < kSlice / 8; ++j) activate_values<4>(p.activation, own + 32 * j);
    with_constant<kParts>(part, [&](int i) {
#pragma unroll
      for (int j = 0; j < kSlice / 8; ++j) {
        const ActivatedValues<T> values = own[32 * j];
#pragma unroll
        for (int k = 0; k < 4; ++k)
          sums[i / Config::kRowTiles][i % Config::kRowTiles][j][k] = widen(values.of[k]);
      }
    });
  }
}

// ---------------------------------------------------------------- stores

// Where a lane's pixels of a tile lie in the output, one after the other, and which of them exist.
struct Walk {
  int col, row;
  int left;    // pixel numbers to the end of the images
  int64_t at;  // elements from the channel's first
  int first_col, cols, first_row, rows;

  // Of phase `phase_h`, `phase_w`, from pixel `number` on.
  template <typename T>
  __device__ Walk(const WgmmaParams<T>& p, const Tile& tile, int phase_h, int phase_w, int number)
      : at((tile.grid_h * p.taps_h.stride + phase_h - p.taps_h.crop) * p.output_stride.h +
           (tile.grid_w * p.taps_w.stride + phase_w - p.taps_w.crop) * p.output_stride.w) {
    const Point point = point_of_pixel(p, number);
    col = point.col;
    row = point.row;
    left = min(p.images, p.batch - tile.image) * p.image_numbers - number;
    at += (tile.image + point.image) * p.output_stride.n + row * p.taps_h.stride * p.output_stride.h +
          col * p.pixel_step;
    limit(p.taps_h.crop - phase_h, p.stride_h, tile.grid_h, p.rows, p.output_h, first_row, rows);
    limit(p.taps_w.crop - phase_w, p.stride_w, tile.grid_w, p.cols, p.output_w, first_col, cols);
    if (phase_w >= p.stride_w) cols = 0;
  }

  template <typename T>
  __device__ void advance(const WgmmaParams<T>& p, int pixels) {
    col = afresh(col + pixels);
    at += pixels * p.pixel_step;
    left -= pixels;
    while (col >= p.row_numbers) {
      col -= p.row_numbers;
      at += p.row_step;
      if (++row == p.shared.input_rows) {
        row = 0;
        at += p.image_step;
      }
    }
  }

  __device__ bool exists() const {
    return static_cast<unsigned>(col - first_col) < static_cast<unsigned>(cols) &&
           static_cast<unsigned>(row - first_row) < static_cast<unsigned>(rows) && left > 0;
  }

 private:
  // Of the points from `grid` on, those whose output stride * q - before lies in [0, end).
  __device__ static void limit(int before, const Divisor<int>& stride, int grid, int most, int end,
                               int& first, int& count) {
    first = before > 0 && grid == 0 ? 1 : 0;
    count = max(0, min(most, stride.divide(end + before + stride - 1).quotient - grid) - first);
  }
};

// What a warp lays out at once: kBlocks blocks of 16 rows, 64 pixels.
template <int kBlocks>
struct Slice {
  static constexpr int kBlocksM = kBlocks;
  static constexpr int kBlocksN = kSlice / 8;
  static constexpr int kWarpPixels = kSlice;
};

// NCHW: lays the sums of 64 pixels out in lines of kPhases phases.
template <int kPhases, typename Config, typename T>
__device__ inline void lay_rows(const WgmmaParams<T>& p, const Output<T>& out, int block,
                                WgmmaSums (&sums)[Config::kRowTiles]) {
  if constexpr (Config::kJoined == 2) {
    auto& part = reinterpret_cast<Sums<Slice<2>>&>(sums);
    if constexpr (kPhases == 4) {
      lay_four_phases<Slice<2>>(p, out, part);
    } else {
      lay_two_phases<Slice<2>>(p, out, part);
    }
  } else {
    auto& part = reinterpret_cast<Sums<Slice<1>>&>(sums[block]);
    if constexpr (kPhases == 2) {
      lay_halves<Slice<1>>(p, out, part);
    } else {
      lay_single_phase<Slice<1>>(p, out, part);
    }
  }
}

// NCHW, all kPhases phases along W: a warp lays its rows out in shared memory, 64 pixels at a time, and
// stores pieces of output rows, as wide as they are aligned.
template <int kPhases, typename T, typename Config>
__device__ inline void store_rows(const WgmmaParams<T>& p, const Tile& tile, int number, int block,
                                  int first_pixel, UnitSums<Config>& sums) {
  const RowTile<T> row_tile(p, number);
  const int thread = afresh(static_cast<int>(threadIdx.x));
  constexpr int kLines = 16 * Config::kJoined / kPhases;
  const int warp = thread / 32 % 4, lane = thread % 32;
  const int piece_pixels = p.store_bytes / (static_cast<int>(sizeof(T)) * kPhases);  // 1, 2, 4 or 8
  const int log2_lanes = min(5, 7 - __ffs(piece_pixels));                            // that store a line
  const int pixels_at_once = piece_pixels << log2_lanes;
  const int first_line = lane >> log2_lanes, piece = lane & ((1 << log2_lanes) - 1);
  const int lines = min(kLines, row_tile.couts - kLines * warp);
  Output<T> out;
  out.lines = reinterpret_cast<T*>(output_lines(p, thread));
  out.log2_couts = kLines == 16 ? 4 : 3;
  out.phases_h = 1;
  out.lane = lane;
  const T* const laid = out.lines + first_line * p.shared.output_pitch + piece * piece_pixels * kPhases;
  Walk walk(p, tile, row_tile.set_h, row_tile.set_w * p.taps_w.set_size, first_pixel + piece * piece_pixels);
  T* const channel = p.output + (static_cast<int64_t>(tile.group) * p.cout_per_group + row_tile.first_cout +
                                 kLines * warp + first_line) *
                                    p.output_stride.c;
#pragma unroll
  for (int s = 0; s < Config::kSlices; ++s) {
    if (first_pixel + s * kSlice >= p.images * p.image_numbers || lines <= 0) return;
    __syncwarp();  // what was laid out here before has been stored
    lay_rows<kPhases, Config>(p, out, block, sums[s]);
    __syncwarp();
#pragma unroll 1
    for (int pixel = 0; pixel < kSlice; pixel += pixels_at_once) {
      if (walk.exists()) {
        with_width(p.store_bytes, [&](auto width) {
          constexpr int kBytes = decltype(width)::value, kPixels = kBytes / kPhases / int{sizeof(T)};
          if constexpr (kPixels >= 1) {
            constexpr int kStep = kPixels > 1 ? kPixels / 2 : 1;  // lines side by side
            T* place = channel + walk.at;
            const T* source = laid + pixel * kPhases;
#pragma unroll 4
            for (int line = first_line; line < lines; line += kStep) {
              copy_piece<kBytes>(place, source);
              place += kStep * p.output_stride.c;
              source += kStep * p.shared.output_pitch;
            }
          }
        });
      }
      walk.advance(p, pixels_at_once);
    }
  }
}

// Where in `lines` a lane lays its part of whole pixels out, the 64 rows of a pixel side by side, those of
// the first of two phases first.
template <typename T>
__device__ inline unsigned place_in_pixels(unsigned lines, bool halves) {
  constexpr int kPitch = tile_wgmma_pixel_pitch(sizeof(T));  // bytes
  const int thread = afresh(static_cast<int>(threadIdx.x));
  const int warp = thread / 32 % 4, lane = thread % 32;
  if constexpr (sizeof(T) == 4) {
    return lines + 2 * (lane % 4) * kPitch + 4 * (lane / 4 + warp * (halves ? 8 : 16));
  } else {
    return lines + (lane / 16 * 8 + lane % 8) * kPitch + warp * (halves ? 16 : 32) +
           lane / 8 % 2 * (halves ? 64 : 16);
  }
}

// Lays 64 pixels out. 8 x 8 blocks of 16-bit sums are transposed on their way; of 32 bits, what a lane has
// lies in different pixels.
template <typename T>
__device__ inline void lay_whole_pixels(unsigned place, bool halves, const WgmmaSums& sums) {
  constexpr int kPitch = tile_wgmma_pixel_pitch(sizeof(T));
  if constexpr (sizeof(T) == 4) {
    // A pointer, to which the compiler adds constants for nothing.
    unsigned char* const rows = block_shared() + (place - shared_address(block_shared()));
    unsigned char* const further_rows = rows + (halves ? 4 * 32 : 4 * 8);
#pragma unroll
    for (int j = 0; j < kSlice / 8; ++j) {
      const float (&c)[4] = sums[j];
      *reinterpret_cast<float*>(rows + 8 * j * kPitch) = c[0];
      *reinterpret_cast<float*>(rows + (8 * j + 1) * kPitch) = c[1];
      *reinterpret_cast<float*>(further_rows + 8 * j * kPitch) = c[2];
      *reinterpret_cast<float*>(further_rows + (8 * j + 1) * kPitch) = c[3];
    }
  } else {
#pragma unroll
    for (int j = 0; j < kSlice / 8; j += 2) {
      const float (&c)[4] = sums[j];
      const float (&d)[4] = sums[j + 1];
      store_transposed(place + 8 * j * kPitch, pack_pair<T>(c[0], c[1]), pack_pair<T>(c[2], c[3]),
                       pack_pair<T>(d[0], d[1]), pack_pair<T>(d[2], d[3]));
    }
  }
}

// NHWC: the warps of a warpgroup lay whole pixels out in shared memory, and each stores a quarter of them.
template <typename T, typename Config>
__device__ inline void store_pixels(const WgmmaParams<T>& p, const Tile& tile, int number, int block,
                                    int first_pixel, UnitSums<Config>& sums) {
  const RowTile<T> row_tile(p, number);
  const int thread = afresh(static_cast<int>(threadIdx.x));
  constexpr int kPitch = tile_wgmma_pixel_pitch(sizeof(T));          // bytes
  constexpr int kPieces = kRows * static_cast<int>(sizeof(T)) / 16;  // of a pixel
  constexpr int kStep = 32 / kPieces, kStores = kSlice / 4 / kStep;  // pixels at once, and how often
  const int warp = thread / 32 % 4, lane = thread % 32, warpgroup = (thread - kHelpers) / 128;
  const bool halves = p.phases_in_halves;
  const unsigned lines = shared_address(output_lines(p, kHelpers + 128 * warpgroup));
  const unsigned place = place_in_pixels<T>(lines, halves);
  const int piece = lane % kPieces, pixel = 16 * warp + lane / kPieces;
  const int first = kChannelVector<T> * (halves ? piece % (kPieces / 2) : piece);  // output channel
  const int phase_w = row_tile.set_w * p.taps_w.set_size + (halves ? piece / (kPieces / 2) : 0);
  const bool rows_exist = first < row_tile.couts;
  Walk walk(p, tile, row_tile.set_h, phase_w, first_pixel + pixel);
  T* const channel =
      p.output + static_cast<int64_t>(tile.group) * p.cout_per_group + row_tile.first_cout + first;
#pragma unroll
  for (int s = 0; s < Config::kSlices; ++s) {
    if (first_pixel + s * kSlice >= p.images * p.image_numbers) return;
    sync_threads<128>(2 + warpgroup);  // what was laid out here before has been stored
    lay_whole_pixels<T>(place, halves, sums[s][block]);
    sync_threads<128>(2 + warpgroup);
#pragma unroll
    for (int i = 0; i < kStores; ++i) {
      const uint4 bits = load_words(lines + (pixel + kStep * i) * kPitch + piece * 16);
      if (rows_exist && walk.exists()) *reinterpret_cast<uint4*>(channel + walk.at) = bits;
      walk.advance(p, i + 1 < kStores ? kStep : kSlice - (kStores - 1) * kStep);
    }
  }
}

// Lays a slice of the sums out. `slice` counts blocks of segments; which registers hold its sums is decided
// by comparing, so that the code which writes a slice exists once.
template <typename Config, typename T>
__device__ inline void lay_slice(const WgmmaParams<T>& p, const Output<T>& out, int slice,
                                 UnitSums<Config>& sums) {
#pragma unroll
  for (int i = 0; i < Config::kSlices * Config::kRowTiles; i += Config::kJoined) {
    if (i != slice) continue;
    auto& part = sums[i / Config::kRowTiles];
    const int block = i % Config::kRowTiles;
    if constexpr (Config::kChannelsLast) {
      lay_pixels<Slice<1>>(p, out, reinterpret_cast<Sums<Slice<1>>&>(part[block]));
    } else if (p.phases_in_halves) {
      lay_rows<2 * Config::kJoined, Config>(p, out, block, part);
    } else {
      lay_rows<Config::kJoined, Config>(p, out, block, part);
    }
  }
}

// The first pixel number of a tile that this warpgroup multiplies.
template <typename Config, typename T>
__device__ inline int first_pixel(const WgmmaParams<T>& p) {
  const int warpgroup = (afresh(static_cast<int>(threadIdx.x)) - kHelpers) / 128;
  return p.divides(TileWgmmaDivision::kPixels) ? warpgroup * Config::kPixels : 0;
}

// Stores the sums of a unit with every check.
template <typename T, typename Config>
__device__ inline void store_slices(const WgmmaParams<T>& p, const TileNote<T>& note,
                                    UnitSums<Config>& sums) {
  constexpr int kSlices = Config::kSlices, kRowTiles = Config::kRowTiles;
#pragma unroll 1
  for (int slice = 0; slice < kSlices * kRowTiles; slice += Config::kJoined) {
    Output<T> out;
    const auto open = [&] {
      const int thread = afresh(static_cast<int>(threadIdx.x));
      const int number = note.unit() + slice % kRowTiles;
      out.first_pixel = first_pixel<Config>(p) + slice / kRowTiles * kSlice;
      if (number >= note.read().end_row_tile || out.first_pixel >= p.images * p.image_numbers) return false;
      const RowTile<T> row_tile(p, number);
      out.log2_couts = p.phases_in_halves ? 3 : 4;
      const int before = thread / 32 % 4 << out.log2_couts;
      out.first_cout = row_tile.first_cout + before;
      out.couts = min(row_tile.couts - before, 1 << out.log2_couts);
      out.lines = reinterpret_cast<T*>(output_lines(p, thread));
      out.phase_h = row_tile.set_h;
      out.phase_w = row_tile.set_w * p.taps_w.set_size;
      out.phases_h = 1;
      out.phases_w = Config::kChannelsLast ? p.taps_w.set_size : static_cast<int>(p.phases_w);
      out.lane = thread % 32;
      return out.couts > 0;
    };
    if (!open()) continue;
    __syncwarp();  // what was laid out here before has been copied
    lay_slice<Config>(p, out, slice, sums);
    __syncwarp();
    open();
    write_lines<Slice<1>, Config::kChannelsLast>(p, note.read(), out);
  }
}

// Stores the sums of a unit.
template <typename T, typename Config>
__device__ inline void store_unit(const WgmmaParams<T>& p, const TileNote<T>& note, UnitSums<Config>& sums) {
  if (!p.stores_pieces) {
    store_slices<T, Config>(p, note, sums);
    return;
  }
#pragma unroll
  for (int block = 0; block < Config::kRowTiles; block += Config::kJoined) {
    const Tile tile = note.read();
    const int number = note.unit() + block;
    if (number >= tile.end_row_tile) return;
    if constexpr (Config::kChannelsLast) {
      store_pixels<T, Config>(p, tile, number, block, first_pixel<Config>(p), sums);
    } else if (p.phases_in_halves) {
      store_rows<2 * Config::kJoined, T, Config>(p, tile, number, block, first_pixel<Config>(p), sums);
    } else {
      store_rows<Config::kJoined, T, Config>(p, tile, number, block, first_pixel<Config>(p), sums);
    }
  }
}

// ---------------------------------------------------------------- kernel

template <typename T, typename Config>
__device__ inline void multiply_works(const WgmmaParams<T>& p) {
  int warpgroup = uniform((static_cast<int>(threadIdx.x) - kHelpers) / 128);
  const Ring ring = plane_ring(p);
  const TileNote<T> note{p};
  WeightReader<T, Config> weight(p, warpgroup);
  RingPlace place;
  InUse in_use;
  if (p.divides(TileWgmmaDivision::kTiles)) place.advance(warpgroup * p.chunks, p.stages);
  for (int turn = Schedule<Config>::first_turn(p, warpgroup); turn < p.turns;
       turn += Schedule<Config>::turn_step(p)) {
    note.write(tile_of_turn(p, turn));
    weight.open(p);
    for (int round = 0; round < Schedule<Config>::rounds(p, note.read()); ++round) {
      const bool first_use = !p.keeps_planes || round == 0;
      const bool last_use = !p.keeps_planes || round + 1 == Schedule<Config>::rounds(p, note.read());
      const Tile tile = note.read();
      const int number = Schedule<Config>::row_tile(p, tile, round, warpgroup);
      const TileSteps steps[2] = {TileSteps(p, tile.end_row_tile, number),
                                  TileSteps(p, tile.end_row_tile, number + 1)};
      Bias<T, Config> bias;
      bias.read(p, tile, number);
      UnitSums<Config> sums;
      int adds[Config::kRowTiles];  // whether a row tile's sums hold anything
#pragma unroll
      for (int block = 0; block < Config::kRowTiles; ++block) {
        adds[block] = 0;
        if (Config::kParts > 1 || steps[block].count == 0) clear<Config>(sums, block);
      }
      RingPlace at = place;
      for (int chunk = 0; chunk < p.chunks; ++chunk) {
        if (first_use) {
          wait(ring.full(at.slot), at.parity);
          fence_for_wgmma();  // NHWC: copies have arrived, not threads that wrote
        }
        const unsigned chunk_planes =
            wgmma_descriptor(shared_address(plane_buffer(p, at.slot)), p.shared.plane) +
            first_pixel<Config>(p);
#pragma unroll
        for (int block = 0; block < Config::kRowTiles; ++block) {
          unsigned entry = shared_address(block_shared()) + p.steps_offset +
                           4 * (steps[block].first + afresh(static_cast<int>(threadIdx.x)) % kGroupSteps);
          for (int left = uniform(steps[block].count); left > 0;) {
            const int slot = weight.place.slot, count = min(left, p.group_steps);
            const unsigned planes = chunk_planes + load_word(entry);
            const unsigned a = weight.next(p, count);
            entry += 4 * count;
            left -= count;
            if constexpr (Config::kParts > 1) {
              add_split_group<T, Config>(sums, a, planes, part_planes(p), count);
              if (!p.keeps_weight) in_use.weight = slot;
              in_use.give_back(p, weight.stream(p));
              continue;
            }
            multiply_group<T, Config>(sums, block, a, planes, count, adds[block]);
            adds[block] = 1;
            if (p.keeps_weight && in_use.planes < 0) continue;
            wgmma_wait<1>();
            in_use.give_back(p, weight.stream(p));
            if (!p.keeps_weight) in_use.weight = slot;
          }
        }
        if (last_use) {
          if (in_use.planes >= 0) {
            // A chunk without products for this warpgroup.
            wgmma_wait<0>();
            in_use.give_back(p, weight.stream(p));
          }
          in_use.planes = at.slot;
          if (Config::kParts > 1) in_use.give_back(p, weight.stream(p));
        }
        at.next(p.stages);
      }
      wgmma_wait<0>();
      hold_unit<Config>(sums);
      in_use.give_back(p, weight.stream(p));
      if (last_use) place = at;
      if (p.not_a_number != nullptr && any_not_finite<Config>(sums)) *p.not_a_number = 1;
      if (p.bias != nullptr) bias.add_to(sums);
      if (!p.activation.is_identity()) activate_unit<T, Config>(p, sums);
      note.put_aside(0, turn, round, place.slot, place.parity);
      note.put_aside(1, weight.place.slot, weight.place.parity, warpgroup, number);
      store_unit<T, Config>(p, note, sums);
      note.bring_back(0, turn, round, place.slot, place.parity);
      int unit;
      note.bring_back(1, weight.place.slot, weight.place.parity, warpgroup, unit);
      warpgroup = uniform(warpgroup);
      weight.warpgroup = warpgroup;
    }
    if (p.divides(TileWgmmaDivision::kTiles)) place.advance(p.chunks, p.stages);
  }
}

template <typename T, typename Config>
__global__ void __launch_bounds__(kTileWgmmaThreads, 1)
    tile_wgmma_kernel(const __grid_constant__ WgmmaParams<T> p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  int* const steps = reinterpret_cast<int*>(block_shared() + p.steps_offset);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32;
  for_each_offset<kTileWgmmaThreads>(p, [&](int place, int, int, int pixels) {
    for (int step = 0; step < p.chunk_steps; ++step)
      steps[place * p.chunk_steps + step] = pixels + step * 2 * p.shared.plane;
  });
  if (p.not_a_number != nullptr) {
    // Products of pixels that stand for no point read what nobody has written: it must not look like an input
    // that is not finite.
    unsigned char* const end = block_shared() + p.shared.bytes;
    for (unsigned char* at = block_shared() + p.shared.planes_offset + 16 * thread; at < end;
         at += 16 * kTileWgmmaThreads)
      *reinterpret_cast<uint4*>(at) = make_uint4(0, 0, 0, 0);
    fence_for_wgmma();
  }
  if (thread == 0) {
    // Both warpgroups use a buffer of planes, unless they take different tiles.
    const int users = p.divides(TileWgmmaDivision::kTiles) ? 4 : 4 * kGroups;
    const Ring ring = plane_ring(p);
    for (int i = 0; i < p.stages; ++i) {
      init_barrier(ring.full(i), kStagers);
      init_barrier(ring.empty(i), users);
    }
    for (int stream = 0; stream < p.weight_streams; ++stream) {
      const Ring weight = weight_ring(p, stream);
      for (int i = 0; i < p.weight_stages; ++i) {
        init_barrier(weight.full(i), 1);
        init_barrier(weight.empty(i), 4 * kGroups / p.weight_streams * p.cluster);
      }
    }
    fence_barriers();
  }
  __syncthreads();
  if (p.cluster > 1) sync_cluster();  // the other block's barriers are ready
  if (thread < kHelpers) {
    release_registers<kHelperRegisters<T, Config>>();
    if (thread >= kStagers) {
      const int stream = warp - kStagers / 32;
      if (thread % 32 != 0 || stream >= p.weight_streams) return;
      wait_for_previous_kernel();
      if (p.keeps_weight) {
        load_whole_weight<T, Config>(p);
      } else {
        load_weight<T, Config>(p, stream);
      }
    } else if (p.input_channels_last) {
      if constexpr (sizeof(T) == 4) {
        stage_and_split_chunks<Config>(p);
      } else {
        stage_pixel_chunks<T, Config>(p);
      }
    } else {
      stage_row_chunks<T, Config>(p);
    }
  } else {
    claim_registers<kMultiplierRegisters<T, Config>>();
    multiply_works<T, Config>(p);
  }
  if (p.cluster > 1) sync_cluster();  // nobody copies to an ended block
#endif
}

// ---------------------------------------------------------------- launch

template <typename T, typename Config>
cudaError_t launch_config(const Problem& problem, const TileWgmmaLaunch& launch, void* workspace,
                          cudaStream_t stream) {
  auto* kernel = tile_wgmma_kernel<T, Config>;
  const cudaError_t error = allow_shared_memory(kernel, launch.shared_limit);
  if (error != cudaSuccess) return error;
  WgmmaParams<T> p;
  const TileWgmmaShared shared = tile_wgmma_shared(launch, problem.output_channels_last);
  set_params(p, problem, launch, shared, launch.lines(), kStagers, workspace);
  p.division = launch.division;
  p.cluster = launch.cluster;
  p.clusters = static_cast<int>(launch.grid) / launch.cluster;
  p.turns = static_cast<int>(launch.works()) / launch.cluster;
  p.stages = launch.stages;
  p.row_stages = launch.row_stages;
  p.weight_stages = launch.weight_stages;
  p.weight_streams = launch.weight_streams();
  p.chunk_bytes = static_cast<int>(plane_bytes(shared, launch));
  p.row_bytes = static_cast<int>(row_bytes(shared, launch));
  p.weight_bytes = launch.weight_steps * Config::kStepBytes;
  p.group_steps = std::min(launch.weight_steps, kGroupSteps);
  p.notes_offset = static_cast<unsigned>(shared.notes_offset);
  p.steps_offset = static_cast<unsigned>(shared.steps_offset);
  p.weight_offset = static_cast<unsigned>(shared.weight_offset);
  p.phases_in_halves = launch.phases_in_halves;
  p.keeps_planes = launch.keeps_planes();
  p.keeps_weight = launch.keeps_weight;
  p.chunk_stride = int64_t{launch.max_offsets} * launch.chunk_steps * Config::kStepBytes;
  p.row_tile_stride = p.chunks * p.chunk_stride;
  p.staged_vectors = shared.staged_cols / kTurnedPixels;
  const bool pairs = launch.taps_w.inputs == 2;
  p.staged_exact =
      launch.flat_rows ? shared.image_pixels : launch.taps_w.inputs * (launch.cols + launch.taps_w.span);
  p.turned_pitch = launch.flat_rows ? shared.image_pixels : shared.input_cols;
  p.odd_pixel = pairs ? shared.second_inputs : 1;
  p.even_pixel = pairs ? 1 : 2;
  p.not_a_number = launch.repairs ? repair_word(launch, workspace) : nullptr;
  p.pixel_step = static_cast<int>(launch.taps_w.stride * p.output_stride.w);
  p.row_step = launch.taps_h.stride * p.output_stride.h -
               shared.row_numbers * launch.taps_w.stride * p.output_stride.w;
  p.image_step = p.output_stride.n - shared.input_rows * launch.taps_h.stride * p.output_stride.h;
  p.stride_h = launch.taps_h.stride;
  p.stride_w = launch.taps_w.stride;
  p.stores_pieces = launch.stores_pieces(p.store_bytes, problem.output_channels_last);
  // It begins while the weight is packed: only the loaders read that.
  return launch_early(kernel, launch.grid, kTileWgmmaThreads, launch.shared_bytes, stream, p, launch.cluster);
}

// Calls the instantiation for launch.config.
template <typename T, int kParts = 1, int kIndex = 0>
cudaError_t launch_for(const Problem& problem, const TileWgmmaLaunch& launch, void* workspace,
                       cudaStream_t stream) {
  if constexpr (kIndex < kTileWgmmaConfigCount) {
    if constexpr (kTileWgmmaConfigs[kIndex].takes(kParts)) {
      if (launch.config == kIndex) {
        return problem.output_channels_last
                   ? launch_config<T, Config<kIndex, true, kParts>>(problem, launch, workspace, stream)
                   : launch_config<T, Config<kIndex, false, kParts>>(problem, launch, workspace, stream);
      }
    }
    return launch_for<T, kParts, kIndex + 1>(problem, launch, workspace, stream);
  } else {
    return cudaErrorInvalidValue;
  }
}

}  // namespace tile_wgmma
}  // namespace convt
