// thin_simt: few output channels of float32 in NCHW, for filters that are known when this is compiled, on FMA
// units. Tensor cores multiply rows of 16, most of which a few output channels leave empty, and three times
// where operands are split: here no product is of nothing.
//
//   y[cout][base][phase] = bias[cout] + sum over channels c and the taps k of the phase of
//                          w[c][cout][k] * x[c][base - (k - cropped) div stride]
//
// A thread owns four bases (convt/phases.h) that are neighbours along W, or two rows of them, with all their
// phases and output channels: 16 to 64 sums in registers. Tap k reaches phase (k - cropped) mod stride of the
// base whose input, (k - cropped) div stride before it, it multiplies; the rest of the padding only says
// where outputs lie. Along W `cropped` is the filter's (ThinSimtFilter), along H zero; div rounds down, so
// taps before `cropped` multiply the input behind the base.
//
// For each channel a thread reads the input of its own bases as a vector, that of the columns before them
// that taps reach as another and, where padding is cropped, the column behind them by itself, in each of its
// rows and in the taps - 1 rows above: a channel or two ahead, which L2 has been told of earlier. It
// multiplies them by all weights, which come from shared memory, 16 bytes at a time, the same for all lanes.
// The warps of a thread block have the same bases and divide the channels between them. Sums of at most
// kMaxSummedProducts are added to totals in shared memory, one for each warp; those of the warps are added up
// in the order in which outputs lie in memory, and stored.
//
// Zeros outside the image are multiplied by weights: a weight that is not finite makes NaN of the outputs
// that meet them.

#include "convt/alignment.h"
#include "convt/device/activation.cuh"
#include "convt/device/async_copy.cuh"
#include "convt/device/launch.cuh"
#include "convt/divisor.h"
#include "convt/kernels.h"
#include "convt/thin_simt.h"

namespace convt {
namespace thin_simt {

constexpr int kWarps = kThinSimtWarps, kThreads = 32 * kWarps;
constexpr int kColumns = kThinSimtColumns, kQuads = kThinSimtQuads;
constexpr int kVector = 4;  // floats of 16 bytes
constexpr int kAhead = 6;   // channels

template <typename T>
struct Params : ProblemParams<T> {
  const T* weight;
  WeightStrides weight_stride;
  bool dense_weight, weight_vectors;  // lies as it does in shared memory, 16 bytes at a time
  int padding_h, padding_w;
  int first_row, first_col;
  Divisor<int> tiles, row_sets, col_sets;
  int quads;      // of a group
  int64_t ahead;  // bytes from a channel's first row to what L2 is told of when it is read
  ThinSimtShared shared;
};

template <int kFilter>
struct Shape {
  static constexpr ThinSimtFilter kOf = kThinSimtFilters[kFilter];
  static constexpr int kKernel = kOf.kernel, kStride = kOf.stride, kCouts = kOf.couts, kTaps = kOf.taps();
  static constexpr int kRows = kOf.rows(), kChannels = kOf.channels(), kMostChannels = kOf.most_channels(),
                       kBuffers = kOf.buffers();
  static constexpr int kWeights = kOf.weights(), kPitch = kOf.pitch();
  static constexpr int kInputRows = kRows + kTaps - 1;
  static constexpr int kBefore = kOf.before(), kBehind = kOf.behind();  // columns
  static constexpr int kRun = kColumns * kStride;          // outputs of a row of a thread's bases
  static constexpr int kLines = kCouts * kRows * kStride;  // such rows
  static_assert(kBefore <= kColumns && kBehind <= 1 && kChannels > 0);
};

// Where the outputs of a quad lie: of the group's first output channel `first` elements from the output's
// beginning, at a row and column of the plane, outside of it or not.
struct alignas(16) Place {
  int64_t first;
  int row, column;
};

// Copies the weights of channels `first` to `end` - 1 of a group to shared memory.
template <typename S>
__device__ inline void load_weights(const Params<float>& p, int group, int first, int end, float* shared) {
  const int lane = static_cast<int>(threadIdx.x) % 32, count = (end - first) * S::kWeights;
  const float* const from = p.weight + (int64_t{group} * p.cin_per_group + first) * p.weight_stride.cin;
  float* to = shared + first * S::kPitch;
  if (p.weight_vectors) {
    for (int i = lane * kVector; i < count; i += 32 * kVector) copy_async<16>(to + i, from + i, true);
    return;
  }
  to += lane / S::kWeights * S::kPitch + lane % S::kWeights;
  int number = lane % S::kWeights;
  for (int i = lane; i < count; i += 32) {
    const float* source = from + i;
    if (!p.dense_weight) {
      const int kw = number % S::kKernel, kh = number / S::kKernel % S::kKernel,
                cout = number / (S::kKernel * S::kKernel);
      source = from + i / S::kWeights * p.weight_stride.cin + cout * p.weight_stride.cout +
               kh * p.weight_stride.kh + kw * p.weight_stride.kw;
    }
    copy_async<4>(to, source, true);
    // The next one's place.
    number += 32 % S::kWeights;
    to += 32 / S::kWeights * S::kPitch + 32 % S::kWeights;
    if (number >= S::kWeights) number -= S::kWeights, to += S::kPitch - S::kWeights;
  }
}

// Predicated, so that what is not read keeps its value, without branches around loads.
__device__ inline void load_if(bool exists, const float* from, float& x) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.s32 p, %2, 0;\n@p ld.global.nc.f32 %0, [%1];\n}\n"
               : "+f"(x)
               : "l"(from), "r"(static_cast<int>(exists)));
}

