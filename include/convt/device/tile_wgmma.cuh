// tile_wgmma: the products of tile_mma on Hopper's warpgroup instructions (wgmma, compute capability 9.0a).
//
// Tiles, phases, planes, packed weight and stores are those of tile_mma (convt/device/tile_mma.cuh); what
// differs is who does what. A thread block stays on its SM and has three warpgroups:
//
//   the first    stages input, chunk after chunk, into a ring of plane buffers: NHWC by asynchronous copies,
//                NCHW by asynchronous copies of rows that it then turns into planes
//   two others   multiply: each lane copies its A fragments of the packed weight to its own corner of shared
//                memory three pairs of channel steps ahead, and reads them back into registers; B is read
//                from the planes by the tensor cores, where a tap is an address offset. A warpgroup's 64 x
//                256 or 128 x 128 sums stay in its registers; it stores them while the other multiplies.
//
// The two take different rows of the same tile, or different tiles.
#pragma once

#include <cstring>

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

inline constexpr int kRows = kTileWgmmaRows, kGroups = kTileWgmmaGroups;
inline constexpr int kSegment = kTileWgmmaSegment, kSlice = kTileWgmmaSlice;
inline constexpr int kStagers = 128;  // threads
inline constexpr int kStagerRegisters = 56, kMultiplierRegisters = 224;
inline constexpr int kStepFragments = kRows / 16 * 32;  // of A, in one channel step of a row tile
inline constexpr int kPairBytes = kTileWgmmaPairBytes, kFragmentPairs = kTileWgmmaFragmentPairs;
inline constexpr int kLinePitch = kTileWgmmaLinePitch;

template <typename T>
struct WgmmaParams : Params<T> {
  int stages, row_stages;
  int chunk_bytes, row_bytes;  // of one buffer of planes, of rows
  unsigned barriers_offset;
  unsigned row_tile_stride, chunk_stride;  // of the packed weight, in fragments
  int fragments_offset;                    // from the lines
  int numbered_rows;                       // of an image of the tile
  // Elements of the output: a pixel on, from a numbered row to the next, and past an image's rows.
  int pixel_step, row_step;
  int64_t image_step;
  bool separate_tiles, phases_in_halves, keeps_planes;
  bool stores_whole;   // whole tiles without checks
  int second_segment;  // from the first, in pixels of a plane
};

template <int kIndex, bool kLast>
struct Config {
  static constexpr bool kChannelsLast = kLast;  // of the output
  static constexpr int kRowTiles = kTileWgmmaConfigs[kIndex].row_tiles;
  static constexpr int kSegments = kTileWgmmaConfigs[kIndex].segments;
  // Of NCHW, two row tiles hold the phases along W of the same output channels and are stored together.
  static constexpr int kJoined = kLast ? 1 : kRowTiles;
  static constexpr int kSlices = kSegments * kSegment / kSlice;
};

