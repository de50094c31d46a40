// Which launches of tile_mma can compute a problem, and what each should cost.

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <vector>

#include "convt/alignment.h"
#include "convt/plan.h"
#include "plan_common.h"

namespace convt {

bool make_axis_taps(const Axis& axis, int crop, int set_size, int inputs, AxisTaps* taps) {
  const int64_t stride = inputs * axis.stride;
  taps->stride = static_cast<int>(stride);
  taps->inputs = inputs;
  taps->dilation = static_cast<int>(axis.dilation);
  taps->kernel = static_cast<int>(axis.kernel);
  taps->crop = crop;
  taps->reach = static_cast<int>(axis.padding) - crop;
  taps->set_size = set_size;
  taps->sets = static_cast<int>(ceil_div(stride, set_size));
  int64_t least = std::numeric_limits<int64_t>::max(), most = std::numeric_limits<int64_t>::min();
  int entries = 0;
  for (int set = 0; set < taps->sets; ++set) {
    std::map<int64_t, uint32_t> phases_of_offset;
    for (int j = 0; j < set_size && set * set_size + j < stride; ++j) {
      for (int64_t k = 0; k < axis.kernel; ++k) {
        const int64_t distance = set * set_size + j + taps->reach - k * axis.dilation;
        if (distance % axis.stride == 0) phases_of_offset[distance / axis.stride] |= 1u << j;
      }
    }
    taps->begin[set] = static_cast<int16_t>(entries);
    for (const auto& [offset, phases] : phases_of_offset) {
      if (offset <= -kMaxCoordinate || offset >= kMaxCoordinate) return false;
      least = std::min<int64_t>(least, taps->point_of(static_cast<int>(offset)));
      most = std::max<int64_t>(most, taps->point_of(static_cast<int>(offset)));
      taps->offset[entries] = static_cast<int32_t>(offset);
      taps->phases[entries] = phases;
      ++entries;
    }
  }
  taps->begin[taps->sets] = static_cast<int16_t>(entries);
  if (most - least >= kMaxCoordinate) return false;
  taps->least_offset = static_cast<int>(least);
  taps->span = static_cast<int>(most - least);
  return true;
}

bool reads_channels_last(const Problem& problem) {
  return !(problem.input_stride.w == 1 && problem.input_stride.c != 1);
}

int operand_parts(const Problem& p) {
  return p.dtype == DType::kFloat32 && p.float32_precision == Float32Precision::kIeee ? 2 : 1;
}

bool is_distinct(Crop crop, const Problem& p) {
  return crop == Crop::kNone || p.h.padding % p.h.stride != 0 || p.w.padding % p.w.stride != 0;
}

bool set_taps(const Problem& problem, Crop crop, int set_h, int set_w, TileMmaLaunch& launch, int inputs_w) {
  const auto set_axis = [crop](const Axis& axis, int set_size, int inputs, AxisTaps& taps, int& grid) {
    const int cropped = crop == Crop::kNone ? 0 : static_cast<int>(axis.padding % axis.stride);
    grid = static_cast<int>(ceil_div(axis.output + cropped, inputs * axis.stride));
    return make_axis_taps(axis, cropped, set_size, inputs, &taps);
  };
  return set_axis(problem.h, set_h, 1, launch.taps_h, launch.grid_h) &&
         set_axis(problem.w, set_w, inputs_w, launch.taps_w, launch.grid_w);
}

int sum_offsets(TileMmaLaunch& launch) {
  int sum = 0;
  launch.max_offsets = 1;
  for (int set_h = 0; set_h < launch.taps_h.sets; ++set_h) {
    for (int set_w = 0; set_w < launch.taps_w.sets; ++set_w) {
      const int offsets = launch.taps_h.offsets(set_h) * launch.taps_w.offsets(set_w);
      launch.max_offsets = std::max(launch.max_offsets, offsets);
      sum += offsets;
    }
  }
  return sum;
}

void set_tiles(const Problem& problem, TileMmaLaunch& launch) {
  launch.tiles_m = ceil_div(launch.row_tiles(), launch.row_tiles_per_block);
  launch.tiles_w = ceil_div(launch.grid_w, launch.cols);
  launch.tiles_h = ceil_div(launch.grid_h, launch.rows);
  launch.tiles_n = ceil_div(problem.batch, launch.images);
  launch.groups = problem.groups;
}

void set_loads(const Problem& problem, bool may_be_flat, TileMmaLaunch& launch) {
  const ActivationStrides& in = problem.input_stride;
  const int most = 16 / static_cast<int>(element_size(problem.dtype));
  launch.flat_rows = false;
  if (launch.input_channels_last) {
    // Neighbours along neither dimension side by side: one at a time.
    launch.load_vector = in.c == 1 ? common_power_of_two(most, in.n, in.h, in.w, problem.cin_per_group) : 1;
    return;
  }
  launch.load_vector = common_power_of_two(most, in.n, in.c, in.h, problem.w.input);
  const bool neighbours = may_be_flat && launch.taps_w.inputs == 1 && in.h == problem.w.input &&
                          launch.cols == problem.w.input && launch.grid_w == problem.w.input &&
                          launch.taps_w.least_offset == 0 && launch.taps_w.span == 0 &&
                          launch.taps_h.least_offset == 0;
  const int64_t image = problem.h.input * problem.w.input;
  launch.flat_rows = neighbours && image < kMaxCoordinate && launch.rows > 1;
  if (launch.flat_rows) {
    launch.load_vector = common_power_of_two(most, in.n, in.c, image, int64_t{launch.rows} * launch.cols);
  }
}

bool phases_agree(const AxisTaps& taps) {
  if (taps.stride % taps.set_size != 0) return false;
  const uint32_t all = taps.set_size == 32 ? ~0u : (1u << taps.set_size) - 1;
  return std::all_of(taps.phases, taps.phases + taps.begin[taps.sets],
                     [all](uint32_t p) { return p == all; });
}

namespace {

struct Search {
  const Problem& problem;
  const DeviceLimits& device;
  const TileMmaVisitor& visit;
  int64_t size = element_size(problem.dtype);
  int parts = operand_parts(problem);