__device__ inline void load_if(bool exists, const float* from, float& x, float& y) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.s32 p, %3, 0;\n@p ld.global.nc.v2.f32 {%0, %1}, [%2];\n}\n"
               : "+f"(x), "+f"(y)
               : "l"(from), "r"(static_cast<int>(exists)));
}

__device__ inline void load_if(bool exists, const float* from, float& x, float& y, float& z, float& w) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.s32 p, %5, 0;\n@p ld.global.nc.v4.f32 {%0, %1, %2, %3}, [%4];\n}\n"
               : "+f"(x), "+f"(y), "+f"(z), "+f"(w)
               : "l"(from), "r"(static_cast<int>(exists)));
}

// Brings what lies `bytes` behind `from` to L2.
__device__ inline void prefetch(const float* from, int64_t bytes) {
  asm volatile("{\n.reg .b64 at;\nadd.s64 at, %0, %1;\nprefetch.global.L2 [at];\n}\n" ::"l"(from),
               "l"(bytes));
}

// Which inputs of a thread lie in the image, a bit for each row.
struct Exists {
  unsigned before = 0, own = 0, behind = 0;
};

// The inputs of a channel. What lies outside of the image is never read, and stays zero.
template <typename S>
struct Inputs {
  static constexpr int kFirst = S::kBefore > 2 ? kVector : S::kBefore;  // columns read before its own
  float of[S::kInputRows][kFirst + kColumns + S::kBehind] = {};

  // From the first row on.
  __device__ void load(const float* from, int64_t pitch, const Exists& exists) {
    const auto has = [](unsigned bits, int row) { return (bits & 1u << row) != 0; };
#pragma unroll
    for (int i = 0; i < S::kInputRows; ++i) {
      auto& x = of[i];
      const float* const row = from + i * pitch;
      load_if(has(exists.own, i), row, x[kFirst], x[kFirst + 1], x[kFirst + 2], x[kFirst + 3]);
      if constexpr (kFirst == 1) {
        load_if(has(exists.before, i), row - 1, x[0]);
      } else if constexpr (kFirst == 2) {
        load_if(has(exists.before, i), row - 2, x[0], x[1]);
      } else if constexpr (kFirst > 2) {
        load_if(has(exists.before, i), row - 4, x[0], x[1], x[2], x[3]);
      }
      if constexpr (S::kBehind > 0) load_if(has(exists.behind, i), row + kColumns, x[kFirst + kColumns]);
    }
  }

  // Of a thread's base: so many rows before it, and columns from it.
  __device__ float at(int row, int column, int rows_before, int columns) const {
    return of[row + S::kTaps - 1 - rows_before][kFirst + column + columns];
  }
};

template <typename S>
struct Sums {
  float of[S::kCouts][S::kRows][S::kStride][kColumns][S::kStride] = {};

