// The launch of `depthwise`.

#include <algorithm>
#include <iterator>

#include "convt/alignment.h"
#include "plan_common.h"

namespace convt {
namespace {

struct DepthwisePlanner {
  const Problem& p;
  const DeviceLimits& device;
  AxisPhases<int> h = narrow_phases(p.h), w = narrow_phases(p.w);

  // Row sets of one H-phase. A set takes every shift_step-th row, so that its rows share inputs.
  int64_t row_sets(int rows) const {
    return ceil_div(ceil_div(p.h.output, p.h.stride), int64_t{rows} * h.shift_step) * h.shift_step;
  }

  // Threads that take one row set each. In floating point the product cannot wrap.
  double threads(int vector, int rows) const {
    return static_cast<double>(p.output_elements()) / static_cast<double>(vector * p.h.output) *
           static_cast<double>(p.h.stride * row_sets(rows));
  }

  // Whether four neighbouring output channels have the same inputs, or inputs that can be loaded as a vector.
  bool shares_input() const { return p.cout_per_group % kDepthwiseVector == 0; }
  bool loads_vectors() const {
    constexpr int64_t kVector = kDepthwiseVector;
    const ActivationStrides& in = p.input_stride;
    return p.cin_per_group == 1 && p.cout_per_group == 1 && p.groups % kVector == 0 && in.c == 1 &&
           in.n % kVector == 0 && in.h % kVector == 0 && in.w % kVector == 0;
  }

  // Sets the tile of channels whose filters a block keeps in shared memory; false if not even one fits.
  bool set_channel_tile(DepthwiseLaunch& launch) const {
    constexpr int64_t kWarp = 32, kLine = 128;
    // Shared memory is taken from L1, which holds the input between its uses.
    constexpr double kWantedBytes = kDepthwiseMaxSharedBytes / 2;
    const int64_t vectors = p.cout() / launch.vector;
    const double products = static_cast<double>(p.cin_per_group) * static_cast<double>(p.h.kernel) *
                            static_cast<double>(p.w.kernel);
    for (int64_t limit = std::min(vectors, kWarp); limit >= 1; --limit) {
      // Equal tiles: the same number of them, each as narrow as that allows.
      const int64_t tiles = ceil_div(vectors, limit), lanes = ceil_div(vectors, tiles);
      const int64_t channels = lanes * launch.vector, bytes = channels * element_size(p.dtype);
      // Four more floats: the taps of a channel then lie in several banks, and vectors stay aligned.
      const int64_t pitch = channels + (channels % 32 == 0 ? 4 : 0);
      const double shared = products * static_cast<double>(pitch) * sizeof(float);
      if (shared > (2 * bytes <= kLine ? double{kDepthwiseMaxSharedBytes} : kWantedBytes)) continue;
      launch.lanes = static_cast<int>(lanes);
      launch.channel_tiles = static_cast<int>(tiles);
      launch.pitch = static_cast<int>(pitch);
      launch.shared_bytes = static_cast<size_t>(shared);
      // The H-phases of a column read the same input: side by side they find it in L1. But where lanes hold
      // few channels, the next lanes must be neighbours in memory too.
      launch.phase_first = bytes >= kLine;
      return true;
    }
    return false;
  }

  bool plan_channels(DepthwiseLaunch& launch) const {
    if (!set_channel_tile(launch)) return false;
    launch.mapping = DepthwiseMapping::kChannels;
    launch.items = static_cast<int>(p.w.output * p.h.stride * launch.row_sets);
    launch.items_at_once = kDepthwiseThreads / launch.lanes;
    // Passes share the filters that a block has loaded, as long as there are some 32 blocks for each SM.
    const int64_t once = ceil_div(launch.items, launch.items_at_once);
    const int64_t tiles = p.batch * launch.channel_tiles;
    const double blocks = static_cast<double>(once) * static_cast<double>(tiles);
    const double passes = std::clamp(blocks / (32.0 * device.sm_count), 1.0, static_cast<double>(once));
    launch.blocks_an_image = static_cast<int>(ceil_div(once, static_cast<int64_t>(passes)));
    launch.passes = static_cast<int>(ceil_div(once, launch.blocks_an_image));
    launch.blocks = launch.blocks_an_image * tiles;
    return launch.blocks <= kMaxGrid;
  }