// The same value, but computed from it is computed anew: sums take most registers, and what a work, a round
// and a chunk need is cheaper to find again than to keep.
__device__ inline int afresh(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

// A place in the ring of buffers: both sides walk it in the same order.
struct RingPlace {
  int slot = 0, parity = 0;

  __device__ void advance(int count, int stages) {
    slot += count;
    while (slot >= stages) {
      slot -= stages;
      parity ^= 1;
    }
  }
};

struct Ring {
  unsigned barriers;
  int stages;

  __device__ unsigned full(int slot) const { return barriers + 8 * slot; }
  __device__ unsigned empty(int slot) const { return barriers + 8 * (stages + slot); }
};

// Rounds over the row tiles of a work, each with one unit of kRowTiles row tiles for each warpgroup that
// takes part.
template <typename Config, typename T>
__device__ inline int rounds_of(const WgmmaParams<T>& p, const Tile& tile) {
  const int units = (tile.end_row_tile - tile.first_row_tile + Config::kRowTiles - 1) / Config::kRowTiles;
  return p.separate_tiles ? units : (units + kGroups - 1) / kGroups;
}

// The chunks that are staged for a block, in their order.
template <typename T, typename Config>
struct Staging {
  const WgmmaParams<T>& p;
  int work;
  Tile tile;
  int rounds = 0, round = 0, chunk = 0;

  __device__ explicit Staging(const WgmmaParams<T>& params) : p(params), work(static_cast<int>(blockIdx.x)) {
    open();
  }

  __device__ bool done() const { return work >= p.works; }

  // Starts to copy the next chunk to `stage`.
  __device__ void copy(unsigned char* stage) {
    const T* const group_input =
        p.input + static_cast<int64_t>(tile.group) * p.cin_per_group * p.input_stride.c;
    stage_input<T, kStagers>(p, tile, group_input, chunk * p.chunk_steps * 2 * kChannelVector<T>, stage);
    if (++chunk < p.chunks) return;
    chunk = 0;
    if (++round < rounds) return;
    round = 0;
    work += static_cast<int>(gridDim.x);
    open();
  }

 private:
  __device__ void open() {
    if (done()) return;
    tile = locate_tile(p, work);
    rounds = p.keeps_planes ? 1 : rounds_of<Config>(p, tile);
  }
};

// A stager's planes of this chunk are written: once all have said so, it is multiplied.
__device__ inline void announce(unsigned barrier) {
  fence_for_wgmma();
  arrive(barrier);
}

template <typename T, typename Config>
__device__ inline void stage_pixel_chunks(const WgmmaParams<T>& p, const Ring& ring, unsigned char* planes) {
  Staging<T, Config> staging(p);
  const int ahead = min(p.stages - 1, 2);  // chunks whose copies may be under way
  RingPlace place, landed;
  int started = 0;
  for (; !staging.done(); ++started) {
    wait(ring.empty(place.slot), place.parity ^ 1);
    staging.copy(planes + place.slot * p.chunk_bytes);
    commit_copies();
    place.advance(1, p.stages);
    if (started >= ahead) {
      if (ahead == 1) {
        wait_for_copies_but<1>();
      } else {
        wait_for_copies_but<2>();
      }
      announce(ring.full(landed.slot));
      landed.advance(1, p.stages);
    }
  }
  wait_for_copies();
  for (int i = min(started, ahead); i > 0; --i) {
    announce(ring.full(landed.slot));
    landed.advance(1, p.stages);
  }
}

template <typename T, typename Config>
__device__ inline void stage_row_chunks(const WgmmaParams<T>& p, const Ring& ring, unsigned char* planes,
                                        unsigned char* rows) {
  Staging<T, Config> staging(p);
  const int ahead = p.row_stages - 1;
  RingPlace place, copied, turned;
  int left = 0;
  const auto copy = [&] {
    if (!staging.done()) {
      staging.copy(rows + copied.slot * p.row_bytes);
      copied.advance(1, p.row_stages);
      ++left;
    }
    commit_copies();  // also without copies: groups are counted
  };
  for (int i = 0; i < ahead; ++i) copy();
  for (; left > 0; --left) {
    if (ahead == 1) {
      wait_for_copies_but<0>();
    } else {
      wait_for_copies_but<1>();
    }
    // All rows are here, and all stagers have turned the chunk before.
    sync_threads<1, kStagers>();
    copy();
    wait(ring.empty(place.slot), place.parity ^ 1);
    turn_rows<T, kStagers>(p, rows + turned.slot * p.row_bytes, planes + place.slot * p.chunk_bytes);
    announce(ring.full(place.slot));
    place.advance(1, p.stages);
    turned.advance(1, p.row_stages);
  }
}

// A row tile of the unit that a warpgroup multiplies.
struct UnitTile {
  int pairs = 0;     // of channel steps, in a chunk
  unsigned offsets;  // where those of its phase set begin in shared memory

  template <typename T>
  __device__ UnitTile(const WgmmaParams<T>& p, const Tile& tile, int number, unsigned table)
      : offsets(table) {
    if (number >= tile.end_row_tile) return;
    const RowTile<T> row_tile(p, number);
    pairs = p.taps_h.offsets(row_tile.set_h) * p.taps_w.offsets(row_tile.set_w) * (p.chunk_steps / 2);
    offsets = table + 4 * first_offset(p, row_tile.set_h, row_tile.set_w);
  }
};

__device__ inline void copy_fragment(unsigned destination, const FragmentA* source) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(destination), "l"(source));
}

// The A fragments of a warp's rows, in the order in which a unit of row tiles uses them: chunk by chunk, in
// each row tile by row tile. Each lane copies its own to its own place in shared memory, kAhead pairs of
// channel steps ahead, and reads them back: no other thread is concerned.
template <typename T, typename Config>
struct Fragments {
  static constexpr int kAhead = kFragmentPairs - 1;

  unsigned source = 0;  // the next pair's, in the packed weight
  unsigned begin = 0;   // the unit's first
  int left = 0;         // pairs of the row tile's chunk
  int turn = 0;         // row tiles of all chunks whose pairs have been copied, and this one
  int first_pairs = 0, second_pairs = 0;  // of one chunk of each row tile
  unsigned place = 0;                     // of the lane's fragments in the ring

