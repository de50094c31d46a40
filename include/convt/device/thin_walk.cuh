// thin, where all phases along H see the same few neighbouring rows: a warp takes a row of the input once,
// for all points that see it.
//
// Point q takes rows q + offset[0], q + offset[1], ... and is done with the last, so a warp that goes down
// the rows has the sums of as many points in registers as there are offsets. The input is copied
// asynchronously, some chunks of channels ahead: a lane copies what it will multiply itself, so nobody waits
// for another, and registers hold two steps of it at a time.
//
// Otherwise as thin: products of a point are kept in shared memory, and outputs gathered from there while the
// next row is multiplied.
#pragma once

#include <type_traits>

#include "convt/device/async_copy.cuh"
#include "convt/device/thin.cuh"

namespace convt {
namespace thin {

// ---------------------------------------------------------------- read

// Where a lane reads in a row of the input, in bytes from the share's first pixel and channel: the first of
// four pixels that are read at once or, along C, one of four pixels.
template <bool kAlongW, typename T>
__device__ inline unsigned place_pixel(const Params<T>& p, const Share& share, int group_pixel, int j) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto place = p.cols.divide(group_pixel + lane / 4 * 4 + j);
  const int64_t image = min(place.quotient, share.images - 1);
  const int64_t col = min(share.first_col + place.remainder, p.input_w - (kAlongW ? 4 : 1));
  const int64_t channel = kAlongW ? lane % 4 * kPair<T> : lane % 4 * 4 * kPair<T>;
  return static_cast<unsigned>(
      (image * p.input_stride.n + col * p.input_stride.w + channel * p.input_stride.c) * sizeof(T));
}

// Along C they wait in the thread's 16 bytes of shared memory.
template <bool kAlongW>
struct LanePlaces {
  unsigned at;

  template <typename T>
  __device__ LanePlaces(const Params<T>& p, const Share& share, int group_pixel, unsigned waiting) {
    if constexpr (kAlongW) {
      at = place_pixel<true>(p, share, group_pixel, 0);
    } else {
      at = waiting + 16 * threadIdx.x;
      unsigned places[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) places[j] = place_pixel<false>(p, share, group_pixel, j);
      asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(places[0]), "r"(places[1]),
                   "r"(places[2]), "r"(places[3])
                   : "memory");
    }
  }
};

// Copies a chunk to the lane's 16 bytes of each of eight lines of the warp's stage: a line has the lane's
// four pixels of the channels of a register, two lines to a step, or 16 bytes of channels of a pixel, two
// lines to a pixel. `first` is the row's first pixel in the chunk's first channel; `channels` of the chunk
// exist.
template <bool kAlongW, typename T>
__device__ inline void copy_chunk(const Params<T>& p, const T* first, int channels,
                                  const LanePlaces<kAlongW>& places, unsigned stage) {
  const auto* row = reinterpret_cast<const unsigned char*>(first);
  const int member = static_cast<int>(threadIdx.x) % 4;
  if constexpr (kAlongW) {
    constexpr int kBytes = 4 * sizeof(T);
    const int64_t channel_bytes = p.input_stride.c * static_cast<int64_t>(sizeof(T));
    const int64_t line_bytes = 4 * kPair<T> * channel_bytes;
    const unsigned char* source = row + places.at;
    const int own = channels - member * kPair<T>;
#pragma unroll
    for (int line = 0; line < 2 * kChunkSteps; ++line) {
      // Pairs of steps without channels are not multiplied.
      if (line % 4 == 0 && line / 2 * kStepChannels<T> >= channels) break;
#pragma unroll
      for (int e = 0; e < kPair<T>; ++e)
        copy_async<kBytes>(stage + line * 512 + e * kBytes, source + e * channel_bytes,
                           line * 4 * kPair<T> + e < own);
      source += line_bytes;
    }
  } else {
    const uint4 at = load_words(places.at);
#pragma unroll
    for (int line = 0; line < 8; ++line) {
      const unsigned pixel = line < 2 ? at.x : line < 4 ? at.y : line < 6 ? at.z : at.w;
      const int channel = line % 2 * (kChunkChannels<T> / 2);
      copy_async<16>(stage + line * 512, row + pixel + channel * static_cast<int>(sizeof(T)),
                     channel + member * 4 * kPair<T> < channels);
    }
  }
}