  __device__ void add_products(const Inputs<S>& x, const float* weights) {
    constexpr ThinSimtFilter kFilter = S::kOf;
    float4 four;
#pragma unroll
    for (int e = 0; e < S::kWeights; ++e) {
      if (e % kVector == 0) four = *reinterpret_cast<const float4*>(weights + e);
      const float w = e % kVector == 0   ? four.x
                      : e % kVector == 1 ? four.y
                      : e % kVector == 2 ? four.z
                                         : four.w;
      const int kw = e % S::kKernel, kh = e / S::kKernel % S::kKernel, cout = e / (S::kKernel * S::kKernel);
      const int phase = kFilter.phase_of(kw), columns = kFilter.columns_to(kw);
#pragma unroll
      for (int row = 0; row < S::kRows; ++row) {
#pragma unroll
        for (int column = 0; column < kColumns; ++column) {
          float& sum = of[cout][row][kh % S::kStride][column][phase];
          sum = fmaf(w, x.at(row, column, kh / S::kStride, columns), sum);
        }
      }
    }
  }

  // Adds them to the warp's totals, or sets those.
  __device__ void move_to(float* totals, bool add) {
    auto& runs = reinterpret_cast<float (&)[S::kLines][S::kRun]>(of);
    totals += static_cast<int>(threadIdx.x) % 32 * S::kRun;
#pragma unroll
    for (int i = 0; i < S::kLines; ++i) {
#pragma unroll
      for (int j = 0; j < S::kRun; j += kVector) {
        float4& total = *reinterpret_cast<float4*>(totals + i * kQuads * S::kRun + j);
        float4 x = make_float4(runs[i][j], runs[i][j + 1], runs[i][j + 2], runs[i][j + 3]);
        if (add) x.x += total.x, x.y += total.y, x.z += total.z, x.w += total.w;
        total = x;
      }
    }
    *this = {};
  }
};

// Adds up the warps' totals, line after line of them, and stores the outputs.
template <typename S>
__device__ inline void store_totals(const Params<float>& p, int group, const float* totals,
                                    const Place* places) {
  constexpr int kLine = kQuads * S::kRun;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int warp_totals = static_cast<int>(p.shared.warp_totals / sizeof(float));
#pragma unroll 1
  for (int line = warp; line < S::kLines; line += kWarps) {
    const int cout = line / (S::kRows * S::kStride), down = line % (S::kRows * S::kStride);
    const float bias =
        p.bias == nullptr ? 0.0f : __ldg(p.bias + (int64_t{group} * S::kCouts + cout) * p.bias_stride);
    float* const output = p.output + cout * p.output_stride.c + down * p.output_stride.h;
#pragma unroll 2
    for (int i = lane; i < kLine; i += 32) {
      const Place place = places[i / S::kRun];
      const int right = i % S::kRun;
      float sum[1] = {0};
#pragma unroll
      for (int of = 0; of < kWarps; ++of) sum[0] += totals[of * warp_totals + line * kLine + i];
      sum[0] += bias;
      if (static_cast<unsigned>(place.row + down) >= static_cast<unsigned>(p.output_h) ||
          static_cast<unsigned>(place.column + right) >= static_cast<unsigned>(p.output_w))
        continue;
      if (!p.activation.is_identity()) activate_sums<float, 1>(p.activation, sum);
      output[place.first + right * p.output_stride.w] = sum[0];
    }
  }
}

// From compute capability 10.0 on the compiler takes a few registers more.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int kFewerBlocks = 1;
#else
constexpr int kFewerBlocks = 0;
#endif