  // Begins the unit whose first row tile is `number` of a work.
  __device__ void open(const WgmmaParams<T>& p, const Tile& tile, int number) {
    first_pairs = UnitTile(p, tile, number, 0).pairs;
    if constexpr (Config::kRowTiles == 2) second_pairs = UnitTile(p, tile, number + 1, 0).pairs;
    begin = (tile.group * p.row_tiles + number) * p.row_tile_stride + threadIdx.x % 128;
    turn = -1;
    left = 0;
    seek(p);
  }

  // Starts to copy the next pair, if there is one, to `slot`, bytes from the ring's begin.
  __device__ void copy(const WgmmaParams<T>& p, unsigned slot) {
    if (left > 0) {
      const FragmentA* const from = p.packed_weight + source;
      copy_fragment(place + slot, from);
      copy_fragment(place + slot + 512, from + kStepFragments);
      source += 2 * kStepFragments;
      if (--left == 0) seek(p);
    }
    commit_copies();
  }

 private:
  // Finds the next row tile with taps, in this chunk or the next; none is left once all chunks have passed.
  __device__ void seek(const WgmmaParams<T>& p) {
    while (left == 0) {
      if (++turn == p.chunks * Config::kRowTiles) return;
      const int block = turn % Config::kRowTiles;
      left = block == 0 ? first_pairs : second_pairs;
      source = begin + block * p.row_tile_stride + turn / Config::kRowTiles * p.chunk_stride;
    }
  }
};

// Adds the products of a chunk to a row tile's sums. `planes` is where the chunk's planes begin, in 16 bytes;
// `slot` the place of its first fragments in the ring.
template <typename T, typename Config>
__device__ inline void multiply_chunk(const WgmmaParams<T>& p, const UnitTile& unit, unsigned sizes_address,
                                      unsigned planes, int block, Fragments<T, Config>& fragments,
                                      unsigned& slot, WgmmaSums (&sums)[Config::kSlices][Config::kRowTiles]) {
  constexpr int kBuffers = 2;
  // From shared memory, so that they stay in registers: parameters would be read each time, and late.
  const FragmentA sizes = load_fragment(sizes_address);
  const unsigned step_size = sizes.x, second_segment = sizes.y;
  const int pairs_per_offset = static_cast<int>(sizes.z);
  unsigned offsets = unit.offsets;
  unsigned place = planes + load_word(offsets);
  int left = pairs_per_offset;
  FragmentA a[kBuffers][2];
  for (int first = 0; first < unit.pairs; first += kBuffers) {
#pragma unroll
    for (int i = 0; i < kBuffers; ++i) {
      if (first + i < unit.pairs) {
        wait_for_copies_but<Fragments<T, Config>::kAhead - 1>();
#pragma unroll
        for (int step = 0; step < 2; ++step) a[i][step] = load_fragment(fragments.place + slot + step * 512);
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < 2; ++step) {
#pragma unroll
          for (int s = 0; s < Config::kSegments; ++s) {
            wgmma<T>(sums[2 * s][block], sums[2 * s + 1][block], a[i][step],
                     place + step * step_size + (s == 0 ? 0 : second_segment), kWgmmaDescriptorHigh);
          }
        }
        wgmma_commit();
        fragments.copy(p, (slot + Fragments<T, Config>::kAhead * kPairBytes) % (kFragmentPairs * kPairBytes));
        slot = (slot + kPairBytes) % (kFragmentPairs * kPairBytes);
        place += 2 * step_size;
        if (--left == 0) {
          left = pairs_per_offset;
          offsets += 4;
          place = planes + load_word(offsets);
        }
        // The fragments read next take the place of those before the last pair's.
        wgmma_wait<kBuffers - 1>();
      }
    }
  }
  wgmma_wait<0>();
}

// The output channels of this lane's sums of a row tile.
template <typename T>
struct Rows {
  int cout[2];  // in the group, of rows `group` and `group` + 8 of the warp's block
  bool exists[2];

