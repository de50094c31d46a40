// depthwise: groups of few input channels, which the memory's bandwidth bounds: one in, one or more out.
// These are the mappings for every filter; cuda/depthwise_rolling.cu has the one for some common filters.
//
// An output o is q * stride + r along H. The rows of one r are of one phase (convt/phases.h), tap i of which
// reads input u - i * step, step = shift_step, and two such rows q and q + step read inputs that are step
// apart. So a thread owns R rows, q0 + i * step, and slides a window of inputs down a column of the input:
//
//   acc[column][i] += w[column][tap] * window[R - 1 - i + tap]        window[j] is input u0 + (R - 1 - j) *
//   step
//
// R rows need R + taps - 1 inputs instead of R * taps. Besides, it owns four outputs that are neighbours
// in memory, where the problem has such:
//
//   columns    four columns (NCHW): each input column of their union is read once; lanes go along W. Weights
//              come through L1, where lanes of one channel read the same ones.
//   channels   four channels (NHWC, one channel in and out per group), read, multiplied and stored as
//   vectors;
//              lanes go along the channels. Their weights lie KH * KW apart, so a block first brings the
//              filters of its channels to shared memory, as fp32 [input channel of the group][tap][channel].
//
// Taps that read outside of the image are left out: nothing is multiplied by padding, and non-finite values
// land exactly where the definition puts them. A window that lies inside of the image needs no checks. Sums
// of more than kMaxSummedProducts are added to a total piece by piece.

#include <cstdint>
#include <cstring>

#include "convt/alignment.h"
#include "convt/device/activation.cuh"
#include "convt/device/depthwise.cuh"
#include "convt/device/launch.cuh"
#include "convt/kernels.h"
#include "convt/phases.h"

namespace convt {
namespace {

constexpr int kThreads = kDepthwiseThreads;
constexpr int kVector = kDepthwiseVector;

// Blocks that an SM must have registers for, by the sums of a thread.
constexpr int min_blocks(int sums) { return sums >= 64 ? 2 : 4; }

// ---------------------------------------------------------------- vectors

template <int V>
__device__ void load_shared(const float* from, float (&to)[V]) {
  if constexpr (V == 1) {
    to[0] = *from;
  } else {
    const float4 values = *reinterpret_cast<const float4*>(from);
    memcpy(to, &values, sizeof(values));
  }
}

// ---------------------------------------------------------------- weights

// Of one output channel, or of neighbouring ones; row and column are the distances between taps.
template <typename T>
struct GlobalWeights {
  const T* filter;
  int row, column;

  template <int V>
  __device__ void read(int offset, float (&to)[V]) const {
    load<V>(filter + offset, to);
  }
};

struct SharedWeights {
  const float* filter;
  int row, column;

  template <int V>
  __device__ void read(int offset, float (&to)[V]) const {
    load_shared<V>(filter + offset, to);
  }
};

// ---------------------------------------------------------------- taps

// The rows of a thread: the first of them, what its first tap reads, and the taps that they share.
struct RowTaps {
  int output, input;
  int first_tap, taps;
};

template <typename T>
__device__ RowTaps rows_of(const DepthwiseParams<T>& p, int residue, int set, int rows) {
  const auto place = p.step_h.divide(set);
  const int q = place.quotient * rows * p.step_h + place.remainder;
  const auto at = p.phases_h.stride.divide(residue + p.padding_h);
  const Phase<int> phase = phase_of(p.phases_h, at.remainder);
  return {q * p.phases_h.stride + residue, q + at.quotient - phase.first_shift, phase.first_tap, phase.taps};
}

// The taps of C neighbouring columns. Step u reads input top - u * shift_step for all of them: it is tap
// u - lead[c] of the phase of column c, if there is such a tap.
template <int C>
struct ColumnTaps {
  int top, steps;
  int lead[C], taps[C];
  int offset[C];  // of the weight at step 0

