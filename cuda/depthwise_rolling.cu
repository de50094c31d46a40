// depthwise, DepthwiseMapping::kRolling: one input channel a group, and a filter that is known when this is
// compiled, so that no instruction finds out which taps an output has.
//
// A thread of NCHW owns the V neighbouring output columns that it stores as one vector, V a multiple of the
// stride S; one of NHWC four channels, a vector, of V = S columns. It walks down some bases (convt/phases.h)
// of the image. The first of its columns has the base B = (column + padding) div S and the phase P = padding
// mod S, whichever thread it is. So of its column c, tap k reads
//
//   input column B + (c + P - k) / S          if S divides c + P - k, else none
//
// which is a constant distance from B. Along H, input row b carries tap k to output row b * S - padding + k:
// it completes the S rows of base b, and K - S sums of each column roll on to the next base.
//
//   complete[k][c]  = carry[k][c] + sum w[k][.] * x[.]                                            k < S
//   carry[k - S][c] = carry[k][c] + sum w[k][.] * x[.]                                       S <= k < K
//
// where carry[k] with K - S <= k is the bias or zero. Both are written in the order of k, so that sums move
// to other registers in their first multiply-add. A thread begins (K - 1) / S bases before its own, with sums
// that are not all of an output, and stores from its own bases on. Which inputs are added to an output, and
// in which order, depends on no launch.
//
// The inputs of the next row are on their way while those of a row are multiplied. Only a few columns at the
// ends of a thread's inputs can lie outside of the image: they are neither read nor multiplied. Rows above
// the image are not visited; below it, where sums roll on without inputs, both weights and inputs are zeros.

#include "convt/device/activation.cuh"
#include "convt/device/depthwise.cuh"
#include "convt/device/launch.cuh"

namespace convt {
namespace {

// The columns of a thread, as constants.
template <typename T, int kFilter, bool kChannelsLast>
struct RollingColumns {
  static constexpr RollingFilter kShape = kRollingFilters[kFilter];
  static constexpr int kKernel = kShape.kernel, kStride = kShape.stride, kPhase = kShape.phase;
  static constexpr int kOutputs = kChannelsLast ? kStride : kRollingVectorBytes / sizeof(T);
  static constexpr int kChannels = kChannelsLast ? kDepthwiseVector : 1;
  static constexpr int kOwn = kOutputs / kStride;
  // Inputs of all its outputs, from kBefore columns before the first base on.
  static constexpr int kBefore = kShape.columns_before();
  static constexpr int kInputs = kBefore + (kOutputs - 1 + kPhase) / kStride + 1;
  // S * (w.input - 1) = w.output - K - output_padding + 2 * padding, where output_padding < S as the dilation
  // is 1. So inputs of the last thread from this one on may lie behind the image, and do with the least
  // padding and the most output_padding.
  static constexpr int kBehind = kBefore + kOwn + 1 - (kKernel + kStride - 1 - 2 * kPhase) / kStride;
  // Where the columns begin that are one vector.
  static constexpr int kVector = kBefore - kShape.same_padding() / kStride;

  __device__ static constexpr bool may_be_outside(int input) { return input < kBefore || input >= kBehind; }
  __device__ static constexpr bool has_tap(int output, int k) { return (output + kPhase - k) % kStride == 0; }
  __device__ static constexpr int input_of(int output, int k) {
    return kBefore + (output + kPhase - k) / kStride;
  }

  static_assert(kOutputs % kStride == 0 && kPhase < kStride && kPhase < kKernel && kStride <= kKernel);
};

// The inputs of one row, as they lie in memory: widened no sooner than they are multiplied. With kVectors a
// thread's own columns, of one channel, are one vector.
template <typename T, typename Columns, bool kVectors>
class RollingRow {
 public:
  // `from` is the place of the first input, in the image or not; columns lie `pitch` apart, side by side of
  // one channel.
  __device__ void load(const T* from, int pitch, const bool (&inside)[Columns::kInputs]) {
    if constexpr (kVectors) own_ = load_bits<Columns::kOwn>(from + Columns::kVector);
#pragma unroll
    for (int j = 0; j < Columns::kInputs; ++j) {
      if (is_own(j)) continue;
      if (!Columns::may_be_outside(j) || inside[j])
        single_[j] = load_bits<kChannels>(from + j * (kChannels == 1 ? 1 : pitch));
    }
  }

