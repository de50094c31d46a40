// Which launches of tile_wgmma can compute a problem, and what each should cost.

#include <algorithm>
#include <cmath>

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

  double mean_offsets = 0;  // of the phase sets

  // Cycles of a launch, with weights fitted to some 1,000 timed launches of ten benchmark cases on an H100
  // (the choice then takes 1.08 times the best candidate's time on average, at most 1.27 times).
  double estimate(const TileWgmmaLaunch& launch, const TileWgmmaConfig& config,
                  const TileMmaShared& shared) const {
    // What a multiplying warpgroup does of a work, what the stagers do, and what the tensor cores need.
    const double row_tiles = static_cast<double>(launch.row_tiles()) / static_cast<double>(launch.tiles_m);
    const double units = static_cast<double>(
        ceil_div(std::min(launch.row_tiles_per_block, launch.row_tiles()), config.row_tiles));
    const double rounds = launch.separate_tiles ? units : std::ceil(units / kTileWgmmaGroups);
    const double own_row_tiles =
        launch.separate_tiles ? row_tiles : std::min(row_tiles, rounds * config.row_tiles);
    const double pairs = own_row_tiles * mean_offsets * launch.channel_steps / 2;
    const double slices = own_row_tiles * std::ceil(static_cast<double>(launch.images) *
                                                    shared.image_numbers / kTileWgmmaSlice);
    double slice = 59;
    if (!stores_whole(launch, shared)) {
      slice = launch.phases_w == launch.taps_w.stride || problem.output_channels_last ? 292 : 1503;
    } else if (!problem.output_channels_last) {
      slice = 32;
    }
    const double multiply = pairs * (21 + 255 * config.segments) + 544 * own_row_tiles * launch.chunks +
                            10781 * rounds + slice * slices;
    const double tensor = pairs * config.segments * 128 * kTileWgmmaGroups;

    const double turns = (launch.keeps_planes() ? 1 : rounds) * launch.chunks;
    const double channels = 16.0 * launch.chunk_steps;
    const double images = launch.images;
    const double pixels =
        images * (launch.flat_rows ? shared.image_pixels : shared.input_rows * shared.input_cols);
    const double copies = turns * pixels * channels / launch.load_vector;
    const double stage =
        launch.input_channels_last
            ? 1.43 * copies + 259 * turns
            : 0.91 * copies + 0.037 * turns * images * shared.image_pixels * channels + 259 * turns;

    const double share = launch.separate_tiles ? 1.0 / kTileWgmmaGroups : 1.0;
    const double work =
        std::cbrt(std::pow(multiply * share, 3) + std::pow(tensor * share, 3) + std::pow(stage, 3));
    const double works = static_cast<double>(ceil_div(launch.works(), launch.grid));
    return works * work + 56000 + 0.004 * static_cast<double>(launch.packed_bytes);
  }

  // Whether whole tiles are stored without checks (tile_wgmma.cuh).
  bool stores_whole(const TileWgmmaLaunch& launch, const TileMmaShared& shared) const {
    if (problem.cout_per_group % launch.couts() != 0) return false;
    if (launch.taps_w.stride % launch.taps_w.set_size != 0) return false;
    if (problem.output_channels_last) return problem.cout_per_group % 8 == 0;
    return launch.phases_w == launch.taps_w.stride && launch.cols % 2 == 0 && shared.row_numbers % 2 == 0 &&
           problem.w.output % (2 * launch.phases_w) == 0;
  }

  void consider(TileWgmmaLaunch launch) {
    const TileWgmmaConfig& config = kTileWgmmaConfigs[launch.config];
    launch.chunks = static_cast<int>(ceil_div(ceil_div(problem.cin_per_group, 16), launch.chunk_steps));
    launch.channel_steps = launch.chunks * launch.chunk_steps;
    launch.shared_limit = static_cast<size_t>(device.shared_bytes_per_block);
    // Factors below 2^31 each; in floating point the products cannot wrap.
    const double pixel_tiles = static_cast<double>(launch.tiles_w) * launch.tiles_h * launch.tiles_n;
    const double works = pixel_tiles * launch.tiles_m * launch.groups;
    if (works > static_cast<double>(kMaxGrid)) return;
    const double fragments = static_cast<double>(launch.groups) * launch.row_tiles() * launch.channel_steps *
                             launch.max_offsets * launch.blocks_m * 32;
    if (fragments > static_cast<double>(kMaxGrid)) return;
    launch.packed_bytes = static_cast<size_t>(fragments) * 16;
    launch.workspace_bytes = launch.packed_bytes;
    launch.grid = std::min<int64_t>(static_cast<int64_t>(works), device.sm_count);
    for (const int row_stages : {3, 2}) {
      launch.row_stages = launch.input_channels_last ? 0 : row_stages;
      int stages = 8;
      TileMmaShared shared;
      for (; stages >= 2; --stages) {
        launch.stages = stages;
        shared = tile_wgmma_shared(launch, static_cast<int>(size), problem.output_channels_last);
        if (static_cast<int64_t>(shared.bytes) <= device.shared_bytes_per_block) break;
      }
      if (stages < 2) continue;
      // A warpgroup that passes a tile over must not be a whole turn of the ring ahead of the stagers.
      if (launch.separate_tiles && launch.chunks >= stages) continue;
      launch.shared_bytes = shared.bytes;
      visit(launch, estimate(launch, config, shared));
      if (launch.input_channels_last || stages >= 4) return;
    }
  }

  void consider_rows(TileWgmmaLaunch launch) {
    const TileWgmmaConfig& config = kTileWgmmaConfigs[launch.config];
    const int row_tiles = launch.row_tiles();
    const int steps = static_cast<int>(ceil_div(problem.cin_per_group, 16));
    for (const bool separate : {false, true}) {
      launch.separate_tiles = separate;
      const int unit = config.row_tiles * (separate ? 1 : kTileWgmmaGroups);
      if (!separate && row_tiles <= config.row_tiles) continue;
      int last = 0;
      for (int parts = 1; parts <= 64; parts *= 2) {
        const int per_block = static_cast<int>(ceil_div(ceil_div(row_tiles, parts), unit) * unit);
        if (per_block == last) break;
        last = per_block;
        launch.row_tiles_per_block = per_block;
        set_tiles(problem, launch);
        for (int chunk = 2; chunk <= 8; chunk *= 2) {
          if (chunk > 2 && chunk / 2 >= steps) break;
          launch.chunk_steps = chunk;
          consider(launch);
        }
      }
    }
  }

  // False if the tile has too many pixels.
  bool consider_tile(TileWgmmaLaunch launch, int cols, int rows) {
    const TileWgmmaConfig& config = kTileWgmmaConfigs[launch.config];
    // A loose bound in 64 bits first, so that the exact sizes below cannot wrap.
    if ((rows + int64_t{launch.taps_h.span}) * (cols + int64_t{launch.taps_w.span}) >= kMaxPlane)
      return false;
    launch.cols = cols;
    launch.rows = rows;
    launch.images = 1;
    bool fits = false;
    set_loads(problem, cols % 2 == 0, launch);
    launch.flat_numbers = cols % kTileWgmmaSegment != 0;
    const int widest = launch.load_vector;
    for (int vector = widest; vector >= 1; vector /= 2) {
      launch.load_vector = vector;
      TileMmaShared shared;
      set_staged_input(shared, launch, static_cast<int>(size));
      const int64_t last = int64_t{rows - 1} * shared.row_numbers + cols;  // pixel numbers of an image
      if (last > config.pixels()) continue;
      fits = true;
      launch.images = 1;
      if (rows == launch.grid_h && cols == launch.grid_w) {
        launch.images = static_cast<int>(
            std::min<int64_t>(problem.batch, (config.pixels() - last) / shared.image_numbers + 1));
      }
      set_staged_input(shared, launch, static_cast<int>(size));
      if (shared.plane >= kMaxPlane) continue;
      consider_rows(launch);
      if (!launch.flat_numbers || launch.flat_rows || launch.input_channels_last || vector <= 2) break;
    }
    return fits;
  }

  void consider_tiles(TileWgmmaLaunch launch) {
    const TileWgmmaConfig& config = kTileWgmmaConfigs[launch.config];
    mean_offsets = sum_offsets(launch) / static_cast<double>(launch.phase_sets());
    const int pixels = config.pixels();
    for (int cols = kTileWgmmaSegment; cols <= pixels; cols *= 2) {
      if (cols / 2 >= launch.grid_w) break;
      consider_tile(launch, cols, std::min(launch.grid_h, pixels / cols));
    }
    // Rows that end anywhere, numbered along the planes.
    for (int parts = 1; parts <= 4; ++parts) {
      const int cols = static_cast<int>(ceil_div(launch.grid_w, parts));
      if (cols > pixels || cols % kTileWgmmaSegment == 0) continue;
      int last = 0, fitting = 0;
      for (int rows = std::min(launch.grid_h, pixels / cols + 1); rows >= 1 && fitting < 5; --rows) {
        const int even = static_cast<int>(ceil_div(launch.grid_h, ceil_div(launch.grid_h, rows)));
        if (even == last) continue;
        last = even;
        fitting += consider_tile(launch, cols, even);
      }
      if (cols <= kTileWgmmaSegment) break;
    }
    // The widest rows of whole vectors of which so many fit.
    for (int rows = 2; rows <= std::min(launch.grid_h, 8); ++rows) {
      for (int cols = pixels / rows / 8 * 8; cols >= 16 && cols >= pixels / rows - 32; cols -= 8) {
        if (cols < launch.grid_w && cols % kTileWgmmaSegment != 0 && consider_tile(launch, cols, rows)) break;
      }
    }
  }

  void run() {
    TileWgmmaLaunch launch;
    launch.blocks_m = kTileWgmmaRows / 16;
    launch.input_channels_last = reads_channels_last(problem);
    const int stride_w = static_cast<int>(problem.w.stride);
    const bool last = problem.output_channels_last;
    for (int index = 0; index < kTileWgmmaConfigCount; ++index) {
      launch.config = index;
      for (const bool halves : {false, true}) {
        if (halves && stride_w == 1) break;
        launch.phases_in_halves = halves;
        launch.log2_couts = halves ? 5 : 6;
        launch.cout_tiles = static_cast<int>(ceil_div(problem.cout_per_group, 1 << launch.log2_couts));
        const int set_w = halves ? 2 : 1;
        // Of NCHW, the row tiles of a unit are all phases along W that are stored together.
        const bool joined = !last && kTileWgmmaConfigs[index].row_tiles == 2;
        if (joined && stride_w % (2 * set_w) != 0) continue;
        launch.phases_w = joined ? 2 * set_w : set_w;
        for (const Crop crop : {Crop::kNone, Crop::kPadding}) {
          if (!is_distinct(crop, problem)) break;
          if (!set_taps(problem, crop, 1, set_w, launch)) return;
          consider_tiles(launch);
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
  const int64_t row = p.h.stride * out.h + p.w.stride * out.w * kMaxPlane;
  return row < kMaxCoordinate ? nullptr : "its steps through the output have 32 bits";
}

void visit_tile_wgmma(const Problem& problem, const DeviceLimits& device, const TileWgmmaVisitor& visit) {
  Search{problem, device, visit}.run();
}

}  // namespace convt
