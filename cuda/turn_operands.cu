// turn_operands: lays out the operands of implicit_gemm as tensor maps read them, where they do not lie so.
//
//   input    [image][pixel][group][channel], channels padded to 16 bytes
//   weight   [group][tap][channel][output channel], output channels padded to 16 bytes; of float32
//            [group][tap][output channel][channel], channels padded
//
// Both are batches of matrices to be transposed: what is to lie side by side are `rows`, what mostly does are
// `cols`. One launch does both operands. Columns of a contiguous weight of float32 are all its taps, which go
// to other places. A weight of 16 bits whose output channels are folded is gathered; a contiguous one whose
// taps are no whole vectors is brought to shared memory as it lies, and gathered there. float32 is rounded to
// TF32 on the way, as tensor copies would make infinities of the largest numbers; of IEEE float32 it is split
// into two such numbers, and all second parts follow all first ones.
//
// Mapping: a block takes a tile of 4096 elements of one matrix, or of 8192 of 16 bits: 64 columns or, where
// there are fewer, more rows. It copies pieces of rows to shared memory, as wide as their alignment allows,
// turns them on their way to registers (16-bit elements 8 x 8 at a time, by ldmatrix; float32 4 x 4 in
// registers where rows are whole pieces of 16 bytes), and writes columns in 16 bytes. Rows of float32 that
// lie side by side already (channels_last) do not pass through shared memory.

#include "convt/alignment.h"
#include "convt/device/async_copy.cuh"
#include "convt/device/launch.cuh"
#include "convt/device/mma.cuh"
#include "convt/device/tf32.cuh"
#include "convt/device/wgmma.cuh"
#include "convt/kernels.h"

namespace convt {
namespace {

constexpr int kThreads = 256;
// Elements of a tile, by their bytes: what a block has to find out before it begins should be little beside
// it.
template <int kSize>
inline constexpr int kLog2Tile = kSize == 2 ? 13 : 12;
template <int kSize>
inline constexpr int kTile = 1 << kLog2Tile<kSize>;

// Distances in elements. Column j lies at j / col_w and j % col_w.
struct Matrices {
  const void* from;
  void* to;
  int64_t row_from, col_h_from, col_w_from, col_to;
  int64_t batch_from[2], batch_to[2];
  int64_t part_to;                                // between the first parts and the second
  bool folds;                                     // columns go where folded_line says
  Divisor<int> col_w, batches, tiles_r, tiles_c;  // batches of the second kind
  int rows, padded_rows, cols;
  int log2_width;  // columns of a tile
  int copy_bytes;  // of neighbouring columns or, where rows lie side by side, of rows
  bool rows_side_by_side;
  int tiles;  // of all batches
};

// A weight whose output channels are folded (convt/implicit_gemm.h). Numbers are those of the folded one, but
// for the strides.
struct FoldedWeight {
  const void* from;
  void* to;
  WeightStrides stride;
  int64_t part_to;
  int taps, groups, cin, cout, padded;
  // 16 bytes of a line each, innermost first; then groups.
  Divisor<int> taps_w, all_taps, couts, cins;
  Divisor<int> fold, fold_h, fold_w;
  Divisor<int> kernel, kernel_w;  // all taps, and those of a row, not folded
  int copy_bytes;                 // of neighbouring columns, of 16 bits
  int blocks;
};

// A contiguous weight, eight output channels of a channel at a time: a piece of 8 * taps elements.
struct WeightPieces {
  const void* from;
  void* to;
  Divisor<int> taps, couts, cins;  // pieces of a channel; channels of a group
  int pieces, of_block;
  int blocks;
};

struct TurnParams {
  Matrices jobs[2];
  FoldedWeight folded;
  WeightPieces pieces;
};

// A tile in shared memory, as it is read.
template <int kSize>
struct Tile {
  static constexpr int kLeastLog2Width = kSize == 2 ? 4 : 0, kMostLog2Width = 6;
  static constexpr int kLeastLog2Padded = 2;
  static constexpr int kElements = kTile<kSize> + (kSize == 2 ? 0 : kTile<kSize> >> kLeastLog2Padded);