  __device__ bool has(int c, int u) const {
    return static_cast<unsigned>(u - lead[c]) < static_cast<unsigned>(taps[c]);
  }
};

template <int C, typename T>
__device__ ColumnTaps<C> columns_of(const DepthwiseParams<T>& p, int first, int weight_column) {
  ColumnTaps<C> columns;
  int begin[C];
  columns.top = 0;
  columns.steps = 0;
#pragma unroll
  for (int c = 0; c < C; ++c) {
    const auto at = p.phases_w.stride.divide(first + c + p.padding_w);
    const Phase<int> phase = phase_of(p.phases_w, at.remainder);
    begin[c] = at.quotient - phase.first_shift;
    columns.taps[c] = phase.taps;
    columns.offset[c] = phase.first_tap * weight_column;
    columns.top = c == 0 ? begin[c] : max(columns.top, begin[c]);
  }
#pragma unroll
  for (int c = 0; c < C; ++c) {
    // Several columns are taken only where shift_step is 1.
    columns.lead[c] = C == 1 ? 0 : columns.top - begin[c];
    columns.offset[c] -= columns.lead[c] * p.phases_w.tap_step * weight_column;
    if (columns.taps[c] > 0) columns.steps = max(columns.steps, columns.lead[c] + columns.taps[c]);
  }
  return columns;
}

// ---------------------------------------------------------------- sums

// The sums of a thread: R rows of C columns, of V channels each. One of C and V is 1. The channels have X
// inputs, one for each or one for all.
template <typename T, int C, int V, int X, int R, bool kLong>
class Sums {
 public:
  __device__ void begin(const float (&bias)[V]) {
    products_ = 0;
#pragma unroll
    for (int e = 0; e < C * V; ++e) {
#pragma unroll
      for (int i = 0; i < R; ++i) {
        const float first = kBiasFirst<T> ? bias[V == 1 ? 0 : e] : 0.0f;
        sum_[e][i] = kLong ? 0.0f : first;
        if constexpr (kLong) total_[e][i] = first;
      }
    }
  }

  // Adds all products of one input channel. `plane` is that channel of an image.
  template <typename Weights>
  __device__ void add_channel(const DepthwiseParams<T>& p, const T* plane, const Weights& weights,
                              const RowTaps& rows, const ColumnTaps<C>& columns) {
    const int top = rows.input + (R - 1) * p.step_h;
    const bool inside = rows.input - (rows.taps - 1) * p.step_h >= 0 && top < p.input_h;
    plane += top * p.input_stride.h;
    for (int u = 0; u < columns.steps; ++u) {
      const int column = columns.top - u * p.phases_w.shift_step;
      if (static_cast<unsigned>(column) >= static_cast<unsigned>(p.input_w)) continue;
      const T* x = plane + column * p.input_stride.w;
      if (inside) {
        add_column<true>(p, x, top, weights, rows, columns, u);
      } else {
        add_column<false>(p, x, top, weights, rows, columns, u);
      }
    }
  }

  // The sum of one output, complete.
  __device__ float value(int e, int i) const {
    if constexpr (kLong) {
      return total_[e][i] + sum_[e][i];
    } else {
      return sum_[e][i];
    }
  }

 private:
  // Vectors need many registers; where sums are short, two taps at once are enough.
  static constexpr int kTapsAtOnce = X > 1 && !kLong ? 2 : 4;
  static constexpr int kWindow = R - 1 + kTapsAtOnce;

  // Inputs of one column, from the highest row on, and which of them are in the image.
  struct Window {
    float x[kWindow][X];
    unsigned valid;
    const T* next;
    int row;  // of next
  };

  template <bool kInside>
  static __device__ void read(const DepthwiseParams<T>& p, Window& window, int j) {
    if (kInside || static_cast<unsigned>(window.row) < static_cast<unsigned>(p.input_h)) {
      load<X>(window.next, window.x[j]);
      if (!kInside) window.valid |= 1u << j;
    }
    window.next -= p.row_step;
    window.row -= p.step_h;
  }