  double all_offsets = 0;  // summed over the phase sets

  // Lanes of a warp that share a line of `pieces` pieces.
  static double lanes(double pieces) {
    return static_cast<double>(std::min<int64_t>(32, next_power_of_two(static_cast<int64_t>(pieces))));
  }

  // Elements that the epilogue stores at once.
  double store_vector(const TileMmaLaunch& launch, const TileMmaShared& shared) const {
    if (!problem.output_channels_last && launch.taps_w.set_size != launch.taps_w.stride) return 1;
    const LineShape lines{launch.couts(), launch.taps_w.set_size};
    return static_cast<double>(aligned_store_bytes(problem, launch, shared, lines)) / launch.element_size;
  }

  // Segments of a tile's pixels, each in one row of the grid and one warp: the epilogue stores them one after
  // the other.
  static double segments(const TileMmaLaunch& launch, const TileMmaConfig& config) {
    const int pixels = launch.images * launch.rows * launch.cols;
    const int warps = static_cast<int>(ceil_div(pixels, config.warp_pixels()));
    return launch.images * launch.rows + warps - 1 -
           (pixels - 1) / std::lcm(launch.cols, config.warp_pixels());
  }

  // Cycles of a launch: counts of what the loops of tile_mma, pack_fragments and add_splits do, with weights
  // fitted to some 8,000 timed launches of the benchmark cases on an H200 (the choice then takes 1.02 times
  // the best candidate's time on average). Only the order of the candidates matters.
  double estimate(const TileMmaLaunch& launch, const TileMmaConfig& config,
                  const TileMmaShared& shared) const {
    // Of a piece of work. `busy` is what the thread blocks of an SM take from each other, `chain` what a warp
    // does one after the other.
    const double row_tiles = static_cast<double>(launch.row_tiles()) / static_cast<double>(launch.tiles_m);
    const double rounds = static_cast<double>(
        ceil_div(std::min(launch.row_tiles_per_block, launch.row_tiles()), config.warps_m));
    const double steps = static_cast<double>(launch.channel_steps) / launch.splits;
    const double offsets = all_offsets / launch.phase_sets();
    const double pixels = static_cast<double>(launch.images) * launch.rows * launch.cols;
    const double warps = std::ceil(pixels / config.warp_pixels());  // side by side, with pixels
    // A warp waits for its A fragments; B fragments come at the bandwidth of shared memory, which all warps
    // share. The products grow with both and need no term.
    const double products = parts == 1 ? 1 : 3;  // of a term
    const double b_fragments = products * row_tiles * offsets * steps * warps * config.blocks_n / 2;
    double busy = 4.7 * b_fragments;
    double chain =
        rounds * (offsets * (66 * products * steps * config.blocks_m + 137 * launch.chunks) + 1560);

    const double turns = launch.chunks > 1 ? rounds * launch.chunks : 1;
    const double channels = static_cast<double>(launch.step_channels()) * launch.chunk_steps;
    const double bytes = static_cast<double>(size);
    const double load_bytes = bytes * launch.load_vector;
    double copies, sectors;  // instructions of warps, and pieces of 32 bytes that they touch
    if (launch.input_channels_last) {
      const double rows = static_cast<double>(launch.images) * shared.input_rows;
      const double pieces = channels / launch.load_vector;
      copies = rows * std::ceil(pieces / 32) * std::ceil(shared.input_cols * lanes(pieces) / 32);
      const double pixel_bytes = bytes * std::min(channels, static_cast<double>(problem.cin_per_group));
      sectors = rows * shared.input_cols * std::max(1.0, pixel_bytes / 32);
    } else {
      const double rows = static_cast<double>(launch.images) * (launch.flat_rows ? 1 : shared.input_rows);
      const double row = launch.flat_rows ? shared.image_pixels : shared.input_cols;
      const double vectors = row / launch.load_vector;
      copies = rows * std::ceil(vectors / 32) * std::ceil(channels * lanes(vectors) / 32);
      sectors = rows * channels * (bytes * row / 32 + 1 - load_bytes / 32);
    }
    busy += turns * (10 * copies + 0.98 * sectors);
    chain += 1510 * turns;

    const double couts = static_cast<double>(problem.cout_per_group) / launch.cout_tiles;
    const double vector = store_vector(launch, shared), runs = segments(launch, config);
    const double part = pixels / runs;  // pixels of a segment
    double lines, stores;               // of a row tile: segments of phases, and instructions of warps
    if (problem.output_channels_last) {
      const double phases =
          static_cast<double>(launch.taps_h.stride) * launch.taps_w.stride / launch.phase_sets();
      lines = runs * phases;
      stores =
          lines * std::ceil(couts / (32 * vector)) * std::ceil(part * lanes(launch.couts() / vector) / 32);
    } else {
      const double width = launch.taps_w.set_size / vector;  // of a point
      const double row_lanes = lanes(launch.cols * width);
      lines = runs * launch.taps_h.set_size;
      stores = lines * std::ceil(part * width / row_lanes) * std::ceil(couts * row_lanes / 32);
    }
    busy += 5.2 * row_tiles * stores;
    if (size == 4 && !problem.output_channels_last && launch.taps_w.set_size < launch.taps_w.stride) {
      // Sectors of the output are written in parts, by several row tiles.
      busy += 0.75 * static_cast<double>(problem.output_elements()) / static_cast<double>(launch.works());
    }
    const double sums = config.blocks_m * config.blocks_n;
    chain += rounds * ((problem.output_channels_last ? 182 : 86) * sums + 565 * lines / warps);

    const double resident = std::max(1.0, static_cast<double>(launch.grid) / device.sm_count);
    const double works = static_cast<double>(ceil_div(launch.works(), launch.grid));  // of a thread block

    // The weight is packed by two thread blocks on an SM at a time, each for one step of a tile of channels.
    const double pack_blocks = static_cast<double>(launch.groups) * launch.cout_tiles * launch.channel_steps;
    const double pack_fragments =
        launch.phase_sets() * std::ceil(offsets * config.blocks_m / 8);  // of a warp, one after the other
    const double pack = 5200 * std::max(1.0, pack_blocks / (2.0 * device.sm_count)) * pack_fragments +
                        0.0038 * static_cast<double>(launch.packed_bytes);
    const double add = 0.00028 * static_cast<double>(launch.workspace_bytes - launch.packed_bytes);
    // The constant, the time of two launches, matters beside the estimate of tile_wgmma.
    return (parts == 1 ? 1 : 1.25) * works * (resident * busy + chain) + pack + add + 2500;
  }

