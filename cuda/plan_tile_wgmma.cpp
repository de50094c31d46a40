// Which launches of tile_wgmma can compute a problem, and what each should cost.

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "convt/plan.h"
#include "plan_common.h"

namespace convt {
namespace {

// Pixels: a matrix descriptor has 14 bits for the distance of two planes.
constexpr int64_t kMaxPlane = 1 << 14;

struct Search {
  const Problem& problem;
  const DeviceLimits& device;
  const TileWgmmaVisitor& visit;
  int64_t size = element_size(problem.dtype);
  int parts = operand_parts(problem);

  // Of the phase sets: offsets, summed, and the mean of what is waited for and what is started in a chunk of
  // one, two, four and eight channel steps, by halves of groups and by whole ones.
  struct Groups {
    double waits = 0, starts = 0;
  };
  int all_offsets = 0;
  Groups mean_groups[2][4] = {};

  std::map<std::pair<int, int>, bool> fitting_tiles = {};  // those considered, by columns and rows

  // Bytes that a lane stores at once; 0 if output is not stored in aligned pieces (tile_wgmma.cuh).
  int piece_bytes(const TileWgmmaLaunch& launch, const TileWgmmaShared& shared) const {
    const int bytes = aligned_store_bytes(problem, launch, shared, launch.lines());
    return launch.stores_pieces(bytes, problem.output_channels_last) ? bytes : 0;
  }

  // What a multiplying warpgroup needs to store 64 pixels of a row tile, in cycles.
  double slice_cycles(const TileWgmmaLaunch& launch, int bytes) const {
    if (problem.output_channels_last) return bytes > 0 ? 597 : 4480;
    if (bytes > 0) return bytes == 2 ? 1050 : bytes == 4 ? 529 : bytes == 8 ? 200 : 150;
    if (launch.phases_w == launch.taps_w.stride) return 2810;
    // Sectors of the output are written in parts, by several row tiles.
    return size == 2 ? 4600 : 4600.0 * launch.taps_w.stride / launch.phases_w;
  }