  template <bool kInside, typename Weights>
  __device__ void add_column(const DepthwiseParams<T>& p, const T* x, int top, const Weights& weights,
                             const RowTaps& rows, const ColumnTaps<C>& columns, int u) {
    Window window;
    window.valid = 0;
    window.next = x;
    window.row = top;
    if constexpr (!kInside) {
#pragma unroll
      for (int j = 0; j < kWindow; ++j) {
#pragma unroll
        for (int v = 0; v < X; ++v) window.x[j][v] = 0;
      }
    }
#pragma unroll
    for (int j = 0; j < R - 1; ++j) read<kInside>(p, window, j);
    const int tap_row = p.phases_h.tap_step * weights.row;
    int offset = rows.first_tap * weights.row + u * p.phases_w.tap_step * weights.column;
    int taps = rows.taps;
    for (; taps > kTapsAtOnce; taps -= kTapsAtOnce) {
      add_taps<kTapsAtOnce, kInside>(p, window, weights, offset, tap_row, columns, u);
#pragma unroll
      for (int j = 0; j < R - 1; ++j) {
#pragma unroll
        for (int v = 0; v < X; ++v) window.x[j][v] = window.x[j + kTapsAtOnce][v];
      }
      window.valid >>= kTapsAtOnce;
      offset += kTapsAtOnce * tap_row;
    }
    if (taps == 1) add_taps<1, kInside>(p, window, weights, offset, tap_row, columns, u);
    if (taps == 2) add_taps<2, kInside>(p, window, weights, offset, tap_row, columns, u);
    if constexpr (kTapsAtOnce > 2) {
      if (taps == 3) add_taps<3, kInside>(p, window, weights, offset, tap_row, columns, u);
      if (taps == 4) add_taps<4, kInside>(p, window, weights, offset, tap_row, columns, u);
    }
  }

  // The next K taps: reads the K inputs that they add to the window.
  template <int K, bool kInside, typename Weights>
  __device__ void add_taps(const DepthwiseParams<T>& p, Window& window, const Weights& weights, int offset,
                           int tap_row, const ColumnTaps<C>& columns, int u) {
#pragma unroll
    for (int b = 0; b < K; ++b) read<kInside>(p, window, R - 1 + b);
    if (!kInside && window.valid == 0) return;
    if constexpr (kLong) {
      products_ += K;  // of any output; some have less
      if (products_ > kMaxSummedProducts) {
        products_ = K;
#pragma unroll
        for (int e = 0; e < C * V; ++e) {
#pragma unroll
          for (int i = 0; i < R; ++i) {
            total_[e][i] += sum_[e][i];
            sum_[e][i] = 0;
          }
        }
      }
    }
#pragma unroll
    for (int c = 0; c < C; ++c) {
      if (!columns.has(c, u)) continue;
      float w[K][V];
#pragma unroll
      for (int b = 0; b < K; ++b) {
        weights.template read<V>(columns.offset[c] + offset + b * tap_row, w[b]);
      }
#pragma unroll
      for (int j = 0; j < R - 1 + K; ++j) {
        if (!kInside && (window.valid >> j & 1) == 0) continue;
#pragma unroll
        for (int b = 0; b < K; ++b) {
          const int i = R - 1 - j + b;
          if (i < 0 || i >= R) continue;
#pragma unroll
          for (int v = 0; v < V; ++v) {
            float& sum = sum_[c * V + v][i];
            sum = fmaf(w[b][v], window.x[j][X == 1 ? 0 : v], sum);
          }
        }
      }
    }
  }