  void consider(TileMmaLaunch launch) {
    const TileMmaConfig& config = kTileMmaConfigs[launch.config];
    // A loose bound in 64 bits first, so that the exact sizes below cannot wrap.
    const int64_t plane = int64_t{launch.images} * (launch.rows + int64_t{launch.taps_h.span}) *
                          (launch.cols + int64_t{launch.taps_w.span});
    if (plane * 32 * parts * launch.chunk_steps > device.shared_bytes_per_block) return;
    launch.shared_limit = static_cast<size_t>(device.shared_bytes_per_block);
    // Factors below 2^31 each; in floating point the products cannot wrap.
    const double pixel_tiles = static_cast<double>(launch.tiles_w) * launch.tiles_h * launch.tiles_n;
    const double blocks = pixel_tiles * launch.tiles_m * launch.splits * launch.groups;
    if (blocks > static_cast<double>(kMaxGrid)) return;
    const int64_t steps = int64_t{launch.splits} * launch.chunks * launch.chunk_steps;
    const double fragments =
        (static_cast<double>(launch.groups) * launch.row_tiles() * steps * launch.max_offsets + 1) * parts *
        config.blocks_m * 32;
    if (fragments > static_cast<double>(kMaxGrid) * 16) return;
    launch.packed_bytes = static_cast<size_t>(fragments) * 16;
    launch.workspace_bytes = launch.packed_bytes;
    if (launch.splits > 1) {
      const double sums =
          pixel_tiles * launch.groups * launch.row_tiles() * config.rows() * config.pixels() * launch.splits;
      if (sums > static_cast<double>(kMaxGrid)) return;
      launch.workspace_bytes += static_cast<size_t>(sums) * 4;
    }
    TileMmaShared shared;
    const auto fit = [&] {
      shared = tile_mma_shared(launch, config, problem.output_channels_last);
      const int64_t bytes = static_cast<int64_t>(shared.bytes);
      const int64_t resident =
          std::min<int64_t>(device.shared_bytes_per_sm / (bytes + kReservedSharedBytes), config.min_blocks);
      launch.shared_bytes = shared.bytes;
      launch.grid = std::min(launch.works(), std::max<int64_t>(1, resident) * device.sm_count);
      return bytes <= device.shared_bytes_per_block;
    };
    launch.prefetches = false;
    bool fits = fit();
    if (launch.chunks > 1 || launch.grid < launch.works()) {
      launch.prefetches = true;
      fits = fit();
    }
    if (!fits) return;
    visit(launch, estimate(launch, config, shared));
  }