// Reads steps 2 * pair and 2 * pair + 1 of a chunk back.
template <bool kAlongW>
__device__ inline void read_pair(unsigned stage, int pair, ChunkWords& words) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int line = kAlongW ? 4 * pair + i : 2 * i + pair;
    const uint4 x = load_words(stage + line * 512);
    unsigned* const w = words.at + 4 * line;
    w[0] = x.x, w[1] = x.y, w[2] = x.z, w[3] = x.w;
  }
}

// ---------------------------------------------------------------- multiply

// Rounds the words of two steps to TF32, or splits them: `words` take the first parts.
template <int kParts, bool kAlongW>
__device__ inline void convert_pair(int pair, ChunkWords& words, ChunkWords& second) {
  const auto line_of = [pair](int i) { return kAlongW ? 4 * pair + i : 2 * i + pair; };
  OrdinaryTest ordinary;
#pragma unroll
  for (int i = 0; i < 16; ++i) ordinary.add(words.at[4 * line_of(i / 4) + i % 4]);
  const auto convert = [&](auto are_ordinary) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      unsigned* const w = words.at + 4 * line_of(i);
      uint4 parts[kParts];
      split_words<decltype(are_ordinary)::value>(make_uint4(w[0], w[1], w[2], w[3]), parts);
      w[0] = parts[0].x, w[1] = parts[0].y, w[2] = parts[0].z, w[3] = parts[0].w;
      if constexpr (kParts == 2) {
        unsigned* const s = second.at + 4 * line_of(i);
        s[0] = parts[1].x, s[1] = parts[1].y, s[2] = parts[1].z, s[3] = parts[1].w;
      }
    }
  };
  if (ordinary.passes()) {
    convert(std::true_type{});
  } else {
    convert(std::false_type{});
  }
}

// Where the A fragments of a chunk begin, and the distances of offsets, and of steps and parts.
struct ChunkWeight {
  const FragmentA* first;
  int offset, part;
};

// The sums of all points at hand. The one that takes offset i of a row is number (turn + kOffsets - 1 - i)
// mod kOffsets in turn `turn`, so that none has to move.
template <int kBlocks, int kOffsets>
using PointSums = Sums<kBlocks>[kOffsets];

template <int kOffsets>
__device__ constexpr int sums_of(int turn, int offset) {
  return (turn + kOffsets - 1 - offset) % kOffsets;
}