template <typename S>
__global__ void __launch_bounds__(kThreads, S::kOf.resident() - kFewerBlocks)
    thin_simt_kernel(const __grid_constant__ Params<float> p) {
  extern __shared__ __align__(16) float shared[];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const auto by_tile = p.tiles.divide(static_cast<int>(blockIdx.x));
  const int group = by_tile.quotient;
  const int first = warp * p.cin_per_group / kWarps, end = (warp + 1) * p.cin_per_group / kWarps;
  load_weights<S>(p, group, first, end, shared);

  // Lanes without a quad compute the last one again.
  const int quad = by_tile.remainder * kQuads + lane;
  const auto by_col = p.col_sets.divide(min(quad, p.quads - 1));
  const auto by_row = p.row_sets.divide(by_col.quotient);
  const int image = by_row.quotient;
  const int base_h = p.first_row + by_row.remainder * S::kRows,
            base_w = p.first_col + by_col.remainder * kColumns;
  auto* const places = reinterpret_cast<Place*>(shared + p.shared.places / sizeof(float));
  if (warp == 0) {
    const int row = base_h * S::kStride - p.padding_h,
              column = base_w * S::kStride - p.padding_w + S::kOf.cropped;
    const ActivationStrides& to = p.output_stride;
    places[lane] = {image * to.n + int64_t{group} * S::kCouts * to.c + row * to.h + column * to.w,
                    quad < p.quads ? row : p.output_h, column};
  }

  const int top = base_h - (S::kTaps - 1);
  const float* from = p.input + image * p.input_stride.n +
                      (int64_t{group} * p.cin_per_group + first) * p.input_stride.c + top * p.input_stride.h +
                      base_w;
  Exists exists;
#pragma unroll
  for (int i = 0; i < S::kInputRows; ++i) {
    const int h = top + i;
    if (static_cast<unsigned>(h) >= static_cast<unsigned>(p.input_h)) continue;
    if (base_w > 0 && base_w <= p.input_w) exists.before |= 1u << i;
    if (base_w < p.input_w) exists.own |= 1u << i;
    if (base_w + kColumns < p.input_w) exists.behind |= 1u << i;
  }
  // L2 has the inputs before registers have room for them.
  const int prefetched = (exists.own >> (S::kTaps - 1) & 1) != 0 ? end - kAhead : first;
  Inputs<S> inputs[S::kBuffers];
  int loaded = first;
  // Behind the last channel, the last one again: fewer branches.
  const auto load = [&](Inputs<S>& x) {
    if (S::kTaps <= 3 && loaded < prefetched) prefetch(from, p.ahead);
    x.load(from, p.input_stride.h, exists);
    if (++loaded < end) from += p.input_stride.c;
  };
  if (first < end) {
#pragma unroll
    for (int i = 0; i < S::kBuffers - 1; ++i) load(inputs[i]);
  }
  wait_for_copies();
  __syncwarp();

  const float* weights = shared + first * S::kPitch;
  float* const totals = shared + p.shared.totals / sizeof(float);
  float* const own_totals = totals + warp * (p.shared.warp_totals / sizeof(float));
  Sums<S> sums;
  int channel = first;
#pragma unroll 1
  do {
    const bool add = channel > first;
    const int stop = end - channel <= S::kMostChannels ? end : channel + S::kChannels;
#pragma unroll 1
    while (channel < stop) {
#pragma unroll
      for (int i = 0; i < S::kBuffers; ++i) {
        if (channel < stop) {
          load(inputs[(i + S::kBuffers - 1) % S::kBuffers]);
          sums.add_products(inputs[i], weights);
          weights += S::kPitch;
          ++channel;
        }
      }
    }
    sums.move_to(own_totals, add);
  } while (channel < end);
  __syncthreads();
  store_totals<S>(p, group, totals, places);
}

}  // namespace thin_simt

cudaError_t launch_thin_simt(const Problem& problem, const ThinSimtLaunch& launch, cudaStream_t stream) {
  using namespace thin_simt;  // NOLINT
  Params<float> p = {};
  set_problem(p, problem);
  p.weight = static_cast<const float*>(problem.weight);
  p.weight_stride = problem.weight_stride;
  p.dense_weight = launch.dense_weight;
  p.weight_vectors =
      p.dense_weight && launch.shape().weights() == launch.shape().pitch() && is_aligned(problem.weight, 16);
  p.padding_h = static_cast<int>(problem.h.padding);
  p.padding_w = static_cast<int>(problem.w.padding);
  p.first_row = launch.first_row;
  p.first_col = launch.first_col;
  p.tiles = static_cast<int>(launch.tiles);
  p.row_sets = launch.row_sets;
  p.col_sets = launch.col_sets;
  p.quads = static_cast<int>(problem.batch) * launch.row_sets * launch.col_sets;
  p.ahead = (kAhead * problem.input_stride.c + (launch.shape().taps() - 1) * problem.input_stride.h) *
            static_cast<int64_t>(sizeof(float));
  p.shared = thin_simt_shared(launch.shape(), problem.cin_per_group);
  auto* const kernel = choose_kernel<kThinSimtFilterCount>(
      launch.filter, [](auto filter) { return &thin_simt_kernel<Shape<decltype(filter)::value>>; });
  const cudaError_t error = allow_shared_memory(kernel, launch.shared_limit);
  if (error != cudaSuccess) return error;
  kernel<<<static_cast<unsigned>(launch.blocks()), kThreads, launch.shared_bytes, stream>>>(p);
  return cudaGetLastError();
}

}  // namespace convt