  void consider_channels(TileMmaLaunch launch) {
    const int steps = launch.channel_steps;
    for (int splits = 1; splits <= 16 && splits <= steps; splits *= 2) {
      launch.splits = splits;
      const int per_split = static_cast<int>(ceil_div(steps, splits));
      for (int chunk = per_split;; chunk = static_cast<int>(next_power_of_two(chunk) / 2)) {
        if (chunk == per_split || chunk <= 8) {
          launch.chunk_steps = chunk;
          launch.chunks = static_cast<int>(ceil_div(per_split, chunk));
          consider(launch);
        }
        if (chunk <= 1) break;
      }
      if (launch.tiles_m * launch.tiles_w * launch.tiles_h * launch.tiles_n * problem.groups >=
          2 * device.sm_count)
        break;
    }
  }

  void consider_rows(TileMmaLaunch launch) {
    const TileMmaConfig& config = kTileMmaConfigs[launch.config];
    const int row_tiles = launch.row_tiles();
    int last = 0;
    for (int shares = 1; shares <= 64; shares *= 2) {
      const int per_block =
          static_cast<int>(ceil_div(ceil_div(row_tiles, shares), config.warps_m) * config.warps_m);
      if (per_block == last) break;
      last = per_block;
      launch.row_tiles_per_block = per_block;
      set_tiles(problem, launch);
      consider_channels(launch);
    }
  }