  // Cycles of a launch, with weights fitted to some 9,000 timed launches of the benchmark cases on an H100
  // (the choice then takes 1.04 times the best candidate's time on average).
  double estimate(const TileWgmmaLaunch& launch, const TileWgmmaConfig& config,
                  const TileWgmmaShared& shared) const {
    // What a multiplying warpgroup does of a work, what the stagers do, and what the tensor cores need.
    const double row_tiles = static_cast<double>(launch.row_tiles()) / static_cast<double>(launch.tiles_m);
    const double units = static_cast<double>(
        ceil_div(std::min(launch.row_tiles_per_block, launch.row_tiles()), config.row_tiles));
    const bool by_rows = launch.division == TileWgmmaDivision::kRowTiles;
    const bool by_tiles = launch.division == TileWgmmaDivision::kTiles;
    const double rounds = by_rows ? std::ceil(units / kTileWgmmaGroups) : units;
    const double own_row_tiles = by_rows ? std::min(row_tiles, rounds * config.row_tiles) : row_tiles;
    const double mean_offsets = all_offsets / static_cast<double>(launch.phase_sets());
    const double steps = own_row_tiles * mean_offsets * launch.channel_steps;
    int log2_steps = 0;
    while (1 << log2_steps < launch.chunk_steps) ++log2_steps;
    const bool whole_groups = launch.weight_steps >= kTileWgmmaGroupSteps;
    const Groups groups = mean_groups[whole_groups][log2_steps];
    const double tensor = (parts == 1 ? 1 : 3) * steps * config.pixels / 2;
    const double numbers = static_cast<double>(launch.images - 1) * shared.image_numbers +
                           static_cast<double>(launch.rows - 1) * shared.row_numbers + launch.cols;
    const double own_numbers =
        launch.division == TileWgmmaDivision::kPixels ? std::min<double>(numbers, config.pixels) : numbers;
    const double slices = own_row_tiles * std::ceil(own_numbers / kTileWgmmaSlice);
    const double multiply =
        1.34 * tensor +
        own_row_tiles * launch.chunks *
            ((launch.keeps_weight ? 55 : 273) * groups.waits + (parts == 1 ? 185 : 700) * groups.starts) +
        3150 * rounds + 1360 + slice_cycles(launch, piece_bytes(launch, shared)) * slices;

    const double turns = (launch.keeps_planes() ? 1 : rounds) * launch.chunks;
    const double channels = static_cast<double>(launch.step_channels()) * launch.chunk_steps;
    const double cols =
        launch.input_channels_last ? shared.input_cols * launch.taps_w.inputs : shared.staged_cols;
    const double pixels = launch.images * (launch.flat_rows ? shared.image_pixels : shared.input_rows * cols);
    const double staged = turns * pixels * channels;
    // float32 of NHWC is rounded where it lies, after its copies: they are waited for where no buffer is free
    // for the next ones. Split operands of NCHW are, where products read one of two buffers.
    const bool waits = launch.input_channels_last
                           ? size == 4 && (launch.stages == 2 || launch.stages == launch.chunks)
                           : parts > 1 && launch.stages == 2;
    const double stage = launch.input_channels_last && size == 2
                             ? 1.36 * staged / launch.load_vector + 1170 * turns
                         : launch.input_channels_last && parts == 1
                             ? 1.3 * staged / launch.load_vector + (waits ? 4000 : 3000) * turns
                             : 0.818 * staged / launch.load_vector + (waits ? 3000 : 1880) * turns;

    const double bytes = static_cast<double>(size);
    const double weight =
        launch.keeps_weight ? 0
                            : steps * launch.step_bytes() * (by_rows ? kTileWgmmaGroups : 1) / launch.cluster;
    const double output =
        bytes * static_cast<double>(problem.output_elements()) / static_cast<double>(launch.works());
    // Short pieces of output rows end in sectors that are not theirs alone.
    const double ends = problem.output_channels_last ? 0 : 6 / (launch.cols * launch.phases_w * bytes);
    const double traffic = 0.0119 * weight + 0.0953 * bytes * staged + (0.0583 + ends) * output;

    // Two tiles at a time, or one.
    const double tiles = by_tiles ? kTileWgmmaGroups : 1;
    const auto cube = [](double x) { return x * x * x; };
    double cycles = std::cbrt(cube(multiply) + cube(kTileWgmmaGroups * tensor) + cube(tiles * stage) +
                              cube(tiles * traffic));
    if (!by_tiles && rounds > 1 && launch.keeps_planes() && launch.stages < 2 * launch.chunks) {
      // The next tile has to wait for this one's planes.
      cycles += 0.185 * stage * (2 * launch.chunks - launch.stages) / launch.chunks;
    }
    const double turns_of_blocks =
        std::ceil(static_cast<double>(launch.works()) / (static_cast<double>(launch.grid) * tiles));
    const double kept = launch.keeps_weight ? 0.05 * launch.weight_steps * launch.step_bytes() : 0;
    // Measured beside the other divisions, for many taps.
    if (size == 2 && by_rows) cycles *= 1.04;
    // TF32 with few taps to an input.
    if (size == 4 && parts == 1 && mean_offsets <= 4) cycles *= launch.input_channels_last ? 1.15 : 1.03;
    // IEEE in NHWC with two: splitting is not hidden.
    if (parts > 1 && mean_offsets <= 2 && launch.input_channels_last) cycles *= 1.3;
    return turns_of_blocks * cycles + (parts == 1 ? 14500 : 18000) + (launch.cluster > 1 ? 3400 : 0) +
           (launch.repairs ? 3500 : 0) + 0.00121 * static_cast<double>(launch.packed_bytes) + kept;
  }