  __device__ Rows(const WgmmaParams<T>& p, const RowTile<T>& row_tile, int thread) {
    const int warp = thread / 32 % 4, group = thread % 32 / 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int number = p.phases_in_halves ? 8 * warp + group : 16 * warp + 8 * half + group;
      cout[half] = row_tile.first_cout + number;
      exists[half] = number < row_tile.couts;
    }
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
      const Rows<T> rows(p, RowTile<T>(p, number + block), afresh(static_cast<int>(threadIdx.x)));
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (rows.exists[half]) {
          of[block][half] =
              p.bias[(static_cast<int64_t>(tile.group) * p.cout_per_group + rows.cout[half]) * p.bias_stride];
        }
      }
    }
  }

  __device__ void add_to(WgmmaSums (&sums)[Config::kSlices][Config::kRowTiles]) const {
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
__device__ inline void clear(WgmmaSums (&sums)[Config::kSlices][Config::kRowTiles]) {
#pragma unroll
  for (auto& segment : sums) {
#pragma unroll
    for (auto& part : segment) {
#pragma unroll
      for (auto& c : part) c[0] = c[1] = c[2] = c[3] = 0.0f;
    }
  }
}

// Where a lane's pixels of a whole tile lie in the output, one after the other.
struct Walk {
  int col, row, image;
  int64_t at;  // elements from the channel's first

  template <typename T>
  __device__ Walk(const WgmmaParams<T>& p, const Tile& tile, int phase_h, int phase_w, int number)
      : col(0),
        row(0),
        image(0),
        at(tile.image * p.output_stride.n +
           (tile.grid_h * p.taps_h.stride + phase_h - p.taps_h.crop) * p.output_stride.h +
           (tile.grid_w * p.taps_w.stride + phase_w - p.taps_w.crop) * p.output_stride.w) {
    advance(p, number);
  }

  template <typename T>
  __device__ void advance(const WgmmaParams<T>& p, int pixels) {
    col = afresh(col + pixels);
    at += pixels * p.pixel_step;
    while (col >= p.row_numbers) {
      col -= p.row_numbers;
      at += p.row_step;
      if (++row == p.numbered_rows) {
        row = 0;
        ++image;
        at += p.image_step;
      }
    }
  }

  template <typename T>
  __device__ bool exists(const WgmmaParams<T>& p) const {
    return col < p.cols && row < p.rows && image < p.images;
  }
};

// NCHW, two or four phases along W of a whole tile: stores from registers. A fragment's four lanes hold eight
// neighbouring pixels of a row.
template <int kPhases, typename T, typename Config>
__device__ inline void store_whole_phases(const WgmmaParams<T>& p, const Tile& tile,
                                          const RowTile<T>& row_tile, int block, int thread,
                                          WgmmaSums (&sums)[Config::kSlices][Config::kRowTiles]) {
  const Rows<T> rows(p, row_tile, thread);
  T* const channel =
      p.output + (static_cast<int64_t>(tile.group) * p.cout_per_group + rows.cout[0]) * p.output_stride.c;
  const int64_t second_channel = 8 * p.output_stride.c;
  Walk walk(p, tile, row_tile.set_h, row_tile.set_w * p.taps_w.set_size, 2 * (thread % 4));
  const auto store = [](T* place, const float (&x)[2 * kPhases]) {
    unsigned words[kPhases];
#pragma unroll
    for (int i = 0; i < kPhases; ++i) words[i] = pack_pair<T>(x[2 * i], x[2 * i + 1]);
    typename Piece<4 * kPhases>::type bits;
    memcpy(&bits, words, sizeof(bits));
    *reinterpret_cast<typename Piece<4 * kPhases>::type*>(place) = bits;
  };
#pragma unroll
  for (int s = 0; s < Config::kSlices; ++s) {
    if (s * kSlice >= p.images * p.image_numbers) return;
#pragma unroll
    for (int j = 0; j < kSlice / 8; ++j) {
      const float (&c)[4] = sums[s][block][j];
      T* const place = channel + walk.at;
      if (walk.exists(p)) {
        if constexpr (Config::kRowTiles == 2) {
          const float (&d)[4] = sums[s][1][j];
          if constexpr (kPhases == 4) {
            store(place, {c[0], c[2], d[0], d[2], c[1], c[3], d[1], d[3]});
          } else {
            store(place, {c[0], d[0], c[1], d[1]});
            store(place + second_channel, {c[2], d[2], c[3], d[3]});
          }
        }
        if constexpr (kPhases == 2 && Config::kRowTiles == 1) {
          store(place, {c[0], c[2], c[1], c[3]});
        }
      }
      walk.advance(p, 8);
    }
  }
}

// NCHW, one phase along W of a whole tile whose segments lie each in a row: a warp lays a segment's rows out
// in shared memory and stores one 128-byte piece of an output row at a time.
template <typename T, typename Config>
__device__ inline void store_whole_rows(const WgmmaParams<T>& p, const Tile& tile, const RowTile<T>& row_tile,
                                        int block, int thread, unsigned char* lines,
                                        WgmmaSums (&sums)[Config::kSlices][Config::kRowTiles]) {
  const int warp = thread / 32 % 4, lane = thread % 32;
  constexpr int kPitch = kSlice + 8;  // elements: the lanes' stores meet different banks
  T* const laid = reinterpret_cast<T*>(lines) + lane / 4 * kPitch + lane % 4 * 2;
  const T* const line = reinterpret_cast<const T*>(lines) + lane * 2;
  Walk walk(p, tile, row_tile.set_h, row_tile.set_w, 2 * lane);
  T* const channel =
      p.output + (static_cast<int64_t>(tile.group) * p.cout_per_group + row_tile.first_cout + 16 * warp) *
                     p.output_stride.c;
#pragma unroll
  for (int s = 0; s < Config::kSlices; ++s) {
    if (s * kSlice >= p.images * p.image_numbers) return;
    __syncwarp();  // what was laid out here before has been read
#pragma unroll
    for (int j = 0; j < kSlice / 8; ++j) {
      const float (&c)[4] = sums[s][block][j];
      *reinterpret_cast<unsigned*>(laid + 8 * j) = pack_pair<T>(c[0], c[1]);
      *reinterpret_cast<unsigned*>(laid + 8 * kPitch + 8 * j) = pack_pair<T>(c[2], c[3]);
    }
    __syncwarp();
    T* place = channel + walk.at;
    const T* source = line;
    const bool exists = walk.exists(p);
#pragma unroll 1
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (exists)
          *reinterpret_cast<unsigned*>(place) = *reinterpret_cast<const unsigned*>(source + k * kPitch);
        place += p.output_stride.c;
      }
      source += 4 * kPitch;
    }
    walk.advance(p, kSlice);
  }
}