  __device__ void widen(float (&x)[Columns::kInputs][Columns::kChannels]) const {
    if constexpr (kVectors) widen_bits<T, Columns::kOwn>(own_, &x[Columns::kVector][0]);
#pragma unroll
    for (int j = 0; j < Columns::kInputs; ++j) {
      if (!is_own(j)) widen_bits<T, kChannels>(single_[j], x[j]);
    }
  }

 private:
  static constexpr int kChannels = Columns::kChannels;
  static_assert(!kVectors || kChannels == 1);

  __device__ static constexpr bool is_own(int j) {
    return kVectors && j >= Columns::kVector && j < Columns::kVector + Columns::kOwn;
  }

  VectorBits<T, kVectors ? Columns::kOwn : 1> own_ = {};
  VectorBits<T, kChannels> single_[Columns::kInputs] = {};
};

template <typename T, int kFilter, bool kVectors, bool kChannelsLast>
__global__ void __launch_bounds__(kDepthwiseThreads,
                                  rolling_blocks(kRollingFilters[kFilter].kernel, kChannelsLast))
    depthwise_rolling_kernel(const DepthwiseParams<T> p) {
  using Columns = RollingColumns<T, kFilter, kChannelsLast>;
  constexpr int K = Columns::kKernel, S = Columns::kStride, V = Columns::kOutputs, C = Columns::kChannels;
  constexpr int kInputs = Columns::kInputs, kCarried = K - S;

  int index = static_cast<int>(blockIdx.x) * kDepthwiseThreads + static_cast<int>(threadIdx.x);
  if (index >= p.threads) return;
  const auto next = [&index](const Divisor<int>& size) {
    const auto result = size.divide(index);
    index = result.quotient;
    return result.remainder;
  };
  // Lanes lie side by side in memory.
  const int first_channel = kChannelsLast ? next(p.channel_runs) * C : 0;
  const int column = next(p.column_groups) * V;
  const int run = next(p.runs), channel = kChannelsLast ? first_channel : next(p.channel_runs), n = index;
  const auto group = p.cout_per_group.divide(channel);

  float w[K][K][C];
  const T* const filter =
      p.weight + group.quotient * p.weight_stride.cin + group.remainder * p.weight_stride.cout;
  if (kChannelsLast && p.dense_filters) {
    // Neighbouring lanes read far from each other: the fewer reads, the better.
#pragma unroll
    for (int i = 0; i < K * K; ++i) {
      float few[C];
      widen_bits<T, C>(load_bits<C>(filter + i * C), few);
#pragma unroll
      for (int e = 0; e < C; ++e) {
        const int tap = (i * C + e) % (K * K);
        w[tap / K][tap % K][(i * C + e) / (K * K)] = few[e];
      }
    }
  } else {
#pragma unroll
    for (int e = 0; e < K * K * C; ++e) {
      const int kh = e / C / K, kw = e / C % K;
      w[kh][kw][e % C] = widen(
          __ldg(filter + e % C * p.weight_stride.cin + kh * p.weight_stride.kh + kw * p.weight_stride.kw));
    }
  }
  float bias[C];
  read_bias(p, channel, bias);
  const auto begin = [&](int v) { return kBiasFirst<T> ? bias[v] : 0.0f; };

  const int first_input = (column + p.padding_w) / S - Columns::kBefore;
  bool inside[kInputs];
#pragma unroll
  for (int j = 0; j < kInputs; ++j) {
    inside[j] = static_cast<unsigned>(first_input + j) < static_cast<unsigned>(p.input_w);
  }

  const int top = p.padding_h / S, first = top + run * p.sets_per_thread;
  // Each `afresh`, as it would be found again for every row.
  const int end = afresh(top + min((run + 1) * p.sets_per_thread, p.row_sets));
  const int rows_end = afresh(min(end, p.input_h));
  int base = max(first - (K - 1) / S, 0);
  const int pitch = kChannelsLast ? static_cast<int>(p.input_stride.w) : 1;
  const T* next_row = p.input + n * p.input_stride.n + group.quotient * p.input_stride.c +
                      base * p.input_stride.h + first_input * int64_t{pitch};
  const int output_pitch = kChannelsLast ? p.cout : 1, output_row = p.output_w * output_pitch;
  T* output = p.output + n * p.output_stride.n + channel * p.output_stride.c +
              (int64_t{base} * S - p.padding_h) * output_row + int64_t{column} * output_pitch;
  // Rows are counted from the first one that this thread stores.
  const int first_row = max(first * S - p.padding_h, 0);
  int row = base * S - p.padding_h - first_row;
  const unsigned rows = static_cast<unsigned>(p.output_h - first_row);

  RollingRow<T, Columns, kVectors> inputs;
  if (base < rows_end) inputs.load(next_row, pitch, inside);
  next_row += p.row_step;
  float x[kInputs][C];
  // Adds to a sum what channel v of output column c gets of row kh of the filter, the inputs that any thread
  // has first.
  const auto add = [&](float sum, int kh, int c, int v) {
#pragma unroll
    for (const bool everywhere : {true, false}) {
#pragma unroll
      for (int kw = 0; kw < K; ++kw) {
        if (!Columns::has_tap(c, kw)) continue;
        const int j = Columns::input_of(c, kw);
        if (Columns::may_be_outside(j) == everywhere) continue;
        if (everywhere || inside[j]) sum = fmaf(w[kh][kw][v], x[j][v], sum);
      }
    }
    return sum;
  };
  // A row's sums as they are stored: columns of a channel, or channels of a column.
  constexpr int kRow = V * C;
  float carry[kCarried + 1][kRow];  // one more, as there are no arrays of no rows
#pragma unroll
  for (int e = 0; e < kCarried * kRow; ++e) carry[e / kRow][e % kRow] = begin(e % C);
  const auto carried = [&](int k, int e) { return k < kCarried ? carry[k][e] : begin(e % C); };
  const auto sum_of = [&](int e) { return add(carried(e / kRow, e % kRow), e / kRow, e % kRow / C, e % C); };
  for (int stop = rows_end;; stop = end) {
    for (; base < stop; ++base, row += S) {
      inputs.widen(x);
      if (base + 1 < rows_end) inputs.load(next_row, pitch, inside);
      next_row += p.row_step;
      float complete[S * kRow];
#pragma unroll
      for (int e = 0; e < S * kRow; ++e) complete[e] = sum_of(e);
      if constexpr (!kBiasFirst<T>) {
#pragma unroll
        for (int e = 0; e < S * kRow; ++e) complete[e] += bias[e % C];
      }
      if (!p.activation.is_identity()) activate_sums<T, 1>(p.activation, complete);
#pragma unroll
      for (int s = 0; s < S; ++s) {
        constexpr int kVector = kChannelsLast ? C : V;
#pragma unroll
        for (int e = 0; e < kRow; e += kVector) {
          const auto bits = narrow_bits<T, kVector>(complete + s * kRow + e);
          if (static_cast<unsigned>(row + s) < rows) store_bits<kVector>(bits, output + e / C * output_pitch);
        }
        output += output_row;
      }
#pragma unroll
      for (int e = S * kRow; e < K * kRow; ++e) carry[e / kRow - S][e % kRow] = sum_of(e);
    }
    if (base >= end) return;
    // Below the image the same instructions add zeros.
    inputs = {};
#pragma unroll
    for (int e = 0; e < K * K * C; ++e) w[e / C / K][e / C % K][e % C] = 0;
  }
}

template <typename T, int kFilter>
DepthwiseKernel<T> choose_loads(const DepthwiseLaunch& launch) {
  if (launch.channels_per_thread > 1) return depthwise_rolling_kernel<T, kFilter, false, true>;
  if constexpr (kRollingFilters[kFilter].has_vectors(RollingColumns<T, kFilter, false>::kOutputs)) {
    if (launch.loads_vectors) return depthwise_rolling_kernel<T, kFilter, true, false>;
  }
  return depthwise_rolling_kernel<T, kFilter, false, false>;
}

}  // namespace

template <typename T>
DepthwiseKernel<T> choose_rolling(const DepthwiseLaunch& launch) {
  constexpr int kFilters = sizeof(kRollingFilters) / sizeof(kRollingFilters[0]);
  return choose_kernel<kFilters>(
      launch.filter, [&](auto filter) { return choose_loads<T, decltype(filter)::value>(launch); });
}

template DepthwiseKernel<float> choose_rolling<float>(const DepthwiseLaunch& launch);
template DepthwiseKernel<__half> choose_rolling<__half>(const DepthwiseLaunch& launch);
template DepthwiseKernel<__nv_bfloat16> choose_rolling<__nv_bfloat16>(const DepthwiseLaunch& launch);

}  // namespace convt