  void consider(TileWgmmaLaunch launch) {
    launch.chunks = static_cast<int>(
        ceil_div(ceil_div(problem.cin_per_group, launch.step_channels()), launch.chunk_steps));
    launch.channel_steps = launch.chunks * launch.chunk_steps;
    launch.shared_limit = static_cast<size_t>(device.shared_bytes_per_block);
    // Factors below 2^31 each; in floating point the products cannot wrap.
    const double pixel_tiles = static_cast<double>(launch.tiles_w) * launch.tiles_h * launch.tiles_n;
    const double works = pixel_tiles * launch.tiles_m * launch.groups;
    if (works > static_cast<double>(kMaxGrid)) return;
    const double fragments = static_cast<double>(launch.groups) * launch.row_tiles() * launch.channel_steps *
                             launch.max_offsets * parts * launch.blocks_m * 32;
    if (fragments > static_cast<double>(kMaxGrid)) return;
    launch.packed_bytes = static_cast<size_t>(fragments) * 16;
    launch.workspace_bytes = launch.packed_bytes + (launch.repairs ? sizeof(unsigned) : 0);
    launch.grid = std::min<int64_t>(static_cast<int64_t>(works), device.sm_count);

    const int64_t all_steps = int64_t{all_offsets} * launch.cout_tiles * launch.channel_steps;
    if (launch.division != TileWgmmaDivision::kRowTiles && launch.tiles_m == 1 && launch.groups == 1 &&
        all_steps * launch.step_bytes() <= device.shared_bytes_per_block) {
      launch.keeps_weight = true;
      launch.weight_stages = 1;
      launch.weight_steps = static_cast<int>(all_steps);
      if (launch.weight_steps > 0) consider_stages(launch);
    }
    launch.keeps_weight = false;
    launch.weight_steps = kTileWgmmaGroupSteps / 2;
    launch.weight_stages = 4;
    consider_stages(launch);
    launch.weight_steps = kTileWgmmaGroupSteps;
    launch.weight_stages = 3;
    consider_stages(launch);
    // Both blocks of a cluster multiply the same rows, so the tiles of pixels of a group go in pairs.
    if (std::fmod(pixel_tiles, 2) != 0 || device.sm_count % 2 != 0) return;
    launch.cluster = 2;
    launch.grid = launch.grid / 2 * 2;
    consider_stages(launch);
  }

  // As many buffers as fit: rather three of planes than three of rows.
  void consider_stages(TileWgmmaLaunch launch) {
    const TileWgmmaConfig& config = kTileWgmmaConfigs[launch.config];
    TileWgmmaShared shared;
    for (const int row_stages : {3, 2}) {
      launch.row_stages = launch.input_channels_last ? 0 : row_stages;
      for (launch.stages = 8; launch.stages >= 2; --launch.stages) {
        shared = tile_wgmma_shared(launch, problem.output_channels_last);
        if (static_cast<int64_t>(shared.bytes) <= device.shared_bytes_per_block) break;
      }
      if (launch.input_channels_last || launch.stages >= 3) break;
    }
    if (launch.stages < 2) return;
    if (launch.division == TileWgmmaDivision::kTiles) {
      // A warpgroup that passes a tile over must not be a whole turn of the ring ahead of the stagers; and
      // one that keeps its tile for several row tiles would make the other wait.
      const bool several = launch.row_tiles_per_block > config.row_tiles;
      if (launch.stages < (several ? 2 * launch.chunks : launch.chunks + 1)) return;
    }
    launch.shared_bytes = shared.bytes;
    visit(launch, estimate(launch, config, shared));
  }