// NHWC, a whole tile: 8 x 8 blocks of sums are transposed on their way through shared memory, where a pixel's
// 16 rows lie side by side, and leave it 16 bytes at a time.
template <typename T, typename Config>
__device__ inline void store_whole_pixels(const WgmmaParams<T>& p, const Tile& tile,
                                          const RowTile<T>& row_tile, int block, int thread, unsigned lines,
                                          WgmmaSums (&sums)[Config::kSlices][Config::kRowTiles]) {
  constexpr int kPitch = kLinePitch;  // bytes: stores and loads of 16 bytes meet different banks
  const int warp = thread / 32 % 4, lane = thread % 32, half = lane % 2;
  const int first = p.phases_in_halves ? 8 * warp : 16 * warp + 8 * half;
  const int phase_w = row_tile.set_w * p.taps_w.set_size + (p.phases_in_halves ? half : 0);
  const unsigned store_place = lines + (lane / 16 * 8 + lane % 8) * kPitch + lane / 8 % 2 * 16;
  const unsigned load_place = lines + lane / 2 * kPitch + half * 16;
  Walk walk(p, tile, row_tile.set_h, phase_w, lane / 2);
  T* const channel =
      p.output + static_cast<int64_t>(tile.group) * p.cout_per_group + row_tile.first_cout + first;
#pragma unroll
  for (int s = 0; s < Config::kSlices; ++s) {
    if (s * kSlice >= p.images * p.image_numbers) return;
    __syncwarp();  // what was laid out here before has been read
#pragma unroll
    for (int j = 0; j < kSlice / 8; j += 2) {
      const float (&c)[4] = sums[s][block][j];
      const float (&d)[4] = sums[s][block][j + 1];
      store_transposed(store_place + 8 * j * kPitch, pack_pair<T>(c[0], c[1]), pack_pair<T>(c[2], c[3]),
                       pack_pair<T>(d[0], d[1]), pack_pair<T>(d[2], d[3]));
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kSlice / 16; ++i) {
      const uint4 bits = load_fragment(load_place + 16 * i * kPitch);
      if (walk.exists(p)) *reinterpret_cast<uint4*>(channel + walk.at) = bits;
      walk.advance(p, 16);
    }
  }
}

// What a warp lays out at once of a tile that is not whole: kBlocks blocks of 16 rows, one segment of pixels.
template <int kBlocks>
struct Slice {
  static constexpr int kBlocksM = kBlocks;
  static constexpr int kBlocksN = kSlice / 8;
  static constexpr int kWarpPixels = kSlice;
};

// Lays a slice of the sums out. `slice` counts blocks of segments; which registers hold its sums is decided
// by comparing, so that the code which writes a slice exists once.
template <int kBlocks, bool kChannelsLast, typename T, int kSlices, int kRowTiles>
__device__ inline void lay_slice(const WgmmaParams<T>& p, const Output<T>& out, int slice,
                                 WgmmaSums (&sums)[kSlices][kRowTiles]) {
  using Lines = Slice<kBlocks>;
#pragma unroll
  for (int i = 0; i < kSlices * kRowTiles; i += kBlocks) {
    if (i != slice) continue;
    auto& part = reinterpret_cast<Sums<Lines>&>(sums[i / kRowTiles][i % kRowTiles]);
    if constexpr (kChannelsLast) {
      lay_pixels<Lines>(p, out, part);
    } else if constexpr (kBlocks == 2) {
      if (p.phases_in_halves) {
        lay_four_phases<Lines>(p, out, part);
      } else {
        lay_two_phases<Lines>(p, out, part);
      }
    } else if (p.phases_in_halves) {
      lay_halves<Lines>(p, out, part);
    } else {
      lay_single_phase<Lines>(p, out, part);
    }
  }
}