  // Threads that take some sets and channels, of which `phases` share the sets.
  void set_threads(DepthwiseLaunch& launch, int64_t phases) const {
    launch.sets_per_thread = static_cast<int>(ceil_div(launch.row_sets, launch.runs));
    launch.channel_runs = static_cast<int>(ceil_div(p.cout(), launch.channels_per_thread));
    const int64_t columns = p.w.output / launch.vector;
    launch.threads = static_cast<int>(columns * phases * launch.runs * launch.channel_runs * p.batch);
    launch.blocks = ceil_div(launch.threads, kDepthwiseThreads);
  }

  void plan_columns(DepthwiseLaunch& launch) const {
    launch.mapping = DepthwiseMapping::kColumns;
    // Finding the phases of its columns costs a thread as much as some outputs do, so it takes several row
    // sets, and then several channels, as long as there are some eight rounds of threads.
    constexpr double kThreadsOfSm = 1024;
    const double rounds = threads(launch.vector, launch.rows) / (kThreadsOfSm * device.sm_count);
    const double wanted = rounds / 8;
    const int64_t most = static_cast<int64_t>(std::clamp<double>(wanted, 1, launch.row_sets));
    launch.runs = static_cast<int>(ceil_div(launch.row_sets, most));
    if (launch.runs == 1 && !p.output_channels_last) {
      constexpr double kMostChannels = 8;
      const double channels = std::min(wanted / launch.row_sets, std::min<double>(kMostChannels, p.cout()));
      launch.channels_per_thread = static_cast<int>(std::max(1.0, channels));
    }
    set_threads(launch, p.h.stride);
  }

  // Output columns of a thread of rolling.
  int64_t rolling_columns() const {
    return p.output_channels_last ? p.w.stride : kRollingVectorBytes / element_size(p.dtype);
  }

  // The number of a filter in kRollingFilters whose kernel can compute the problem, or of none.
  static constexpr int kNoFilter = -1;
  int rolling_filter() const {
    const bool square = p.h.kernel == p.w.kernel && p.h.stride == p.w.stride;
    if (p.cin_per_group != 1 || !square || p.h.dilation != 1 || p.w.dilation != 1) return kNoFilter;
    if (p.w.output % rolling_columns() != 0) return kNoFilter;
    if (p.output_channels_last) {
      // Neighbouring channels are vectors, and distances between columns and between rows have 32 bits.
      constexpr int64_t kFarthest = kMaxCoordinate / 8;
      if (!loads_vectors() || !is_aligned(p.input, kRollingVectorBytes)) return kNoFilter;
      if (p.w.input > 1 && p.input_stride.w >= kFarthest) return kNoFilter;
      if (p.w.output >= kMaxCoordinate / p.cout()) return kNoFilter;
    } else if (p.w.input > 1 && p.input_stride.w != 1) {
      return kNoFilter;
    }
    const auto* const filter = std::find_if(
        std::begin(kRollingFilters), std::end(kRollingFilters), [this](const RollingFilter& candidate) {
          return candidate.kernel == p.w.kernel && candidate.stride == p.w.stride &&
                 candidate.phase == p.w.padding % p.w.stride;
        });
    if (filter == std::end(kRollingFilters)) return kNoFilter;
    return static_cast<int>(filter - std::begin(kRollingFilters));
  }