  void consider_rows(TileWgmmaLaunch launch) {
    const TileWgmmaConfig& config = kTileWgmmaConfigs[launch.config];
    const int row_tiles = launch.row_tiles();
    const int steps = static_cast<int>(ceil_div(problem.cin_per_group, launch.step_channels()));
    const bool by_rows = launch.division == TileWgmmaDivision::kRowTiles;
    const int unit = config.row_tiles * (by_rows ? kTileWgmmaGroups : 1);
    if (by_rows && row_tiles <= config.row_tiles) return;
    int last = 0;
    for (int shares = 1; shares <= 64; shares *= 2) {
      const int per_block = static_cast<int>(ceil_div(ceil_div(row_tiles, shares), unit) * unit);
      if (per_block == last) break;
      last = per_block;
      launch.row_tiles_per_block = per_block;
      set_tiles(problem, launch);
      for (int chunk = 1; chunk <= 8; chunk *= 2) {
        if (chunk > 1 && chunk / 2 >= steps) break;
        launch.chunk_steps = chunk;
        consider(launch);
      }
    }
  }

  // Pixels that a tile may have.
  static int most_pixels(const TileWgmmaLaunch& launch) {
    return kTileWgmmaConfigs[launch.config].pixels *
           (launch.division == TileWgmmaDivision::kPixels ? kTileWgmmaGroups : 1);
  }

  // False if the tile has too many pixels.
  bool consider_tile(TileWgmmaLaunch launch, int cols, int rows) {
    if (const auto known = fitting_tiles.find({cols, rows}); known != fitting_tiles.end())
      return known->second;
    bool& fits = fitting_tiles[{cols, rows}];
    fits = false;
    // A loose bound in 64 bits first, so that the exact sizes below cannot wrap.
    if ((rows + int64_t{launch.taps_h.span}) * (cols + int64_t{launch.taps_w.span}) >= kMaxPlane)
      return false;
    launch.cols = cols;
    launch.rows = rows;
    launch.images = 1;
    set_loads(problem, cols % 2 == 0, launch);
    TileWgmmaShared shared;
    set_staged_input(shared, launch);
    const int pixels = most_pixels(launch);
    const int64_t last = int64_t{rows - 1} * shared.row_numbers + cols;  // pixel numbers of an image
    if (last > pixels) return false;
    fits = true;
    if (rows == launch.grid_h && cols == launch.grid_w) {
      launch.images =
          static_cast<int>(std::min<int64_t>(problem.batch, (pixels - last) / shared.image_numbers + 1));
      set_staged_input(shared, launch);
    }
    if (shared.plane < kMaxPlane) consider_rows(launch);
    return true;
  }

  // Sets launch.max_offsets, and what the estimate needs of the phase sets.
  void count_steps(TileWgmmaLaunch& launch) {
    all_offsets = sum_offsets(launch);
    const double sets = launch.phase_sets();
    for (const bool whole : {false, true}) {
      const int half = kTileWgmmaGroupSteps / 2, group = whole ? kTileWgmmaGroupSteps : half;
      for (int i = 0; i < 4; ++i) {
        Groups& mean = mean_groups[whole][i] = {};
        for (int set_h = 0; set_h < launch.taps_h.sets; ++set_h) {
          for (int set_w = 0; set_w < launch.taps_w.sets; ++set_w) {
            const int steps = launch.taps_h.offsets(set_h) * launch.taps_w.offsets(set_w) << i;
            const int rest = steps % group;
            mean.waits += (steps + group - 1) / group / sets;
            mean.starts += (steps / group + rest / half + rest % half) / sets;
          }
        }
      }
    }
  }

  void consider_tiles(const TileWgmmaLaunch& launch) {
    const int pixels = most_pixels(launch);
    fitting_tiles.clear();
    for (int shares = 1;; shares *= 2) {
      // Equal shares, and whole vectors.
      const int equal = static_cast<int>(ceil_div(launch.grid_w, shares));
      int tried = 0;
      for (int cols : {(equal + 7) / 8 * 8, equal + equal % 2, equal}) {
        if (cols > pixels || cols == tried) continue;
        if (cols > launch.grid_w) cols = launch.grid_w;
        if (cols == tried) continue;
        tried = cols;
        int last = 0, fitting = 0;
        for (int rows = std::min(launch.grid_h, pixels / cols + 1); rows >= 1 && fitting < 2; --rows) {
          const int even = static_cast<int>(ceil_div(launch.grid_h, ceil_div(launch.grid_h, rows)));
          if (even == last) continue;
          last = even;
          fitting += consider_tile(launch, cols, even);
        }
      }
      if (equal <= 16 || (equal <= 64 && launch.grid_h == 1)) break;
    }
    // The widest rows of whole pairs and of whole vectors of which so many fit.
    for (int rows = 1; rows <= std::min(launch.grid_h, 16); ++rows) {
      for (const int step : {8, 2}) {
        for (int cols = pixels / rows / step * step; cols >= 16 && cols >= pixels / rows - 64; cols -= step) {
          if (cols < launch.grid_w && consider_tile(launch, cols, rows)) break;
        }
      }
    }
  }