// Multiplies a chunk, of so many channels, that has been copied.
template <int kTurn, int kParts, int kBlocks, int kOffsets, bool kAlongW, typename T>
__device__ inline void multiply_walked(unsigned stage, int channels, const ChunkWeight& weight,
                                       PointSums<kBlocks, kOffsets>& sums) {
  ChunkWords words;
  if constexpr (kParts == 1) {
#pragma unroll
    for (int step = 0; step < kChunkSteps; ++step) {
      // The first channel of the step or, along C, of two.
      if ((kAlongW ? step : step / 2 * 2) * kStepChannels<T> >= channels) break;
      if (step % 2 == 0) {
        read_pair<kAlongW>(stage, step / 2, words);
        if constexpr (sizeof(T) == 4) convert_pair<1, kAlongW>(step / 2, words, words);
      }
      const uint4 b0 = fragments_b<T, kAlongW>(words, step, 0), b1 = fragments_b<T, kAlongW>(words, step, 1);
#pragma unroll
      for (int i = 0; i < kOffsets; ++i)
        multiply_step<T>(weight.first + i * weight.offset + step * weight.part, b0, b1,
                         sums[sums_of<kOffsets>(kTurn, i)]);
    }
  } else {
    // Tensor cores cut sums off where they add: those of two steps begin at zero and are added to the others
    // in float32. Products of a first and a second part, then those of first parts.
    ChunkWords second;
#pragma unroll
    for (int pair = 0; pair < kChunkSteps / 2; ++pair) {
      if (2 * pair * kStepChannels<T> >= channels) break;
      read_pair<kAlongW>(stage, pair, words);
      convert_pair<2, kAlongW>(pair, words, second);
#pragma unroll
      for (int i = 0; i < kOffsets; ++i) {
        const FragmentA* const of_pair = weight.first + i * weight.offset + 4 * pair * weight.part;
        Sums<kBlocks> few;
        clear<kBlocks>(few);
        const auto multiply = [&](const ChunkWords& b, int step, int part) {
          multiply_step<T>(of_pair + (2 * step + part) * weight.part,
                           fragments_b<T, kAlongW>(b, 2 * pair + step, 0),
                           fragments_b<T, kAlongW>(b, 2 * pair + step, 1), few);
        };
#pragma unroll
        for (int step = 0; step < 2; ++step) {
          multiply(words, step, 1);
          multiply(second, step, 0);
        }
#pragma unroll
        for (int j = 0; j < kBlocks * 16; ++j) few[j / 16][j / 4 % 4][j % 4] *= 1 / kSecondPartScale;
#pragma unroll
        for (int step = 0; step < 2; ++step) multiply(words, step, 0);
        Sums<kBlocks>& all = sums[sums_of<kOffsets>(kTurn, i)];
#pragma unroll
        for (int j = 0; j < kBlocks * 16; ++j) all[j / 16][j / 4 % 4][j % 4] += few[j / 16][j / 4 % 4][j % 4];
      }
    }
  }
}

// ---------------------------------------------------------------- gather

// An output column: the products of its first tap and where it lies in the first line, in bytes; its taps;
// and its output channels, one of them in NHWC, from `cout` on.
struct LineColumn {
  int products;
  unsigned char taps, couts;
  short cout;
  int64_t output;
};
static_assert(sizeof(LineColumn) == kThinColumnBytes);

// What gathering needs lies in shared memory, as registers hold sums meanwhile.
struct Lines {
  int64_t output;  // of the first output channel, in bytes from the tensor's first
  int64_t count;
  LineColumn columns[1];  // of `count`
};

__device__ inline float load_float(unsigned address) { return __uint_as_float(load_word(address)); }

// Writes the outputs of a point. Columns have at most kTaps taps along W or, where that is 0, any number and
// perhaps an activation. Addresses are of shared memory.
template <int kTaps, typename T>
__device__ inline void gather_point(const Params<T>& p, const Lines& lines, unsigned bias, unsigned products,
                                    int point) {
  const int first_oh = point * p.stride_h - p.taps_h.crop, begin = max(-first_oh, 0);
  const int phases = min(static_cast<int>(p.stride_h), p.output_h - first_oh) - begin;
  const unsigned zero = products + p.walk.zero_bytes;
  products += begin * p.walk.phase_bytes;
  auto* const first_line =
      reinterpret_cast<unsigned char*>(p.output) + lines.output + (first_oh + begin) * p.walk.line_bytes;
#pragma unroll 1
  for (int index = static_cast<int>(threadIdx.x); index < static_cast<int>(lines.count); index += p.threads) {
    const LineColumn column = lines.columns[index];
    // Taps that leave the image read a zero behind the products.
    constexpr int kReads = kTaps == 0 ? 1 : kTaps;
    unsigned at[kReads];
    int step[kReads];
#pragma unroll
    for (int j = 0; j < kReads; ++j) {
      const bool exists = kTaps == 0 || j < column.taps;
      at[j] = exists ? products + column.products + j * p.walk.tap_bytes : zero;
      step[j] = exists ? p.walk.phase_bytes : 0;
    }
    const auto sum = [&] {
      float x;
      if constexpr (kTaps == 0) {
        x = 0.0f;
#pragma unroll 1
        for (int j = 0; j < column.taps; ++j) x += load_float(at[0] + j * p.walk.tap_bytes);
      } else {
        x = load_float(at[0]);
#pragma unroll
        for (int j = 1; j < kTaps; ++j) x += load_float(at[j]);
      }
#pragma unroll
      for (int j = 0; j < kReads; ++j) at[j] += step[j];
      return x;
    };
    unsigned char* out = first_line + column.output;
    const auto write = [&](float x) {
      T rounded = narrow<T>(x);
      if constexpr (kTaps == 0) {
        if (!p.activation.is_identity()) rounded = narrow<T>(activate(p.activation, widen(rounded)));
      }
      *reinterpret_cast<T*>(out) = rounded;
      out += p.walk.line_bytes;
    };
    unsigned of_cout = bias + 4 * column.cout;
#pragma unroll 1
    for (int couts = column.couts; couts > 0; --couts) {
      const float own_bias = load_float(of_cout);
      of_cout += 4;
      int rest = phases;
      // Two at once, so that their reads overlap.
#pragma unroll 1
      for (; rest >= 2; rest -= 2) {
        const float x = sum(), y = sum();
        write(x + own_bias);
        write(y + own_bias);
      }
      if (rest > 0) write(sum() + own_bias);
      if (couts == 1) break;
      out += p.walk.cout_bytes - phases * p.walk.line_bytes;
#pragma unroll
      for (int j = 0; j < kReads; ++j) at[j] += (p.stride_h - phases) * step[j];
    }
  }
}