// Stores the sums of a unit of row tiles with every check.
template <typename T, typename Config>
__device__ inline void store_slices(const WgmmaParams<T>& p, int work, int unit, unsigned char* output,
                                    WgmmaSums (&sums)[Config::kSlices][Config::kRowTiles]) {
  constexpr int kSlices = Config::kSlices, kRowTiles = Config::kRowTiles;
#pragma unroll 1
  for (int slice = 0; slice < kSlices * kRowTiles; slice += Config::kJoined) {
    const Tile tile = locate_tile(p, afresh(work));
    const int thread = afresh(static_cast<int>(threadIdx.x));
    const int number = tile.first_row_tile + unit * kRowTiles + slice % kRowTiles;
    Output<T> out;
    out.first_pixel = slice / kRowTiles * kSlice;
    if (number >= tile.end_row_tile || out.first_pixel >= p.images * p.image_numbers) continue;
    const RowTile<T> row_tile(p, number);
    out.log2_couts = p.phases_in_halves ? 3 : 4;
    const int before = thread / 32 % 4 << out.log2_couts;
    out.first_cout = row_tile.first_cout + before;
    out.couts = min(row_tile.couts - before, 1 << out.log2_couts);
    if (out.couts <= 0) continue;
    out.lines = reinterpret_cast<T*>(output + (thread - kStagers) / 32 * p.shared.output_bytes);
    out.phase_h = row_tile.set_h;
    out.phase_w = row_tile.set_w * p.taps_w.set_size;
    out.phases_h = 1;
    out.phases_w = Config::kChannelsLast ? p.taps_w.set_size : static_cast<int>(p.phases_w);
    out.lane = thread % 32;
    __syncwarp();  // what was laid out here before has been copied
    lay_slice<Config::kJoined, Config::kChannelsLast>(p, out, slice, sums);
    __syncwarp();
    write_lines<Slice<1>, Config::kChannelsLast>(p, tile, out);
  }
}

// Whether all pixels of a tile and all phases of theirs are in the output.
template <typename T>
__device__ inline bool is_whole(const WgmmaParams<T>& p, const Tile& tile) {
  return tile.grid_h * p.taps_h.stride >= p.taps_h.crop && tile.grid_w * p.taps_w.stride >= p.taps_w.crop &&
         (tile.grid_h + p.rows) * p.taps_h.stride - p.taps_h.crop <= p.output_h &&
         (tile.grid_w + p.cols) * p.taps_w.stride - p.taps_w.crop <= p.output_w &&
         tile.image + p.images <= p.batch;
}

// Stores the sums of unit `unit` of a work's row tiles.
template <typename T, typename Config>
__device__ inline void store_unit(const WgmmaParams<T>& p, int work, int unit, unsigned char* output,
                                  WgmmaSums (&sums)[Config::kSlices][Config::kRowTiles]) {
  const Tile tile = locate_tile(p, work);
  if (!p.stores_whole || !is_whole(p, tile)) {
    store_slices<T, Config>(p, afresh(work), afresh(unit), output, sums);
    return;
  }
  const int thread = afresh(static_cast<int>(threadIdx.x));
  const int number = tile.first_row_tile + unit * Config::kRowTiles;
  unsigned char* const lines = output + (thread - kStagers) / 32 * p.shared.output_bytes;
#pragma unroll
  for (int block = 0; block < Config::kRowTiles; block += Config::kJoined) {
    if (number + block >= tile.end_row_tile) return;
    const RowTile<T> row_tile(p, number + block);
    if constexpr (Config::kChannelsLast) {
      store_whole_pixels<T, Config>(p, tile, row_tile, block, thread, shared_address(lines), sums);
    } else if constexpr (Config::kJoined == 2) {
      if (p.phases_in_halves) {
        store_whole_phases<4, T, Config>(p, tile, row_tile, block, thread, sums);
      } else {
        store_whole_phases<2, T, Config>(p, tile, row_tile, block, thread, sums);
      }
    } else if (p.phases_in_halves) {
      store_whole_phases<2, T, Config>(p, tile, row_tile, block, thread, sums);
    } else {
      store_whole_rows<T, Config>(p, tile, row_tile, block, thread, lines, sums);
    }
  }
}