  // Lines of 4-byte elements are padded by one, so that a column of them does not meet one bank.
  __device__ static int pitch(int log2_width) {
    return (1 << log2_width) + (kSize == 4 && log2_width >= kLeastLog2Padded ? 1 : 0);
  }
};

static_assert(2 * Tile<2>::kElements <= 48 * 1024 && 4 * Tile<4>::kElements <= 48 * 1024,
              "static shared memory");

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Lines of 16-bit elements have no padding; their 16-byte pieces are swapped, so that those which ldmatrix
// reads together, of two neighbouring rows and the same two of the next eights, lie in different banks.
__device__ inline int swapped_piece(int log2_width, int row, int piece) {
  const int pieces = 1 << (log2_width - 3);
  const int by = pieces == 8 ? row / 8 * 2 + row % 2 : row / 8;
  return piece ^ (by & (pieces - 1));
}

// Copies a tile, zeros where it leaves the matrix.
template <int kBytes, typename T>
__device__ inline void load_tile(const Matrices& m, const T* from, int first_row, int first_col, T* tile) {
  constexpr int kVector = kBytes / sizeof(T);
  const int pitch = Tile<sizeof(T)>::pitch(m.log2_width);
#pragma unroll 8
  for (int i = 0; i < kTile<sizeof(T)> / kVector / kThreads; ++i) {
    const int n = (i * kThreads + static_cast<int>(threadIdx.x)) * kVector;
    const int row = n >> m.log2_width, col = n & ((1 << m.log2_width) - 1);
    const bool exists = first_row + row < m.rows && first_col + col < m.cols;
    const int place = sizeof(T) == 2 ? swapped_piece(m.log2_width, row, col / 8) * 8 + col % 8 : col;
    T* const to = tile + row * pitch + place;
    const T* const source = from + (first_row + row) * m.row_from;
    if constexpr (kVector > 1) {
      copy_async<kBytes>(to, source + first_col + col, exists);
    } else {
      const auto by_row = m.col_w.divide(min(first_col + col, m.cols - 1));
      const T* const element = source + by_row.quotient * m.col_h_from + by_row.remainder * m.col_w_from;
      if constexpr (kBytes >= kLeastCopyBytes) {
        copy_async<kBytes>(to, element, exists);
      } else {
        *to = exists ? *element : T(0);
      }
    }
  }
}

// Writes 32 rows of 8 columns at a time: a lane has 8 rows of one.
__device__ inline void store_turned(const Matrices& m, unsigned short* to, int first_row, int first_col,
                                    const unsigned short* tile) {
  constexpr int kWarps = kThreads / 32, kBlocks = kTile<2> / 256 / kWarps;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int log2_pieces = m.log2_width - 3;
  unsigned x[kBlocks][4];
  int row[kBlocks], col[kBlocks];
#pragma unroll
  for (int i = 0; i < kBlocks; ++i) {
    const int number = i * kWarps + warp, piece = number & ((1 << log2_pieces) - 1);
    const int first = (number >> log2_pieces) * 32;
    // Rows 2 j and 2 j + 1 of the four matrices follow each other, so that a lane's pairs do.
    const int read = first + lane % 8 / 2 * 8 + lane / 8 * 2 + lane % 2;
    load_transposed(
        shared_address(tile + (read << m.log2_width) + swapped_piece(m.log2_width, read, piece) * 8), x[i]);
    row[i] = first_row + first + lane % 4 * 8;
    col[i] = first_col + piece * 8 + lane / 4;
  }
#pragma unroll
  for (int i = 0; i < kBlocks; ++i) {
    if (row[i] >= m.padded_rows || col[i] >= m.cols) continue;
    *reinterpret_cast<uint4*>(to + col[i] * m.col_to + row[i]) =
        make_uint4(x[i][0], x[i][1], x[i][2], x[i][3]);
  }
}

// Writes four rows of a column, rounded or split.
template <int kParts>
__device__ inline void store_parts(int64_t part_to, unsigned* to, const uint4& x) {
  uint4 parts[kParts];
  split_tf32(x, parts);
#pragma unroll
  for (int part = 0; part < kParts; ++part) *reinterpret_cast<uint4*>(to + part * part_to) = parts[part];
}

// The line of a tap and output channel that is `column` of the contiguous weight, [cout][tap], not folded.
__device__ inline int folded_line(const FoldedWeight& f, int column) {
  const auto by_cout = f.kernel.divide(column);
  const auto by_row = f.kernel_w.divide(by_cout.remainder);
  const auto h = f.fold_h.divide(by_row.quotient), w = f.fold_w.divide(by_row.remainder);
  return (h.quotient * f.taps_w + w.quotient) * f.cout + by_cout.quotient * f.fold + h.remainder * f.fold_w +
         w.remainder;
}

template <int kParts>
__device__ inline void store_tile(const Matrices& m, const FoldedWeight& f, unsigned* to, int first_row,
                                  int first_col, const unsigned* tile) {
  const int log2_height = kLog2Tile<4> - m.log2_width, pitch = Tile<4>::pitch(m.log2_width);
#pragma unroll
  for (int i = 0; i < kTile<4> / 4 / kThreads; ++i) {
    const int n = (i * kThreads + static_cast<int>(threadIdx.x)) * 4;
    const int row = n & ((1 << log2_height) - 1), col = n >> log2_height;
    if (first_row + row >= m.padded_rows || first_col + col >= m.cols) continue;
    const int line = m.folds ? folded_line(f, first_col + col) : first_col + col;
    const unsigned* const at = tile + row * pitch + col;
    store_parts<kParts>(m.part_to, to + line * m.col_to + first_row + row,
                        make_uint4(at[0], at[pitch], at[2 * pitch], at[3 * pitch]));
  }
}

// Lines of 4-byte elements without padding, whose 16-byte pieces are swapped: what a lane reads of four rows
// lies in other banks than what its neighbours read of the next four.
struct Quads {
  int log2_width;

