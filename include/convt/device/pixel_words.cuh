// Products whose columns are pixels that a warp has read into registers straight from memory, without shared
// memory in between: the loader and the multiplication of thin and scatter_gemm.
//
// A warp has 16 * kBlocks rows x 32 pixels. 4 neighbours along W of NCHW are column `group` of four products,
// so that a lane's sums are those of 8 neighbours; 16 bytes of channels of NHWC are depths of two steps. A
// fragments lie in shared memory.
#pragma once

#include "convt/device/mma.cuh"
#include "convt/device/tf32.cuh"

namespace convt {
namespace pixel_words {

inline constexpr int kPixels = 32;     // of a warp
inline constexpr int kChunkSteps = 4;  // of a chunk of channels: 128 bytes of every pixel

// Channels of a step, and of a register.
template <typename T>
inline constexpr int kStepChannels = 32 / static_cast<int>(sizeof(T));
template <typename T>
inline constexpr int kPair = 4 / static_cast<int>(sizeof(T));
template <typename T>
inline constexpr int kChunkChannels = kChunkSteps * kStepChannels<T>;

// A lane's input of some steps, as it comes from memory.
template <int kSteps>
struct Words {
  unsigned at[8 * kSteps];
};

// The channel, counted from the chunk's first, at depth `depth` of step `step`. Read along C, a lane's 16
// bytes are depths of two steps, so that both registers of a fragment lie side by side.
template <typename T, bool kAlongW>
__device__ constexpr int channel_of(int step, int depth) {
  if constexpr (kAlongW) return step * kStepChannels<T> + depth;
  const int half = depth / (4 * kPair<T>), member = depth / kPair<T> % 4;
  return step / 2 * (kChunkChannels<T> / 2) + member * 4 * kPair<T> + step % 2 * 2 * kPair<T> +
         half * kPair<T> + depth % kPair<T>;
}

// Registers b[half] of four products at step `step`.
template <typename T, bool kAlongW, int kSteps>
__device__ inline uint4 fragments_b(const Words<kSteps>& words, int step, int half) {
  const unsigned (&w)[8 * kSteps] = words.at;
  if constexpr (!kAlongW) {
    static_assert(kSteps == kChunkSteps);
    const int at = 2 * step + half;
    return make_uint4(w[at], w[8 + at], w[16 + at], w[24 + at]);
  } else if constexpr (sizeof(T) == 4) {
    const int at = (step * 2 + half) * 4;
    return make_uint4(w[at], w[at + 1], w[at + 2], w[at + 3]);
  } else {
    // Four pixels of two neighbouring channels, turned.
    const int at = (step * 2 + half) * 4;
    return make_uint4(__byte_perm(w[at], w[at + 2], 0x5410), __byte_perm(w[at], w[at + 2], 0x7632),
                      __byte_perm(w[at + 1], w[at + 3], 0x5410), __byte_perm(w[at + 1], w[at + 3], 0x7632));
  }
}

template <typename T>
__device__ inline unsigned bits_of(T value) {
  if constexpr (sizeof(T) == 4) {
    return __float_as_uint(value);
  } else {
    return *reinterpret_cast<const unsigned short*>(&value);
  }
}

// Reads channels of 4 neighbours along W, `pixels` of channel 0, from first_channel on. Unless kWhole,
// channels from `channels` on are zero.
template <typename T, bool kWhole, int kSteps>
__device__ inline void read_along_w(const T* pixels, int64_t channel_step, int first_channel, int channels,
                                    Words<kSteps>& words) {
  unsigned (&w)[8 * kSteps] = words.at;
  int channel = first_channel + static_cast<int>(threadIdx.x) % 4 * kPair<T>;
  const T* at = pixels + channel * channel_step;
  const int64_t step = 4 * kPair<T> * channel_step;
#pragma unroll
  for (int i = 0; i < 2 * kSteps; ++i) {
#pragma unroll
    for (int e = 0; e < kPair<T>; ++e) {
      const bool exists = kWhole || channel + e < channels;
      const T* const of_channel = e == 0 ? at : at + channel_step;
      if constexpr (sizeof(T) == 4) {
        const uint4 x = exists ? __ldg(reinterpret_cast<const uint4*>(of_channel)) : uint4{0, 0, 0, 0};
        w[4 * i] = x.x, w[4 * i + 1] = x.y, w[4 * i + 2] = x.z, w[4 * i + 3] = x.w;
      } else {
        const uint2 x = exists ? __ldg(reinterpret_cast<const uint2*>(of_channel)) : uint2{0, 0};
        w[4 * i + 2 * e] = x.x, w[4 * i + 2 * e + 1] = x.y;
      }
    }
    at += step;
    channel += 4 * kPair<T>;
  }
}

template <int kBlocks>
using Sums = float[kBlocks][4][4];

template <int kBlocks>
__device__ inline void clear(Sums<kBlocks>& sums) {
#pragma unroll
  for (int i = 0; i < kBlocks * 16; ++i) sums[i / 16][i / 4 % 4][i % 4] = 0.0f;
}

// sums += a * b of one step for all blocks of rows and all four products.
template <typename T, int kBlocks>
__device__ inline void multiply_step(const FragmentA* weight, const uint4& b0, const uint4& b1,
                                     Sums<kBlocks>& sums) {
#pragma unroll
  for (int i = 0; i < kBlocks; ++i) {
    const FragmentA a = weight[32 * i];
    multiply_add<T>(sums[i][0], a, b0.x, b1.x);
    multiply_add<T>(sums[i][1], a, b0.y, b1.y);
    multiply_add<T>(sums[i][2], a, b0.z, b1.z);
    multiply_add<T>(sums[i][3], a, b0.w, b1.w);
  }
}

// Whether all numbers of a warp are ordinary.
template <int kSteps>
__device__ inline bool are_ordinary(const Words<kSteps>& words) {
  OrdinaryTest ordinary;
#pragma unroll
  for (int i = 0; i < 8 * kSteps; ++i) ordinary.add(words.at[i]);
  return ordinary.passes();
}

template <typename T, bool kOrdinary, bool kAlongW, int kSteps, int kParts>
__device__ inline void operands_b(const Words<kSteps>& words, int step, uint4 (&b0)[kParts],
                                  uint4 (&b1)[kParts]) {
  const uint4 x0 = fragments_b<T, kAlongW>(words, step, 0), x1 = fragments_b<T, kAlongW>(words, step, 1);
  if constexpr (sizeof(T) == 4) {
    split_words<kOrdinary>(x0, b0);
    split_words<kOrdinary>(x1, b1);
  } else {
    b0[0] = x0;
    b1[0] = x1;
  }
}

// `weight` is the lane's first fragment of the warp's rows at the first step; `part` fragments on begin those
// of the next part, or of the next step.
template <typename T, int kParts, int kBlocks, bool kAlongW, bool kOrdinary, int kSteps>
__device__ inline void multiply_words(const Words<kSteps>& words, const FragmentA* weight, int part,
                                      Sums<kBlocks>& sums) {
  if constexpr (kParts == 1) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint4 b0[1], b1[1];
      operands_b<T, kOrdinary, kAlongW>(words, step, b0, b1);
      multiply_step<T>(weight + step * part, b0[0], b1[0], sums);
    }
  } else {
    // Tensor cores cut sums off where they add: the sums of a chunk begin at zero and are added to the others
    // in float32. Products of a first and a second part, then those of first parts.
#pragma unroll
    for (int begin = 0; begin < kSteps; begin += kChunkSteps) {
      const int end = begin + kChunkSteps < kSteps ? begin + kChunkSteps : kSteps;
      Sums<kBlocks> few;
      clear<kBlocks>(few);
#pragma unroll
      for (int step = begin; step < end; ++step) {
        uint4 b0[2], b1[2];
        operands_b<T, kOrdinary, kAlongW>(words, step, b0, b1);
        multiply_step<T>(weight + (2 * step + 1) * part, b0[0], b1[0], few);
        multiply_step<T>(weight + 2 * step * part, b0[1], b1[1], few);
      }
#pragma unroll
      for (int i = 0; i < kBlocks * 16; ++i) few[i / 16][i / 4 % 4][i % 4] *= 1 / kSecondPartScale;
#pragma unroll
      for (int step = begin; step < end; ++step) {
        uint4 b0[1], b1[1];
        operands_b<T, kOrdinary, kAlongW>(words, step, b0, b1);
        multiply_step<T>(weight + 2 * step * part, b0[0], b1[0], few);
      }
#pragma unroll
      for (int i = 0; i < kBlocks * 16; ++i) sums[i / 16][i / 4 % 4][i % 4] += few[i / 16][i / 4 % 4][i % 4];
    }
  }
}

}  // namespace pixel_words
}  // namespace convt