template <typename T, typename Config>
__device__ inline void multiply_works(const WgmmaParams<T>& p, const Ring& ring, unsigned offsets,
                                      const unsigned char* planes, unsigned char* output) {
  RingPlace place;
  unsigned slot = 0;  // of the fragments that are read next
  Fragments<T, Config> fragments;
  fragments.place = shared_address(output) + p.fragments_offset +
                    (static_cast<int>(threadIdx.x) - kStagers) / 32 * (kFragmentPairs * kPairBytes) +
                    threadIdx.x % 32 * 16;
  const auto unit_of = [&](int round) {
    const int warpgroup = static_cast<int>(threadIdx.x) / 128 - 1;
    return p.separate_tiles ? round : round * kGroups + warpgroup;
  };
  const auto prefetch = [&](int work, int round) {
    const Tile tile = locate_tile(p, work);
    const int number = tile.first_row_tile + unit_of(round) * Config::kRowTiles;
    if (number >= tile.end_row_tile) return;
    fragments.open(p, tile, number);
#pragma unroll 1
    for (int i = 0; i < Fragments<T, Config>::kAhead; ++i) {
      fragments.copy(p, (slot + i * kPairBytes) % (kFragmentPairs * kPairBytes));
    }
  };
  int work = static_cast<int>(blockIdx.x);
  const int step = static_cast<int>(gridDim.x);
  if (p.separate_tiles) {
    // Each takes every other work.
    if (threadIdx.x / 128 == 2) {
      place.advance(p.chunks, p.stages);
      work += step;
    }
  }
  if (work >= p.works) return;
  prefetch(work, 0);
  while (true) {
    const int rounds = rounds_of<Config>(p, locate_tile(p, work));
    const int next_work = work + (p.separate_tiles ? kGroups : 1) * step;
    for (int round = 0; round < rounds; ++round) {
      WgmmaSums sums[Config::kSlices][Config::kRowTiles];
      clear<Config>(sums);
      const Tile tile = locate_tile(p, afresh(work));
      const int number = tile.first_row_tile + unit_of(round) * Config::kRowTiles;
      const UnitTile first_tile(p, tile, number, offsets);
      const UnitTile second_tile(p, tile, number + 1, offsets);
      const int first_w = tile.grid_w + p.taps_w.least_offset;
      const int margin =
          p.input_channels_last ? 0 : first_w & (p.load_bytes / static_cast<int>(sizeof(T)) - 1);
      const unsigned first_plane =
          static_cast<unsigned>(p.shared.plane) << 16 | (shared_address(planes) / 16 + margin);
      Bias<T, Config> bias;
      bias.read(p, tile, number);
      RingPlace at = place;
      for (int chunk = 0; chunk < p.chunks; ++chunk) {
        if (!p.keeps_planes || round == 0) wait(ring.full(at.slot), at.parity);
        const unsigned chunk_planes = first_plane + at.slot * (p.chunk_bytes / 16);
        multiply_chunk<T, Config>(p, first_tile, offsets - 16, chunk_planes, 0, fragments, slot, sums);
        if constexpr (Config::kRowTiles == 2) {
          multiply_chunk<T, Config>(p, second_tile, offsets - 16, chunk_planes, 1, fragments, slot, sums);
        }
        if ((!p.keeps_planes || round + 1 == rounds) && threadIdx.x % 32 == 0) arrive(ring.empty(at.slot));
        at.advance(1, p.stages);
      }
      if (!p.keeps_planes || round + 1 == rounds) place = at;
      // The next unit's first fragments come while this one's sums are stored.
      if (round + 1 < rounds) {
        prefetch(afresh(work), round + 1);
      } else if (next_work < p.works) {
        prefetch(next_work, 0);
      }
      bias.add_to(sums);
      store_unit<T, Config>(p, afresh(work), unit_of(round), output, sums);
    }
    if (next_work >= p.works) return;
    work = next_work;
    if (p.separate_tiles) place.advance(p.chunks, p.stages);
  }
}