  __device__ int place(int row, int piece) const {
    const int pieces = 1 << (log2_width - 2);
    return (row << log2_width) + (piece ^ (row / 4 & (min(pieces, 8) - 1))) * 4;
  }
};

// Copies a tile in pieces of 16 bytes, zeros where it leaves the matrix.
__device__ inline void load_quads(const Matrices& m, const unsigned* from, int first_row, int first_col,
                                  unsigned* tile) {
  const Quads quads = {m.log2_width};
#pragma unroll
  for (int i = 0; i < kTile<4> / 4 / kThreads; ++i) {
    const int n = i * kThreads + static_cast<int>(threadIdx.x);
    const int row = n >> (m.log2_width - 2), piece = n & ((1 << (m.log2_width - 2)) - 1);
    const bool exists = first_row + row < m.rows && first_col + piece * 4 < m.cols;
    copy_async<16>(tile + quads.place(row, piece),
                   from + (first_row + row) * m.row_from + first_col + piece * 4, exists);
  }
}

// Writes four rows of four columns, rounded or split.
template <int kParts>
__device__ inline void store_quads(const Matrices& m, const FoldedWeight& f, unsigned* to, int first_row,
                                   int first_col, const unsigned* tile) {
  static_assert(kTile<4> == 16 * kThreads);
  const Quads quads = {m.log2_width};
  const int log2_height = kLog2Tile<4> - m.log2_width, thread = static_cast<int>(threadIdx.x);
  const int row = (thread & ((1 << (log2_height - 2)) - 1)) * 4, piece = thread >> (log2_height - 2);
  if (first_row + row >= m.padded_rows) return;
  uint4 x[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) x[i] = *reinterpret_cast<const uint4*>(tile + quads.place(row + i, piece));
  const uint4 turned[4] = {
      make_uint4(x[0].x, x[1].x, x[2].x, x[3].x), make_uint4(x[0].y, x[1].y, x[2].y, x[3].y),
      make_uint4(x[0].z, x[1].z, x[2].z, x[3].z), make_uint4(x[0].w, x[1].w, x[2].w, x[3].w)};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int col = first_col + piece * 4 + i;
    if (col >= m.cols) break;
    const int line = m.folds ? folded_line(f, col) : col;
    store_parts<kParts>(m.part_to, to + line * m.col_to + first_row + row, turned[i]);
  }
}

// The same of rows that lie side by side, straight from the operand.
template <int kBytes, int kParts>
__device__ inline void round_tile(const Matrices& m, const unsigned* from, unsigned* to, int first_row,
                                  int first_col) {
  constexpr int kVector = kBytes / 4;
  const int log2_height = kLog2Tile<4> - m.log2_width;
#pragma unroll
  for (int i = 0; i < kTile<4> / 4 / kThreads; ++i) {
    const int n = (i * kThreads + static_cast<int>(threadIdx.x)) * 4;
    const int row = first_row + (n & ((1 << log2_height) - 1)), col = first_col + (n >> log2_height);
    if (row >= m.padded_rows || col >= m.cols) continue;
    const auto place = m.col_w.divide(col);
    const unsigned* const source =
        from + place.quotient * m.col_h_from + place.remainder * m.col_w_from + row;
    unsigned x[4] = {};
#pragma unroll
    for (int j = 0; j < 4; j += kVector) {
      if (row + j >= m.rows) continue;
      if constexpr (kVector == 4) {
        const uint4 four = *reinterpret_cast<const uint4*>(source);
        x[0] = four.x, x[1] = four.y, x[2] = four.z, x[3] = four.w;
      } else if constexpr (kVector == 2) {
        const uint2 two = *reinterpret_cast<const uint2*>(source + j);
        x[j] = two.x, x[j + 1] = two.y;
      } else {
        x[j] = source[j];
      }
    }
    store_parts<kParts>(m.part_to, to + col * m.col_to + row, make_uint4(x[0], x[1], x[2], x[3]));
  }
}

// One thread, 16 bytes: reads are scattered, as far as the sectors that neighbours read allow. Folded columns
// of 16-bit taps follow each other in the weight, and are read kBytes at a time.
template <int kBytes, int kParts, typename T>
__device__ inline void turn_folded(const FoldedWeight& f, int block) {
  constexpr int kVector = 16 / sizeof(T), kRun = kBytes / static_cast<int>(sizeof(T));
  constexpr bool kAlongCin = sizeof(T) == 4;
  const auto by_tap = f.all_taps.divide(block * kThreads + static_cast<int>(threadIdx.x));
  const auto by_cout = f.couts.divide(by_tap.quotient);
  const auto by_cin = f.cins.divide(by_cout.quotient);
  const int group = by_cin.quotient, first_cout = by_cout.remainder * (kAlongCin ? 1 : kVector),
            first_cin = by_cin.remainder * (kAlongCin ? kVector : 1);
  if (group >= f.groups) return;
  const auto tap = f.taps_w.divide(by_tap.remainder);
  const T* const from = static_cast<const T*>(f.from) + int64_t{group} * f.cin * f.stride.cin;
  unsigned words[4] = {};
#pragma unroll
  for (int i = 0; i < kVector; i += kRun) {
    const int cout = first_cout + (kAlongCin ? 0 : i), cin = first_cin + (kAlongCin ? i : 0);
    if (cin >= f.cin || cout >= f.cout) continue;
    const auto by_fold = f.fold.divide(cout);
    const auto by_row = f.fold_w.divide(by_fold.remainder);
    const int kh = tap.quotient * f.fold_h + by_row.quotient,
              kw = tap.remainder * f.fold_w + by_row.remainder;
    const T* const source =
        from + cin * f.stride.cin + by_fold.quotient * f.stride.cout + kh * f.stride.kh + kw * f.stride.kw;
    if constexpr (kBytes == 16) {
      const uint4 x = *reinterpret_cast<const uint4*>(source);
      words[0] = x.x, words[1] = x.y, words[2] = x.z, words[3] = x.w;
    } else if constexpr (kBytes == 8) {
      const uint2 x = *reinterpret_cast<const uint2*>(source);
      words[i / 2] = x.x, words[i / 2 + 1] = x.y;
    } else if constexpr (kBytes == 4) {
      words[i * static_cast<int>(sizeof(T)) / 4] = *reinterpret_cast<const unsigned*>(source);
    } else {
      words[i / 2] |= static_cast<unsigned>(*source) << 16 * (i % 2);
    }
  }
  const int64_t line = (int64_t{group} * f.taps + by_tap.remainder) * (kAlongCin ? f.cout : f.cin) +
                       (kAlongCin ? first_cout : first_cin);
  T* const to = static_cast<T*>(f.to) + line * f.padded + (kAlongCin ? first_cin : first_cout);
  const uint4 x = make_uint4(words[0], words[1], words[2], words[3]);
  if constexpr (kAlongCin) {
    store_parts<kParts>(f.part_to, to, x);
  } else {
    *reinterpret_cast<uint4*>(to) = x;
  }
}

// Takes a block's pieces, which lie side by side, to shared memory, and gathers eight output channels of a
// tap at a time.
__device__ inline void turn_pieces(const WeightPieces& w, int block, unsigned short* tile) {
  constexpr int kVector = 8;
  const int first = block * w.of_block, taps = w.taps;
  const int vectors = min(w.of_block, w.pieces - first) * taps;
  const auto* const from = static_cast<const unsigned short*>(w.from) + int64_t{first} * taps * kVector;
  for (int i = static_cast<int>(threadIdx.x); i < vectors; i += kThreads)
    copy_async<16>(tile + i * kVector, from + i * kVector, true);
  wait_for_copies();
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < vectors; i += kThreads) {
    const auto by_tap = w.taps.divide(i);
    const unsigned short* const of_tap = tile + by_tap.quotient * taps * kVector + by_tap.remainder;
    const auto by_cout = w.couts.divide(first + by_tap.quotient);
    const auto by_cin = w.cins.divide(by_cout.quotient);
    const auto pair = [&](int j) {
      return of_tap[j * taps] | static_cast<unsigned>(of_tap[(j + 1) * taps]) << 16;
    };
    const int64_t line = (int64_t{by_cin.quotient} * taps + by_tap.remainder) * w.cins + by_cin.remainder;
    auto* const to = static_cast<unsigned short*>(w.to) + (line * w.couts + by_cout.remainder) * kVector;
    *reinterpret_cast<uint4*>(to) = make_uint4(pair(0), pair(2), pair(4), pair(6));
  }
}