// ---------------------------------------------------------------- kernel

template <typename T, int kParts, int kBlocks, int kOffsets, bool kAlongW>
__global__ void __launch_bounds__(thin_walk_threads(kParts, kComputeCapability), 1)
    thin_walk_kernel(const __grid_constant__ Params<T> p) {
  extern __shared__ __align__(16) unsigned char shared[];
  FragmentA* const staged = reinterpret_cast<FragmentA*>(shared);
  float* const products = reinterpret_cast<float*>(shared + p.shared.products_offset);
  float* const bias = reinterpret_cast<float*>(shared + p.shared.bias_offset);
  Lines& lines = *reinterpret_cast<Lines*>(shared + p.shared.lines_offset);
  const Share share = locate(p, static_cast<int>(blockIdx.x));
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const auto by_pixels = p.warps_n.divide(warp);
  const int first_block = by_pixels.quotient * kBlocks, group_pixel = by_pixels.remainder * kThinPixels;
  const int set_rows = share.couts * p.set_phases * p.kernel_w;
  const bool has_pixels = p.images > 1 ? group_pixel < share.images * p.cols
                                       : group_pixel < p.cols && share.first_col + group_pixel < p.input_w;
  const bool multiplies = has_pixels && 16 * first_block < set_rows;

  // Chunks are copied in the order in which they are multiplied, those of the rows of the image that the
  // block's points see.
  constexpr int kStageBytes = 32 * 128;
  const LanePlaces<kAlongW> places(p, share, group_pixel, shared_address(shared + p.shared.places_offset));
  const unsigned stages =
      shared_address(shared + p.shared.stages_offset) + warp * p.stages * kStageBytes + lane * 16;
  const int last_offset = p.taps_h.offset[kOffsets - 1];
  const int first_row = max(share.first_point + p.taps_h.offset[0], 0);
  const int end_row = multiplies ? min(share.end_point + last_offset, p.input_h) : first_row;
  struct {
    const T* row;  // of the first channel
    int rows, chunk, stage;
  } ahead = {p.input + share.image * p.input_stride.n +
                 static_cast<int64_t>(share.group) * p.cin_per_group * p.input_stride.c +
                 first_row * p.input_stride.h,
             end_row - first_row, 0, 0};
  const auto channels_of = [&](int chunk) {
    return min(p.cin_per_group - chunk * kChunkChannels<T>, kChunkChannels<T>);
  };
  const auto copy_ahead = [&] {
    if (ahead.rows > 0) {
      copy_chunk<kAlongW>(p, ahead.row + ahead.chunk * kChunkChannels<T> * p.input_stride.c,
                          channels_of(ahead.chunk), places, stages + ahead.stage * kStageBytes);
      if (++ahead.chunk == p.chunks) {
        ahead.chunk = 0;
        ahead.row += p.input_stride.h;
        --ahead.rows;
      }
      if (++ahead.stage == p.stages) ahead.stage = 0;
    }
    commit_copies();
  };
  for (int i = 1; i < p.stages; ++i) copy_ahead();

  stage_weight<T, kParts, kAlongW>(p, share, staged);
  for (int c = static_cast<int>(threadIdx.x); c < share.couts; c += p.threads)
    bias[c] = p.bias == nullptr ? 0.0f : widen(p.bias[(share.first_out_cout + c) * p.bias_stride]);
  const int count = share.image_columns * share.images;
  if (threadIdx.x == 0) {
    lines.output = share.first_out_cout * p.walk.cout_bytes;
    lines.count = count;
    products[p.half_floats - 1] = products[2 * p.half_floats - 1] = 0.0f;
  }
  for (int i = static_cast<int>(threadIdx.x); i < count; i += p.threads) {
    const int image = i / share.image_columns;
    const Column column = make_column(p, share, image, i - image * share.image_columns);
    const int couts = p.output_channels_last ? min(share.couts - column.cout, 1) : share.couts;
    lines.columns[i] = {4 * (column.products + column.cout * p.cout_floats),
                        static_cast<unsigned char>(column.taps), static_cast<unsigned char>(max(couts, 0)),
                        static_cast<short>(column.cout),
                        (column.output + column.cout * p.output_stride.c) * static_cast<int64_t>(sizeof(T))};
  }
  __syncthreads();

  const int part = p.all_row_blocks * 32;
  const FragmentA* const own_weight = staged + first_block * 32 + lane;
  PointSums<kBlocks, kOffsets> sums;
#pragma unroll
  for (int i = 0; i < kOffsets; ++i) clear<kBlocks>(sums[i]);
  int half = 0, stage = 0, turn = 0;
  const auto multiply_row = [&](auto own_turn, int point) {
    constexpr int kTurn = decltype(own_turn)::value;
    const int row = point + last_offset;
    if (row >= first_row && row < end_row) {
#pragma unroll 1
      for (int chunk = 0; chunk < p.chunks; ++chunk) {
        if (p.stages == 2) {
          wait_for_copies_but<0>();
        } else {
          wait_for_copies_but<1>();
        }
        copy_ahead();
        multiply_walked<kTurn, kParts, kBlocks, kOffsets, kAlongW, T>(
            stages + stage * kStageBytes, channels_of(chunk),
            {own_weight + chunk * (kChunkSteps * kParts) * part, p.chunks * kChunkSteps * kParts * part,
             part},
            sums);
        if (++stage == p.stages) stage = 0;
      }
    }
    Sums<kBlocks>& done = sums[sums_of<kOffsets>(kTurn, kOffsets - 1)];
    if (multiplies && point >= share.first_point)
      keep_products<kBlocks>(done, products + half * p.half_floats + group_pixel, p.pitch, 16 * first_block,
                             set_rows);
    clear<kBlocks>(done);
  };
#pragma unroll 1
  for (int point = share.first_point - (kOffsets - 1);; ++point) {
    if (point > share.first_point) {
      const unsigned last = shared_address(products) + 4 * (half ^ 1) * p.half_floats;
      switch (p.activation.is_identity() ? p.most_taps : 0) {
        case 2:
          gather_point<2>(p, lines, shared_address(bias), last, point - 1);
          break;
        case 3:
          gather_point<3>(p, lines, shared_address(bias), last, point - 1);
          break;
        default:
          gather_point<0>(p, lines, shared_address(bias), last, point - 1);
      }
    }
    if (point >= share.end_point) return;
    if (turn == 0) {
      multiply_row(std::integral_constant<int, 0>{}, point);
    } else if (turn == 1) {
      multiply_row(std::integral_constant<int, 1>{}, point);
    } else {
      multiply_row(std::integral_constant<int, kOffsets - 1>{}, point);
    }
    if (++turn == kOffsets) turn = 0;
    half ^= 1;
    __syncthreads();
  }
}

}  // namespace thin
}  // namespace convt