template <typename T, typename Config>
__global__ void __launch_bounds__(kTileWgmmaThreads, 1)
    tile_wgmma_kernel(const __grid_constant__ WgmmaParams<T> p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(128) unsigned char shared[];
  int* const sizes = reinterpret_cast<int*>(shared);  // what the main loop needs of the parameters
  int* const offsets = sizes + 4;
  unsigned char* const planes = shared + p.shared.planes_offset;
  const Ring ring{shared_address(shared + p.barriers_offset), p.stages};
  const int thread = static_cast<int>(threadIdx.x);
  for_each_offset<kTileWgmmaThreads>(p,
                                     [offsets](int place, int, int, int pixels) { offsets[place] = pixels; });
  if (thread == 0) {
    sizes[0] = 2 * p.shared.plane;
    sizes[1] = p.second_segment;
    sizes[2] = p.chunk_steps / 2;
  }
  if (thread < p.stages) {
    init_barrier(ring.full(thread), kStagers);
    init_barrier(ring.empty(thread), p.separate_tiles ? 4 : 4 * kGroups);
  }
  __syncthreads();
  if (thread < kStagers) {
    release_registers<kStagerRegisters>();
    if (p.input_channels_last) {
      stage_pixel_chunks<T, Config>(p, ring, planes);
    } else {
      stage_row_chunks<T, Config>(p, ring, planes, shared + p.shared.rows_offset);
    }
  } else {
    claim_registers<kMultiplierRegisters>();
    multiply_works<T, Config>(p, ring, shared_address(offsets), planes, shared + p.shared.output_offset);
  }
#endif
}

// ---------------------------------------------------------------- launch

template <typename T, typename Config>
cudaError_t launch_config(const Problem& problem, const TileWgmmaLaunch& launch, void* workspace,
                          cudaStream_t stream) {
  auto* kernel = tile_wgmma_kernel<T, Config>;
  const cudaError_t error = allow_shared_memory(kernel, launch.shared_limit);
  if (error != cudaSuccess) return error;
  constexpr int kSize = static_cast<int>(sizeof(T));
  WgmmaParams<T> p;
  const TileMmaShared shared = tile_wgmma_shared(launch, kSize, problem.output_channels_last);
  set_params(p, problem, launch, shared, {launch.phases_in_halves ? 8 : 16, launch.phases_w}, kStagers,
             workspace);
  p.stages = launch.stages;
  p.row_stages = launch.row_stages;
  p.chunk_bytes = 2 * launch.chunk_steps * shared.plane * 16;
  p.row_bytes = static_cast<int>(tile_mma_row_bytes(shared, launch.chunk_steps, kSize));
  p.barriers_offset = static_cast<unsigned>(shared.planes_offset) - 16 * launch.stages;
  p.separate_tiles = launch.separate_tiles;
  p.phases_in_halves = launch.phases_in_halves;
  p.keeps_planes = launch.keeps_planes();
  p.chunk_stride = launch.max_offsets * launch.chunk_steps * kStepFragments;
  p.row_tile_stride = p.chunks * p.chunk_stride;
  p.numbered_rows = shared.image_numbers / shared.row_numbers;
  p.pixel_step = static_cast<int>(launch.taps_w.stride * p.output_stride.w);
  p.row_step = launch.taps_h.stride * p.output_stride.h -
               shared.row_numbers * launch.taps_w.stride * p.output_stride.w;
  p.image_step = p.output_stride.n - p.numbered_rows * launch.taps_h.stride * p.output_stride.h;
  p.fragments_offset = 4 * kGroups * shared.output_bytes;
  // What a thread stores of whole tiles at once are two pixels of one row, or eight output channels: aligned
  // and side by side.
  const bool channels = problem.cout_per_group % launch.couts() == 0;
  const bool phases = launch.taps_w.stride % launch.taps_w.set_size == 0;
  const bool pairs = launch.phases_w == launch.taps_w.stride && launch.cols % 2 == 0 &&
                     shared.row_numbers % 2 == 0 && p.store_bytes >= 2 * kSize * launch.phases_w;
  p.stores_whole = channels && phases && (problem.output_channels_last ? p.store_bytes == 16 : pairs);
  const int second_row = kSegment / shared.row_numbers;
  p.second_segment = launch.flat_numbers
                         ? kSegment
                         : second_row * shared.input_cols + kSegment - second_row * shared.row_numbers;
  kernel<<<static_cast<unsigned>(launch.grid), kTileWgmmaThreads, launch.shared_bytes, stream>>>(p);
  return cudaGetLastError();
}

// Calls the instantiation for launch.config.
template <typename T, int kIndex = 0>
cudaError_t launch_for(const Problem& problem, const TileWgmmaLaunch& launch, void* workspace,
                       cudaStream_t stream) {
  if constexpr (kIndex < kTileWgmmaConfigCount) {
    if (launch.config == kIndex) {
      return problem.output_channels_last
                 ? launch_config<T, Config<kIndex, true>>(problem, launch, workspace, stream)
                 : launch_config<T, Config<kIndex, false>>(problem, launch, workspace, stream);
    }
    return launch_for<T, kIndex + 1>(problem, launch, workspace, stream);
  } else {
    return cudaErrorInvalidValue;
  }
}

}  // namespace tile_wgmma
}  // namespace convt