  void consider_tiles(TileMmaLaunch launch) {
    const TileMmaConfig& config = kTileMmaConfigs[launch.config];
    all_offsets = sum_offsets(launch);
    int last_cols = 0;
    for (int limit = config.pixels(); limit >= 1; limit /= 2) {
      // Equal tiles: the same number of them, each as narrow as that allows, in whole vectors where they fit.
      int cols = static_cast<int>(ceil_div(launch.grid_w, ceil_div(launch.grid_w, limit)));
      if (cols != launch.grid_w && ceil_div(cols, 8) * 8 <= limit)
        cols = static_cast<int>(ceil_div(cols, 8) * 8);
      if (cols == last_cols) continue;
      last_cols = cols;
      const int row_limit = static_cast<int>(std::min<int64_t>(launch.grid_h, config.pixels() / cols));
      launch.cols = cols;
      launch.rows = static_cast<int>(ceil_div(launch.grid_h, ceil_div(launch.grid_h, row_limit)));
      launch.images =
          static_cast<int>(std::min<int64_t>(problem.batch, config.pixels() / (launch.rows * cols)));
      set_loads(problem, true, launch);
      consider_rows(launch);
    }
  }

  void consider_phases(TileMmaLaunch launch, int couts, int set_h, int set_w) {
    for (const Crop crop : {Crop::kNone, Crop::kPadding}) {
      if (!is_distinct(crop, problem)) break;
      if (!set_taps(problem, crop, set_h, set_w, launch)) return;
      if (couts < 16 && !(phases_agree(launch.taps_h) && phases_agree(launch.taps_w))) continue;
      launch.log2_couts = 0;
      while (1 << launch.log2_couts < couts) ++launch.log2_couts;
      launch.cout_tiles = static_cast<int>(ceil_div(problem.cout_per_group, couts));
      consider_tiles(launch);
    }
  }

  void run() {
    TileMmaLaunch launch;
    launch.element_size = static_cast<int>(size);
    launch.parts = parts;
    launch.channel_steps = static_cast<int>(ceil_div(problem.cin_per_group, launch.step_channels()));
    launch.input_channels_last = reads_channels_last(problem);
    const int stride_h = static_cast<int>(problem.h.stride), stride_w = static_cast<int>(problem.w.stride);
    const int needed = static_cast<int>(std::min<int64_t>(128, next_power_of_two(problem.cout_per_group)));
    for (int index = 0; index < kTileMmaConfigCount; ++index) {
      const TileMmaConfig& config = kTileMmaConfigs[index];
      if (size == 4 && !config.takes_float32()) continue;
      launch.config = index;
      launch.blocks_m = config.blocks_m;
      const int rows = config.rows();
      // Output channels of a row tile, and as many phases as then fit: all along W before any along H.
      for (int couts = needed; couts >= 1; couts /= 2) {
        if (couts > rows) continue;
        if (couts < needed && couts < 16) break;  // more than one tile of output channels: in whole blocks
        const int slots = rows / couts;
        const int set_w = std::min({stride_w, slots, kMaxSetPhases});
        if (!problem.output_channels_last && set_w < stride_w && couts > 16 && slots < config.blocks_m)
          continue;
        const int set_h = set_w == stride_w ? std::min({stride_h, slots / set_w, kMaxSetPhases}) : 1;
        consider_phases(launch, couts, set_h, set_w);
        if (couts < 16 && slots > 1) consider_phases(launch, 16, 1, std::min(stride_w, config.blocks_m));
      }
    }
  }
};

}  // namespace

const char* tensor_core_obstacle(const Problem& p, const DeviceLimits& device) {
  if (p.dtype == DType::kFloat64) return "it has no float64 path";
  if (device.compute_capability < 80) return "it needs compute capability 8.0";
  for (const Axis* axis : {&p.h, &p.w}) {
    if (axis->kernel > kMaxAxisTaps) return "its tables hold 64 taps along an axis";
    if (axis->stride > kMaxAxisTaps) return "its tables hold 64 phases along an axis";
    if (!fits_32_bits(*axis)) return "its coordinates have 32 bits";
  }
  if (p.batch >= kMaxCoordinate || p.cin() >= kMaxCoordinate || p.cout() >= kMaxCoordinate) {
    return "its coordinates have 32 bits";
  }
  return nullptr;
}

const char* tile_mma_obstacle(const Problem& p, const DeviceLimits& device) {
  const char* const obstacle = tensor_core_obstacle(p, device);
  if (obstacle != nullptr) return obstacle;
  return p.h.kernel * p.w.kernel > kTileMmaMaxTaps ? "the filter has more taps than its table holds"
                                                   : nullptr;
}

void visit_tile_mma(const Problem& problem, const DeviceLimits& device, const TileMmaVisitor& visit) {
  Search{problem, device, visit}.run();
}

}  // namespace convt