  float sum_[C * V][R];
  float total_[kLong ? C * V : 1][kLong ? R : 1];
  int products_;
};

// Adds the bias, rounds, applies the activation and stores. `output` is the first of C columns or V channels
// of row 0 of an image.
template <typename T, int C, int V, int X, int R, bool kLong>
__device__ void store(const DepthwiseParams<T>& p, const Sums<T, C, V, X, R, kLong>& sums,
                      const RowTaps& rows, const float (&bias)[V], T* output) {
  constexpr int kElements = C * V;
  const int row_distance = p.step_h * p.phases_h.stride;
  float complete[R * kElements];
#pragma unroll
  for (int i = 0; i < R * kElements; ++i) {
    const int e = i % kElements;
    complete[i] = sums.value(e, i / kElements);
    if constexpr (!kBiasFirst<T>) complete[i] += bias[V == 1 ? 0 : e];
  }
  if (!p.activation.is_identity()) activate_sums<T, 1>(p.activation, complete);
  output += rows.output * p.output_stride.h;
#pragma unroll
  for (int i = 0; i < R; ++i) {
    if (rows.output + i * row_distance >= p.output_h) break;
    store_bits<kElements>(narrow_bits<T, kElements>(complete + i * kElements), output);
    output += row_distance * p.output_stride.h;
  }
}

// ---------------------------------------------------------------- kernels

template <typename T, int C, int R, bool kLong>
__global__ void __launch_bounds__(kThreads, min_blocks(C * R * (kLong ? 2 : 1)))
    depthwise_columns_kernel(const DepthwiseParams<T> p) {
  int index = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (index >= p.threads) return;
  const auto next = [&index](const Divisor<int>& size) {
    const auto result = size.divide(index);
    index = result.quotient;
    return result.remainder;
  };
  int channel_run = p.channels_last ? next(p.channel_runs) : 0;
  const int column = next(p.column_groups) * C;
  const int residue = next(p.phases_h.stride);
  const int run = next(p.runs);
  if (!p.channels_last) channel_run = next(p.channel_runs);
  const int n = index;

  const int weight_row = static_cast<int>(p.weight_stride.kh);
  const int weight_column = static_cast<int>(p.weight_stride.kw);
  const ColumnTaps<C> columns = columns_of<C>(p, column, weight_column);
  const int last_set = min((run + 1) * p.sets_per_thread, p.row_sets);
  const int last_channel = min((channel_run + 1) * p.channels_per_thread, p.cout);
  Sums<T, C, 1, 1, R, kLong> sums;
  for (int channel = channel_run * p.channels_per_thread; channel < last_channel; ++channel) {
    const auto group = p.cout_per_group.divide(channel);
    const int first_cin = group.quotient * p.cin_per_group;
    const T* image = p.input + n * p.input_stride.n + first_cin * p.input_stride.c;
    const T* filter = p.weight + first_cin * p.weight_stride.cin + group.remainder * p.weight_stride.cout;
    T* output = p.output + n * p.output_stride.n + channel * p.output_stride.c + column * p.output_stride.w;
    float bias[1];
    read_bias(p, channel, bias);
    for (int set = run * p.sets_per_thread; set < last_set; ++set) {
      const RowTaps rows = rows_of(p, residue, set, R);
      sums.begin(bias);
      if (rows.taps > 0) {
        for (int ci = 0; ci < p.cin_per_group; ++ci) {
          const GlobalWeights<T> weights{filter + ci * p.weight_stride.cin, weight_row, weight_column};
          sums.add_channel(p, image + ci * p.input_stride.c, weights, rows, columns);
        }
      }
      store(p, sums, rows, bias, output);
    }
  }
}

template <typename T, int V, int X, int R, bool kLong>
__global__ void __launch_bounds__(kThreads, min_blocks(V * R * (kLong ? 2 : 1)))
    depthwise_channels_kernel(const DepthwiseParams<T> p) {
  extern __shared__ float4 shared_vectors[];
  float* const filters = reinterpret_cast<float*>(shared_vectors);
  const auto by_block = p.blocks_an_image.divide(static_cast<int>(blockIdx.x));
  const auto by_tile = p.channel_tiles.divide(by_block.quotient);
  const int n = by_tile.quotient, first_channel = by_tile.remainder * p.tile_channels;
  const int channels = min(p.tile_channels, p.cout - first_channel);

  const int weights_a_channel = p.cin_per_group * p.taps;
  for (int i = threadIdx.x; i < channels * weights_a_channel; i += kThreads) {
    const auto by_tap = p.taps.divide(i);
    const auto by_cin = p.cin_per_group.divide(by_tap.quotient);
    const auto tap = p.kernel_w.divide(by_tap.remainder);
    const auto group = p.cout_per_group.divide(first_channel + by_cin.quotient);
    const T* const weight = p.weight +
                            (group.quotient * p.cin_per_group + by_cin.remainder) * p.weight_stride.cin +
                            group.remainder * p.weight_stride.cout + tap.quotient * p.weight_stride.kh +
                            tap.remainder * p.weight_stride.kw;
    filters[(by_cin.remainder * p.taps + by_tap.remainder) * p.pitch + by_cin.quotient] =
        widen(__ldg(weight));
  }
  __syncthreads();

  const auto by_lane = p.lanes.divide(static_cast<int>(threadIdx.x));
  const int in_tile = by_lane.remainder * V, channel = first_channel + in_tile;
  if (by_lane.quotient >= p.items_at_once || channel >= p.cout) return;
  const auto group = p.cout_per_group.divide(channel);
  const T* const image = p.input + n * p.input_stride.n + group.quotient * p.cin_per_group * p.input_stride.c;
  T* const output = p.output + n * p.output_stride.n + channel * p.output_stride.c;
  float bias[V];
  read_bias(p, channel, bias);
  int item = by_block.remainder * p.passes * p.items_at_once + by_lane.quotient;
  for (int pass = 0; pass < p.passes; ++pass, item += p.items_at_once) {
    if (item >= p.items) break;
    int residue, column, set;
    if (p.phase_first) {
      const auto by_phase = p.phases_h.stride.divide(item);
      const auto by_column = p.columns.divide(by_phase.quotient);
      residue = by_phase.remainder, column = by_column.remainder, set = by_column.quotient;
    } else {
      const auto by_column = p.columns.divide(item);
      const auto by_phase = p.phases_h.stride.divide(by_column.quotient);
      residue = by_phase.remainder, column = by_column.remainder, set = by_phase.quotient;
    }
    const RowTaps rows = rows_of(p, residue, set, R);
    const ColumnTaps<1> columns = columns_of<1>(p, column, p.pitch);
    Sums<T, 1, V, X, R, kLong> sums;
    sums.begin(bias);
    if (rows.taps > 0) {
      for (int ci = 0; ci < p.cin_per_group; ++ci) {
        const SharedWeights weights{filters + ci * p.taps * p.pitch + in_tile, p.kernel_w * p.pitch, p.pitch};
        sums.add_channel(p, image + ci * p.input_stride.c, weights, rows, columns);
      }
    }
    store(p, sums, rows, bias, output + column * p.output_stride.w);
  }
}

// ---------------------------------------------------------------- launch

template <typename T, int C>
DepthwiseKernel<T> choose_columns(const DepthwiseLaunch& launch) {
  // A thread that has few sums has registers for their totals, needed or not.
  constexpr bool kFew = C == 1;
  if (launch.rows == 1) return depthwise_columns_kernel<T, C, 1, true>;
  return launch.long_sums ? depthwise_columns_kernel<T, C, kDepthwiseRows, true>
                          : depthwise_columns_kernel<T, C, kDepthwiseRows, kFew>;
}

template <typename T, int V, int X>
DepthwiseKernel<T> choose_channels(const DepthwiseLaunch& launch) {
  constexpr bool kFew = V == 1;
  if (launch.rows == 1) return depthwise_channels_kernel<T, V, X, 1, true>;
  return launch.long_sums ? depthwise_channels_kernel<T, V, X, kDepthwiseRows, true>
                          : depthwise_channels_kernel<T, V, X, kDepthwiseRows, kFew>;
}

template <typename T>
DepthwiseKernel<T> choose(const DepthwiseLaunch& launch) {
  if (launch.mapping == DepthwiseMapping::kRolling) return choose_rolling<T>(launch);
  if (launch.mapping == DepthwiseMapping::kColumns) {
    return launch.vector == 1 ? choose_columns<T, 1>(launch) : choose_columns<T, kVector>(launch);
  }
  if (launch.vector == 1) return choose_channels<T, 1, 1>(launch);
  return launch.shares_input ? choose_channels<T, kVector, 1>(launch)
                             : choose_channels<T, kVector, kVector>(launch);
}

// The same tiles of channels, one channel a thread.
DepthwiseLaunch without_vectors(DepthwiseLaunch launch) {
  launch.lanes *= launch.vector;
  launch.vector = 1;
  launch.items_at_once = kThreads / launch.lanes;
  const auto ceil_div = [](int a, int b) { return (a + b - 1) / b; };
  launch.passes = ceil_div(ceil_div(launch.items, launch.items_at_once), launch.blocks_an_image);
  return launch;
}

template <typename T>
cudaError_t launch_typed(const Problem& problem, DepthwiseLaunch launch, cudaStream_t stream) {
  // What the plan does not know: pointers, and the strides of the weight.
  const bool by_channel = launch.mapping == DepthwiseMapping::kChannels;
  if (launch.vector > 1 && by_channel && !launch.shares_input &&
      !is_aligned(problem.input, kVector * sizeof(T))) {
    launch = without_vectors(launch);
  }
  if (launch.loads_vectors) {
    launch.loads_vectors = is_aligned(problem.input, kRollingVectorBytes / launch.phases_w.stride);
  }
  const WeightStrides& weight = problem.weight_stride;
  if ((problem.h.kernel - 1) * weight.kh + (problem.w.kernel - 1) * weight.kw >= kMaxCoordinate) {
    return launch_generic(problem, stream);  // offsets into a filter have 32 bits
  }
  DepthwiseParams<T> p = {};
  set_problem(p, problem);
  p.weight = static_cast<const T*>(problem.weight);
  p.weight_stride = problem.weight_stride;
  p.phases_h = launch.phases_h;
  p.phases_w = launch.phases_w;
  p.step_h = launch.phases_h.shift_step;
  // The only row or column of an image may have any stride.
  if (problem.h.input == 1) p.input_stride.h = 0;
  if (problem.w.input == 1) p.input_stride.w = 0;
  p.row_step = static_cast<int>(p.input_stride.h) * launch.phases_h.shift_step;
  p.padding_h = static_cast<int>(problem.h.padding);
  p.padding_w = static_cast<int>(problem.w.padding);
  p.cout = static_cast<int>(problem.cout());
  p.row_sets = launch.row_sets;
  p.sets_per_thread = launch.sets_per_thread;
  p.channels_per_thread = launch.channels_per_thread;
  if (by_channel) {
    p.lanes = launch.lanes;
    p.channel_tiles = launch.channel_tiles;
    p.blocks_an_image = launch.blocks_an_image;
    p.kernel_w = launch.phases_w.kernel;
    p.taps = launch.phases_h.kernel * launch.phases_w.kernel;
    p.columns = p.output_w;
    p.tile_channels = launch.lanes * launch.vector;
    p.items = launch.items;
    p.items_at_once = launch.items_at_once;
    p.passes = launch.passes;
    p.pitch = launch.pitch;
    p.phase_first = launch.phase_first;
  } else {
    p.column_groups = p.output_w / launch.vector;
    p.runs = launch.runs;
    p.channel_runs = launch.channel_runs;
    p.threads = launch.threads;
    p.channels_last = problem.output_channels_last;
    const int64_t kernel_w = problem.w.kernel, taps = problem.h.kernel * kernel_w;
    p.dense_filters = weight.cin == taps && weight.kh == kernel_w && weight.kw == 1 &&
                      is_aligned(problem.weight, kVector * sizeof(T));
  }
  choose<T>(launch)<<<static_cast<unsigned>(launch.blocks), kThreads, launch.shared_bytes, stream>>>(p);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_depthwise(const Problem& problem, const DepthwiseLaunch& launch, cudaStream_t stream) {
  switch (problem.dtype) {
    case DType::kFloat32:
      return launch_typed<float>(problem, launch, stream);
    case DType::kFloat16:
      return launch_typed<__half>(problem, launch, stream);
    case DType::kBFloat16:
      return launch_typed<__nv_bfloat16>(problem, launch, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace convt