#endif

// Thread blocks of a multiprocessor for which registers are to suffice. Others than that of compute
// capability 9.0 have nothing to do, and may hold fewer threads.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
template <int kParts>
inline constexpr int kResident = kParts == 1 ? 8 : 5;
#else
template <int>
inline constexpr int kResident = 1;
#endif

template <typename T, int kParts>
__global__ void __launch_bounds__(kThreads, kResident<kParts>)
    turn_kernel(const __grid_constant__ TurnParams p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  __shared__ __align__(16) T tile[Tile<sizeof(T)>::kElements];
  release_next_kernel();
  int number = static_cast<int>(blockIdx.x);
  const bool second = number >= p.jobs[0].tiles;
  if (second) number -= p.jobs[0].tiles;
  if (second && p.folded.blocks > 0) {
    if constexpr (sizeof(T) == 4) return turn_folded<4, kParts, T>(p.folded, number);
    return with_width(p.folded.copy_bytes,
                      [&](auto width) { turn_folded<decltype(width)::value, kParts, T>(p.folded, number); });
  }
  if constexpr (sizeof(T) == 2) {
    if (second && p.pieces.blocks > 0) return turn_pieces(p.pieces, number, tile);
  }
  const Matrices& m = p.jobs[second];
  const auto by_row = m.tiles_r.divide(number);
  const auto by_col = m.tiles_c.divide(by_row.quotient);
  const auto by_batch = m.batches.divide(by_col.quotient);
  const int first_row = by_row.remainder << (kLog2Tile<sizeof(T)> - m.log2_width);
  const int first_col = by_col.remainder << m.log2_width;
  const T* const from = static_cast<const T*>(m.from) + by_batch.quotient * m.batch_from[0] +
                        by_batch.remainder * m.batch_from[1];
  T* const to =
      static_cast<T*>(m.to) + by_batch.quotient * m.batch_to[0] + by_batch.remainder * m.batch_to[1];
  if constexpr (sizeof(T) == 4) {
    if (m.rows_side_by_side) {
      with_width_from<4>(m.copy_bytes, [&](auto width) {
        round_tile<decltype(width)::value, kParts>(m, from, to, first_row, first_col);
      });
      return;
    }
  }
  if constexpr (sizeof(T) == 4) {
    if (m.copy_bytes == 16) {
      load_quads(m, from, first_row, first_col, tile);
      wait_for_copies();
      __syncthreads();
      return store_quads<kParts>(m, p.folded, to, first_row, first_col, tile);
    }
    // Padded lines begin at any multiple of 4 bytes.
    load_tile<sizeof(T)>(m, from, first_row, first_col, tile);
  } else {
    with_width_from<sizeof(T)>(m.copy_bytes, [&](auto width) {
      load_tile<decltype(width)::value>(m, from, first_row, first_col, tile);
    });
  }
  wait_for_copies();
  __syncthreads();
  if constexpr (sizeof(T) == 2) {
    store_turned(m, to, first_row, first_col, tile);
  } else {
    store_tile<kParts>(m, p.folded, to, first_row, first_col, tile);
  }
#endif
}