  void run() {
    TileWgmmaLaunch launch;
    launch.blocks_m = kTileWgmmaRows / 16;
    launch.packs_blocks = true;
    launch.element_size = static_cast<int>(size);
    launch.parts = parts;
    launch.input_channels_last = reads_channels_last(problem);
    const int stride_w = static_cast<int>(problem.w.stride);
    const bool last = problem.output_channels_last;
    // Row tiles of one phase, or the last of them, would have no more than half of their rows.
    const bool half_empty = (problem.cout_per_group - 1) % kTileWgmmaRows < kTileWgmmaRows / 2;
    for (int index = 0; index < kTileWgmmaConfigCount; ++index) {
      if (!kTileWgmmaConfigs[index].takes(parts)) continue;
      launch.config = index;
      for (const bool halves : {false, true}) {
        // Outputs of stride 1 in pairs, which share all but one tap.
        const int inputs = halves && stride_w == 1 ? 2 : 1;
        if (inputs == 2 && !(half_empty && problem.w.dilation == 1 && problem.w.kernel < kMaxAxisTaps)) break;
        launch.phases_in_halves = halves;
        launch.log2_couts = halves ? 5 : 6;
        launch.cout_tiles = static_cast<int>(ceil_div(problem.cout_per_group, 1 << launch.log2_couts));
        const int set_w = halves ? 2 : 1;
        // Of NCHW, the row tiles of a unit are all phases along W that are stored together.
        const bool joined = !last && kTileWgmmaConfigs[index].row_tiles == 2;
        if (joined && inputs * stride_w % (2 * set_w) != 0) continue;
        launch.phases_w = joined ? 2 * set_w : set_w;
        for (const Crop crop : {Crop::kNone, Crop::kPadding}) {
          if (!is_distinct(crop, problem)) break;
          if (inputs == 2 && crop != Crop::kNone) break;
          if (!set_taps(problem, crop, 1, set_w, launch, inputs)) return;
          launch.repairs = halves && !phases_agree(launch.taps_w);
          if (launch.repairs && !(half_empty && inputs * stride_w % 2 == 0)) continue;
          count_steps(launch);
          for (const auto division :
               {TileWgmmaDivision::kTiles, TileWgmmaDivision::kRowTiles, TileWgmmaDivision::kPixels}) {
            launch.division = division;
            consider_tiles(launch);
          }
        }
      }
    }
  }
};

}  // namespace

const char* tile_wgmma_obstacle(const Problem& p, const DeviceLimits& device) {
  const char* const obstacle = tile_mma_obstacle(p, device);
  if (obstacle != nullptr) return obstacle;
  if (!device.has_wgmma) return "it needs compute capability 9.0 and a build for 9.0a";
  // Steps through the output are 32-bit.
  const ActivationStrides out = dense_output_strides(p);
  const int64_t row = p.h.stride * out.h + std::max<int64_t>(p.w.stride, 2) * out.w * kMaxPlane;
  return row < kMaxCoordinate ? nullptr : "its steps through the output have 32 bits";
}

void visit_tile_wgmma(const Problem& problem, const DeviceLimits& device, const TileWgmmaVisitor& visit) {
  Search{problem, device, visit}.run();
}

}  // namespace convt