  void plan_rolling(int filter, DepthwiseLaunch& launch) const {
    const RollingFilter& shape = kRollingFilters[filter];
    launch.mapping = DepthwiseMapping::kRolling;
    launch.filter = filter;
    launch.vector = static_cast<int>(rolling_columns());
    if (p.output_channels_last) launch.channels_per_thread = kDepthwiseVector;
    launch.rows = shape.stride;
    launch.row_sets = bases_of(p.h).count;
    // A thread's own input columns: the outputs that begin at V * i have those from V * i / stride on.
    const int64_t columns = launch.vector / shape.stride;
    const ActivationStrides& in = p.input_stride;
    launch.loads_vectors = !p.output_channels_last && shape.has_vectors(launch.vector) &&
                           p.w.padding == shape.same_padding() && p.w.output <= p.w.input * p.w.stride &&
                           (p.batch == 1 || in.n % columns == 0) && (p.cin() == 1 || in.c % columns == 0) &&
                           (p.h.input == 1 || in.h % columns == 0);
    // Weights and addresses cost a thread as much as two rows of outputs do, and it multiplies some rows
    // that its predecessor does too; yet some four rounds of threads keep the device busy to the end.
    constexpr int64_t kLeastSets = 4, kMostSets = 64;
    const double threads_of_sm = rolling_blocks(shape.kernel, p.output_channels_last) * kDepthwiseThreads;
    const double all = static_cast<double>(p.w.output / launch.vector * p.batch) *
                       static_cast<double>(p.cout() / launch.channels_per_thread) * launch.row_sets;
    const double wanted = all / (4 * threads_of_sm * device.sm_count);
    const auto most = static_cast<int64_t>(std::clamp<double>(wanted, kLeastSets, kMostSets));
    launch.runs = static_cast<int>(ceil_div(launch.row_sets, most));
    set_threads(launch, 1);
  }

  // Rows of a thread: one where there are few, or where threads would not fill the device.
  int rows(int vector) const {
    const bool high = p.h.output > int64_t{2} * p.h.stride * h.shift_step;
    const bool many = threads(vector, kDepthwiseRows) >= 512.0 * device.sm_count;
    return high && many ? kDepthwiseRows : 1;
  }

  DepthwiseLaunch plan() const {
    DepthwiseLaunch launch;
    launch.phases_h = h;
    launch.phases_w = w;
    launch.long_sums = p.cin_per_group * most_taps(h) * most_taps(w) > kMaxSummedProducts;
    const int filter = rolling_filter();
    if (filter != kNoFilter) {
      plan_rolling(filter, launch);
      return launch;
    }
    if (p.output_channels_last) {
      launch.shares_input = shares_input();
      launch.vector = launch.shares_input || loads_vectors() ? kDepthwiseVector : 1;
      launch.rows = rows(launch.vector);
      launch.row_sets = static_cast<int>(row_sets(launch.rows));
      if (plan_channels(launch)) return launch;
      launch.shares_input = false;
      launch.vector = 1;
    } else {
      // Columns that are neighbours share their inputs if those are neighbours too.
      launch.vector = p.w.output % kDepthwiseVector == 0 && w.shift_step == 1 ? kDepthwiseVector : 1;
    }
    launch.rows = rows(launch.vector);
    launch.row_sets = static_cast<int>(row_sets(launch.rows));
    plan_columns(launch);
    return launch;
  }
};

}  // namespace

const char* depthwise_obstacle(const Problem& p, const DeviceLimits& device) {
  if (p.dtype == DType::kFloat64) return "it has no float64 path";
  for (const Axis* axis : {&p.h, &p.w}) {
    if (!fits_32_bits(*axis)) return "its coordinates have 32 bits";
    if (axis->stride >= kDepthwiseMaxStep) return "its stride is too large";
    if (axis->dilation >= kDepthwiseMaxStep) return "its dilation is too large";
  }
  if (p.batch >= kMaxCoordinate || p.cin() >= kMaxCoordinate || p.cout() >= kMaxCoordinate) {
    return "its coordinates have 32 bits";
  }
  const DepthwisePlanner planner{p, device};
  if (p.h.input > 1 && p.input_stride.h >= kMaxCoordinate / planner.h.shift_step) {
    return "the rows of its input lie too far apart";
  }
  if (planner.threads(1, planner.rows(1)) >= static_cast<double>(kMaxCoordinate)) {
    return "its threads are numbered in 32 bits";
  }
  return nullptr;
}

DepthwiseLaunch plan_depthwise(const Problem& problem, const DeviceLimits& device) {
  return DepthwisePlanner{problem, device}.plan();
}

}  // namespace convt