// Sets the tiles of `batches` matrices, and how they are read.
template <typename T>
void divide(Matrices& m, int64_t batches) {
  using Tile = Tile<sizeof(T)>;
  m.log2_width = Tile::kLeastLog2Width;
  while (m.log2_width < Tile::kMostLog2Width && 1 << m.log2_width < m.cols) ++m.log2_width;
  const int width = 1 << m.log2_width, height = kTile<sizeof(T)> / width;
  m.tiles_r = (m.padded_rows + height - 1) / height;
  m.tiles_c = (m.cols + width - 1) / width;
  m.tiles = static_cast<int>(batches * m.tiles_r * m.tiles_c);
  constexpr int kSize = sizeof(T), kVector = 16 / kSize;
  m.copy_bytes = kSize;
  m.rows_side_by_side = kSize == 4 && !m.folds && (m.row_from == 1 || m.rows == 1);
  const bool side_by_side = m.col_w_from == 1 && (m.cols == m.col_w || m.col_h_from == m.col_w);
  if (!m.rows_side_by_side && !side_by_side) return;
  const int of_batches = common_power_of_two(kVector, m.batch_from[0], m.batch_from[1]);
  const int elements = m.rows_side_by_side
                           ? common_power_of_two(of_batches, m.rows, m.col_w_from, m.col_h_from)
                           : common_power_of_two(of_batches, m.cols, m.row_from);
  m.copy_bytes = aligned_bytes(m.from, elements * kSize);
}

template <typename T, int kParts>
cudaError_t launch_turn(const Problem& unfolded, const ImplicitGemmLaunch& t, void* workspace,
                        cudaStream_t stream) {
  const Problem problem = folded(unfolded, t.fold_h, t.fold_w);
  TurnParams p = {};
  const int cin = static_cast<int>(problem.cin_per_group), cout = static_cast<int>(problem.cout_per_group);
  if (t.turns_input) {
    Matrices& m = p.jobs[0];
    const ActivationStrides& in = problem.input_stride;
    m.from = problem.input;
    m.to = workspace;
    m.rows = cin;
    m.padded_rows = static_cast<int>(t.padded_cin);
    m.cols = static_cast<int>(problem.h.input * problem.w.input);
    m.col_w = static_cast<int>(problem.w.input);
    m.row_from = in.c;
    m.col_h_from = in.h;
    m.col_w_from = in.w;
    m.col_to = problem.groups * t.padded_cin;
    m.batches = static_cast<int>(problem.groups);
    m.batch_from[0] = in.n;
    m.batch_from[1] = cin * in.c;
    m.batch_to[0] = m.cols * m.col_to;
    m.batch_to[1] = t.padded_cin;
    m.part_to = problem.batch * m.batch_to[0];
    divide<T>(m, problem.batch * problem.groups);
  }
  constexpr bool kAlongCin = sizeof(T) == 4;
  constexpr int kVector = 16 / sizeof(T);
  constexpr int kLongRow = 16;  // so many taps of an output channel are read together well enough
  const int64_t all_columns = unfolded.w.kernel, all_taps = unfolded.h.kernel * all_columns;
  const bool contiguous = [&] {
    const WeightStrides& w = unfolded.weight_stride;
    return (all_columns == 1 || w.kw == 1) && (unfolded.h.kernel == 1 || w.kh == all_columns) &&
           (unfolded.cout_per_group == 1 || w.cout == all_taps);
  }();
  const bool pieces = !kAlongCin && contiguous && t.fold() == 1 && all_taps % kVector != 0 &&
                      all_taps <= kTile<sizeof(T)> / kVector && cout % kVector == 0 &&
                      (problem.cin() == 1 || unfolded.weight_stride.cin == cout * all_taps) &&
                      is_aligned(problem.weight, 16);
  if (t.turns_weight && pieces) {
    WeightPieces& w = p.pieces;
    w.from = problem.weight;
    w.to = static_cast<unsigned char*>(workspace) + t.weight_offset;
    w.taps = static_cast<int>(all_taps);
    w.couts = cout / kVector;
    w.cins = cin;
    w.pieces = static_cast<int>(problem.cin() * w.couts);
    w.of_block = kTile<sizeof(T)> / kVector / w.taps;
    w.blocks = (w.pieces + w.of_block - 1) / w.of_block;
  } else if (t.turns_weight && (t.fold() > 1 || (kAlongCin && contiguous && all_taps % kLongRow != 0))) {
    FoldedWeight& f = p.folded;
    const WeightStrides& w = unfolded.weight_stride;
    const int64_t kernel_w = all_columns, kernel = all_taps;
    f.from = problem.weight;
    f.to = static_cast<unsigned char*>(workspace) + t.weight_offset;
    f.stride = unfolded.weight_stride;
    f.fold_h = t.fold_h;
    f.fold_w = t.fold_w;
    f.fold = t.fold();
    f.taps_w = static_cast<int>(problem.w.kernel);
    f.taps = static_cast<int>(problem.h.kernel) * f.taps_w;
    f.all_taps = f.taps;
    f.groups = static_cast<int>(problem.groups);
    f.cin = cin;
    f.cout = cout;
    f.padded = static_cast<int>(kAlongCin ? t.padded_cin : t.padded_cout);
    f.couts = kAlongCin ? cout : f.padded / kVector;
    f.cins = kAlongCin ? f.padded / kVector : cin;
    f.part_to = int64_t{f.groups} * f.taps * (kAlongCin ? cout : cin) * f.padded;
    f.kernel = static_cast<int>(kernel);
    f.kernel_w = static_cast<int>(kernel_w);
    const int elements = w.kw == 1 ? common_power_of_two(kVector, t.fold_w, w.kh, w.cout, w.cin) : 1;
    f.copy_bytes = aligned_bytes(f.from, elements * static_cast<int>(sizeof(T)));
    if (kAlongCin && contiguous) {
      Matrices& m = p.jobs[1];
      m.folds = true;
      m.from = f.from;
      m.to = f.to;
      m.rows = cin;
      m.padded_rows = f.padded;
      m.cols = static_cast<int>(unfolded.cout_per_group * kernel);
      m.col_w = m.cols;
      m.row_from = w.cin;
      m.col_w_from = 1;
      m.col_to = f.padded;
      m.batches = 1;
      m.batch_from[0] = cin * w.cin;
      m.batch_to[0] = int64_t{m.cols} * f.padded;
      m.part_to = f.part_to;
      divide<T>(m, f.groups);
    } else {
      f.blocks = (f.groups * f.taps * f.couts * f.cins + kThreads - 1) / kThreads;
    }
  } else if (t.turns_weight) {
    Matrices& m = p.jobs[1];
    const WeightStrides& w = problem.weight_stride;
    const int64_t padded = kAlongCin ? t.padded_cin : t.padded_cout;
    m.from = problem.weight;
    m.to = static_cast<unsigned char*>(workspace) + t.weight_offset;
    m.rows = kAlongCin ? cin : cout;
    m.padded_rows = static_cast<int>(padded);
    m.cols = static_cast<int>(problem.h.kernel * problem.w.kernel);
    m.col_w = static_cast<int>(problem.w.kernel);
    m.row_from = kAlongCin ? w.cin : w.cout;
    m.col_h_from = w.kh;
    m.col_w_from = w.kw;
    const int taps = m.cols, others = kAlongCin ? cout : cin;
    m.batch_from[0] = cin * w.cin;
    m.batch_to[0] = taps * others * padded;
    if (kAlongCin && w.cout == 1 && (problem.h.kernel == 1 || w.kh == problem.w.kernel * w.kw)) {
      // The output channels of a tap lie side by side already: a matrix for each tap.
      m.cols = cout;
      m.col_w = cout;
      m.col_h_from = 0;
      m.col_w_from = 1;
      m.col_to = padded;
      m.batches = taps;
      m.batch_from[1] = w.kw;
      m.batch_to[1] = cout * padded;
    } else {
      m.col_to = others * padded;
      m.batches = others;
      m.batch_from[1] = kAlongCin ? w.cout : w.cin;
      m.batch_to[1] = padded;
    }
    m.part_to = problem.groups * m.batch_to[0];
    divide<T>(m, problem.groups * static_cast<int>(m.batches));
  }
  const int blocks = p.jobs[0].tiles + p.jobs[1].tiles + p.folded.blocks + p.pieces.blocks;
  return launch_early(turn_kernel<T, kParts>, blocks, kThreads, 0, stream, p, 1, false);
}

}  // namespace

cudaError_t launch_turn_operands(const Problem& problem, const ImplicitGemmLaunch& launch, void* workspace,
                                 cudaStream_t stream) {
  if (!launch.turns_input && !launch.turns_weight) return cudaSuccess;
  // 16-bit elements are moved, not computed with.
  auto* const turn = launch.element_size == 2 ? launch_turn<unsigned short, 1>
                     : launch.parts == 1      ? launch_turn<unsigned, 1>
                                              : launch_turn<unsigned, 2>;
  return turn(problem, launch, workspace, stream);
}

}  // namespace convt
