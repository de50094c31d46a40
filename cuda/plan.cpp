#include "convt/plan.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <iterator>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <vector>

#include "plan_common.h"

namespace convt {
namespace {

// Why `tile_simt` cannot compute a problem, or null.
const char* tile_simt_obstacle(const Problem& p) {
  if (p.dtype == DType::kFloat64) return "it has no float64 path";
  // Each factor first: the product of two large sides could wrap.
  if (p.h.kernel > kTileSimtMaxTaps || p.w.kernel > kTileSimtMaxTaps ||
      p.h.kernel * p.w.kernel > kTileSimtMaxTaps) {
    return "the filter has more taps than its table holds";
  }
  if (p.h.stride > kTileSimtMaxStride || p.w.stride > kTileSimtMaxStride) return "its stride is too large";
  if (!fits_32_bits(p.h) || !fits_32_bits(p.w)) return "its coordinates have 32 bits";
  if (p.batch >= kMaxCoordinate || p.cin() >= kMaxCoordinate || p.cout() >= kMaxCoordinate) {
    return "its coordinates have 32 bits";
  }
  return nullptr;
}

struct TileSimtSearch {
  const Problem& problem;
  const DeviceLimits& device;
  TileSimtLaunch best;
  double best_cycles = std::numeric_limits<double>::infinity();

  // Cycles that an SM spends on one block: counts of what the kernel's loops do, with weights fitted to some
  // 7,000 timed launches of the benchmark cases on an H100 (the choice then takes 1.04 times the best
  // candidate's time on average). Only the order of the candidates matters.
  double block_cycles(const TileSimtLaunch& launch, const TileSimtConfig& config,
                      const TileSimtShared& shared) const {
    const double row_share = static_cast<double>(launch.row_phases) / launch.phases_h.stride;
    const double taps = static_cast<double>(launch.phases_h.kernel) * launch.phases_w.kernel * row_share;
    const double vectors = static_cast<double>(ceil_div(problem.cin_per_group, config.channel_vector));
    const double warps = config.threads() / 32;
    // The main loop is bound by shared memory: a warp receives 128 bytes per cycle of its SM, however many
    // lanes read the same word.
    const double loads = config.channel_vector * (config.pixels_per_thread + config.couts_per_thread);
    const double main_loop = 1.08 * warps * taps * vectors * loads;

    const double phases = static_cast<double>(launch.row_phases) * launch.phases_w.stride;
    const double phases_with_taps = std::max(1.0, row_share * phases_reached(launch.phases_h) *
                                                      static_cast<double>(phases_reached(launch.phases_w)));
    const double input_pixels = static_cast<double>(launch.images) * shared.input_rows * shared.input_cols;
    const double input_elements = input_pixels * static_cast<double>(problem.cin_per_group);
    const double load = 0.18 * input_elements * (launch.channel_chunks > 1 ? phases_with_taps : 1);

    const double couts = static_cast<double>(std::min<int64_t>(config.couts(), problem.cout_per_group));
    const double tile_rows = static_cast<double>(launch.images) * launch.rows * launch.row_phases * couts;
    const double row_length = static_cast<double>(launch.cols) * launch.phases_w.stride;
    const double size = static_cast<double>(element_size(problem.dtype));
    const double store = problem.output_channels_last
                             ? 0.087 * tile_rows * row_length
                             : tile_rows * (0.31 * row_length + 7.1 * std::ceil(row_length * size / 128));

    const int taps_per_phase = most_taps(launch.phases_h) * most_taps(launch.phases_w);
    const double steps = phases_with_taps * launch.channel_chunks *
                             static_cast<double>(ceil_div(taps_per_phase, launch.tap_chunk)) +
                         (phases - phases_with_taps);
    constexpr double kBytesPerCycle = 10.8;
    const double bytes = size * (tile_rows * row_length + input_elements);
    return std::max(main_loop + load + store + 770 * steps, bytes / kBytesPerCycle) + 1300;
  }

  void consider(TileSimtLaunch launch) {
    const TileSimtConfig& config = kTileSimtConfigs[launch.config];
    // A loose bound in 64 bits first, so that the exact sizes below cannot wrap.
    const int64_t plane = int64_t{launch.images} * (launch.rows + int64_t{largest_shift(launch.phases_h)}) *
                          (launch.cols + int64_t{largest_shift(launch.phases_w)});
    if (plane * launch.channel_chunk * 4 > device.shared_bytes_per_block) return;
    if (int64_t{launch.cols} * launch.phases_w.stride * 2 > device.shared_bytes_per_block &&
        !problem.output_channels_last) {
      return;
    }
    const TileSimtShared shared = tile_simt_shared(
        launch, config.couts(), static_cast<int>(element_size(problem.dtype)), problem.output_channels_last);
    const int64_t bytes = static_cast<int64_t>(shared.bytes);
    if (bytes > device.shared_bytes_per_block) return;
    launch.packs_weights = config.couts() % 4 == 0;
    if (launch.packs_weights) {
      const int64_t cin = int64_t{launch.channel_chunks} * launch.channel_chunk;
      const int64_t cout = ceil_div(problem.cout_per_group, config.couts()) * config.couts();
      const int64_t taps = int64_t{launch.phases_h.kernel} * launch.phases_w.kernel;
      if (cin * cout >= kMaxCoordinate || problem.groups * taps >= kMaxCoordinate) return;
      launch.packed = {static_cast<int>(taps), static_cast<int>(cin), static_cast<int>(cout)};
      launch.workspace_bytes = sizeof(float) * static_cast<size_t>(problem.groups * taps * cin * cout);
    }
    launch.shared_bytes = shared.bytes;
    launch.shared_limit = static_cast<size_t>(device.shared_bytes_per_block);
    launch.tiles_cout = ceil_div(problem.cout_per_group, config.couts());
    launch.tiles_w = ceil_div(launch.bases_w, launch.cols);
    launch.tiles_h = ceil_div(launch.bases_h, launch.rows);
    launch.tiles_n = ceil_div(problem.batch, launch.images);
    launch.row_phase_splits = ceil_div(launch.phases_h.stride, launch.row_phases);
    launch.groups = problem.groups;
    // Factors below 2^31 each; in floating point the product cannot wrap.
    const double blocks = static_cast<double>(launch.tiles_cout) * launch.tiles_w * launch.tiles_h *
                          launch.tiles_n * launch.row_phase_splits * launch.groups;
    if (blocks > static_cast<double>(kMaxGrid)) return;

    const int64_t resident = std::min<int64_t>(
        std::max<int64_t>(1, device.shared_bytes_per_sm / (bytes + kReservedSharedBytes)), config.min_blocks);
    const int64_t resident_warps = resident * config.threads() / 32;
    // Fewer than about 16 warps do not hide the latency of loads and barriers.
    const double latency = 1.0 + 0.042 * static_cast<double>(std::max<int64_t>(0, 16 - resident_warps));
    // Blocks of the last wave take less than their full time: they have more of the SM.
    const double waves = std::max(1.0, blocks / device.sm_count);
    const double cycles =
        (0.88 * std::ceil(waves) + 0.12 * waves) * latency * block_cycles(launch, config, shared);
    if (cycles < best_cycles) {
      best_cycles = cycles;
      best = launch;
    }
  }

  // All ways to stage the channels and taps for a tile.
  void consider_staging(TileSimtLaunch launch) {
    const TileSimtConfig& config = kTileSimtConfigs[launch.config];
    const int taps = most_taps(launch.phases_h) * most_taps(launch.phases_w);
    const int64_t all_channels =
        std::max<int64_t>(config.channel_vector, next_power_of_two(problem.cin_per_group));
    for (int64_t chunk = config.channel_vector; chunk <= std::min<int64_t>(all_channels, kMaxSummedProducts);
         chunk *= 2) {
      launch.channel_chunk = static_cast<int>(chunk);
      launch.channel_chunks = static_cast<int>(ceil_div(problem.cin_per_group, chunk));
      // A step sums at most kMaxSummedProducts, and its weights stay below 16 KB, so that two blocks fit on
      // an SM of any architecture.
      const int64_t fitting = std::min((16 << 10) / (chunk * config.couts() * 4), kMaxSummedProducts / chunk);
      launch.tap_chunk = static_cast<int>(std::clamp<int64_t>(fitting, 1, taps));
      for (int row_phases : {static_cast<int>(launch.phases_h.stride), 1}) {
        launch.row_phases = row_phases;
        consider(launch);
        if (launch.phases_h.stride == 1) break;
      }
    }
  }

  void run(TileSimtLaunch launch) {
    const bool few_channels = problem.cin_per_group < 4;
    for (int index = 0; index < kTileSimtConfigCount; ++index) {
      const TileSimtConfig& config = kTileSimtConfigs[index];
      if ((config.channel_vector == 1) != few_channels) continue;
      launch.config = index;
      launch.vector_input = problem.input_stride.c == 1 && config.channel_vector == 4;
      int last_cols = 0;
      for (int limit = config.pixels(); limit >= 1; limit /= 2) {
        // Equal tiles: the same number of them, each as narrow as that allows.
        const int cols = static_cast<int>(ceil_div(launch.bases_w, ceil_div(launch.bases_w, limit)));
        if (cols == last_cols) continue;
        last_cols = cols;
        const int row_limit = static_cast<int>(std::min<int64_t>(launch.bases_h, config.pixels() / cols));
        const int rows = static_cast<int>(ceil_div(launch.bases_h, ceil_div(launch.bases_h, row_limit)));
        launch.cols = cols;
        launch.rows = rows;
        launch.images = static_cast<int>(std::min<int64_t>(problem.batch, config.pixels() / (rows * cols)));
        consider_staging(launch);
        if (rows > 1 && launch.images == 1) {
          // A large filter or a small GPU may leave no room for the halo of a full tile.
          launch.rows = static_cast<int>(ceil_div(rows, 2));
          consider_staging(launch);
        }
      }
    }
  }
};

bool plan_tile_simt(const Problem& problem, const DeviceLimits& device, TileSimtLaunch* launch) {
  TileSimtLaunch start;
  start.phases_h = narrow_phases(problem.h);
  start.phases_w = narrow_phases(problem.w);
  const Bases bases_h = bases_of(problem.h), bases_w = bases_of(problem.w);
  start.first_base_h = bases_h.first;
  start.first_base_w = bases_w.first;
  start.bases_h = bases_h.count;
  start.bases_w = bases_w.count;
  TileSimtSearch search{problem, device, {}};
  search.run(start);
  if (search.best_cycles == std::numeric_limits<double>::infinity()) return false;
  *launch = search.best;
  return true;
}

// A kernel's name, and the place of the wanted launch in the order of their estimates.
struct Forced {
  std::string text, name;
  size_t rank = 0;

  explicit Forced(const char* forced) : text(forced == nullptr ? "" : forced), name(text) {
    const size_t colon = text.find(':');
    if (colon == std::string::npos) return;
    name = text.substr(0, colon);
    const std::string digits = text.substr(colon + 1);
    if (digits.empty() || digits.size() > 6 || digits.find_first_not_of("0123456789") != std::string::npos) {
      throw std::invalid_argument("CONVT_KERNEL=" + text +
                                  ": the launch after the colon must be a number below 1000000");
    }
    rank = std::stoul(digits);
  }

  bool is(Kernel kernel) const { return name == kernel_name(kernel); }
};

// A kernel that can be forced, and whether its launches have estimates, by whose order they are numbered.
struct Forcible {
  Kernel kernel;
  bool numbers_launches;
};
constexpr Forcible kForcible[] = {
    {Kernel::kGeneric, false},  {Kernel::kDepthwise, false}, {Kernel::kThin, true},
    {Kernel::kThinSimt, true},  {Kernel::kTileSimt, false},  {Kernel::kTileMma, true},
    {Kernel::kTileWgmma, true}, {Kernel::kCol2im, true},     {Kernel::kImplicitGemm, true},
    {Kernel::kHaloGemm, true},  {Kernel::kPixelGemm, true},  {Kernel::kScatterGemm, true},
    {Kernel::kPhaseGemm, true},
};

// Their names, all or of those that number launches, as a list that ends with " or " or the like.
std::string forcible_names(bool numbered_only, const char* last) {
  std::vector<std::string> names;
  for (const Forcible& forcible : kForcible) {
    if (!numbered_only || forcible.numbers_launches) names.emplace_back(kernel_name(forcible.kernel));
  }
  std::string list = names.front();
  for (size_t i = 1; i < names.size(); ++i) list += (i + 1 < names.size() ? ", " : last) + names[i];
  return list;
}

void check_forced(const Forced& wanted) {
  const Forcible* const found = std::find_if(std::begin(kForcible), std::end(kForcible),
                                             [&](const Forcible& f) { return wanted.is(f.kernel); });
  const bool known = found != std::end(kForcible);
  if (!wanted.name.empty() && !known) {
    throw std::invalid_argument("CONVT_KERNEL must be " + forcible_names(false, " or ") + ", got " +
                                wanted.name);
  }
  if (wanted.text != wanted.name && !(known && found->numbers_launches)) {
    throw std::invalid_argument("CONVT_KERNEL=" + wanted.text + ": only " + forcible_names(true, " and ") +
                                " number their launches");
  }
}

constexpr double kNever = std::numeric_limits<double>::infinity();

// Sets the launch with the least estimate but `forced.rank`, and returns its cycles, or kNever if there is
// none at all. `Visit` calls its argument with every launch and its cycles.
template <typename Launch, typename Visit>
double choose_launch(const Visit& visit, const Forced& forced, Launch* launch) {
  if (forced.rank == 0) {
    double best = kNever;
    visit([&](const Launch& candidate, double cycles) {
      if (cycles >= best) return;
      best = cycles;
      *launch = candidate;
    });
    return best;
  }
  std::vector<std::pair<double, size_t>> order;
  visit([&](const Launch&, double cycles) { order.emplace_back(cycles, order.size()); });
  if (forced.rank >= order.size()) {
    throw std::invalid_argument("CONVT_KERNEL=" + forced.text + ": the problem has " +
                                std::to_string(order.size()) + " launches of " + forced.name);
  }
  std::sort(order.begin(), order.end());
  const auto [cycles, wanted] = order[forced.rank];
  size_t index = 0;
  visit([&, wanted = wanted](const Launch& candidate, double) {
    if (index++ == wanted) *launch = candidate;
  });
  return cycles;
}

// Neighbouring channels of an NHWC tensor lie in different groups when a group has few of them: a block that
// computes one group would then read and write single elements far apart, and threads that are neighbours
// along the channels do better.
bool groups_split_vectors(const Problem& p) {
  return p.output_channels_last && p.groups > 1 && p.cout_per_group < 4;
}

// Half of a channel step, which has 16 channels of 16 bits or 8 of 32. When a group has fewer, the step is
// mostly padding.
int64_t half_channel_step(const Problem& p) { return 16 / element_size(p.dtype); }

bool fills_channel_step(const Problem& p) { return p.cin_per_group >= half_channel_step(p); }

bool fills_tensor_cores(const Problem& p) {
  return fills_channel_step(p) && (p.groups == 1 || p.cout_per_group >= half_channel_step(p));
}

// Where thin may be the best kernel: outputs gather products from shared memory, which many output channels
// of many pixels do not pay for.
bool suits_thin(const Problem& p) {
  constexpr int64_t kFewPixels = 1024;
  return fills_channel_step(p) &&
         (p.cout_per_group <= kThinMostCouts || p.batch * p.h.input * p.w.input <= kFewPixels);
}

// Where pixel_gemm may be the best kernel. Its columns are all outputs of an image and group, so few output
// channels of a group are no obstacle.
bool suits_pixel_gemm(const Problem& p) { return fills_channel_step(p) && p.h.input == 1 && p.w.input == 1; }

// Where phase_gemm may be the best kernel: a group whose products take less than its output does.
bool suits_phase_gemm(const Problem& p) {
  constexpr int64_t kMostChannels = 32;
  return p.cin_per_group <= kMostChannels && p.cout_per_group <= kMostChannels;
}

// Whether `depthwise` does better than the tiles: a group sums too few products for an output to fill them,
// and multiplies an input by too few weights for a register tile of output channels to pay.
bool suits_depthwise(const Problem& p) {
  constexpr int64_t kMostCouts = 8;
  if (p.cin_per_group == 1) return true;
  if (p.groups == 1) return false;
  return groups_split_vectors(p) || (!fills_channel_step(p) && p.cout_per_group <= kMostCouts);
}

// Whether tensor cores do three products of TF32 sooner than the FMA units one of float32: by NVIDIA's
// figures they have 8 times their rate on 8.0 and more on 9.0 and 10.0, but no more than their rate
// on 8.6, 8.9 and 12.0.
bool splits_pay(const DeviceLimits& device) {
  const int major = device.compute_capability / 10;
  return device.compute_capability == 80 || major == 9 || major == 10;
}

// How operands of float32 are multiplied on tensor cores.
template <typename Launch>
std::string describe_precision(const Launch& launch) {
  if (launch.element_size != 4) return "";
  return launch.parts == 1 ? " precision=tf32" : " precision=ieee";
}

}  // namespace

const char* kernel_name(Kernel kernel) {
  switch (kernel) {
    case Kernel::kNone:
      return "none";
    case Kernel::kGeneric:
      return "generic";
    case Kernel::kDepthwise:
      return "depthwise";
    case Kernel::kThin:
      return "thin";
    case Kernel::kThinSimt:
      return "thin_simt";
    case Kernel::kTileSimt:
      return "tile_simt";
    case Kernel::kTileMma:
      return "tile_mma";
    case Kernel::kTileWgmma:
      return "tile_wgmma";
    case Kernel::kCol2im:
      return "col2im";
    case Kernel::kImplicitGemm:
      return "implicit_gemm";
    case Kernel::kHaloGemm:
      return "halo_gemm";
    case Kernel::kPixelGemm:
      return "pixel_gemm";
    case Kernel::kScatterGemm:
      return "scatter_gemm";
    case Kernel::kPhaseGemm:
      return "phase_gemm";
  }
  return "unknown";
}

Plan make_plan(const Problem& problem, const DeviceLimits& device, const char* forced) {
  const Forced wanted(forced);
  check_forced(wanted);
  const std::string& name = wanted.name;
  const auto forces = [&wanted](Kernel kernel) { return wanted.is(kernel); };

  Plan plan;
  if (problem.output_elements() == 0) return plan;
  const char* obstacle = nullptr;
  const char* const no_room = "no tile with its halo fits in shared memory";
  double best = kNever;
  const auto consider = [&](Kernel kernel, bool suits, const auto& find_obstacle, const auto& find_launch,
                            auto* launch) {
    if (!forces(kernel) && !(name.empty() && suits)) return;
    obstacle = find_obstacle(problem, device);
    if (obstacle != nullptr) return;
    using Launch = std::remove_pointer_t<decltype(launch)>;
    const auto visit = [&](const auto& visitor) { find_launch(problem, device, visitor); };
    const double cycles = choose_launch<Launch>(visit, wanted, launch);
    if (cycles < best) {
      best = cycles;
      plan.kernel = kernel;
    }
    obstacle = no_room;
  };
  const bool precise = operand_parts(problem) == 1 || splits_pay(device);
  const bool tiles = precise && fills_tensor_cores(problem);
  consider(Kernel::kThin, precise && suits_thin(problem), tensor_core_obstacle, visit_thin, &plan.thin);
  // Of groups of two or three channels, four warps have not enough to divide.
  consider(Kernel::kThinSimt, !suits_depthwise(problem), thin_simt_obstacle, visit_thin_simt,
           &plan.thin_simt);
  consider(Kernel::kTileMma, tiles, tile_mma_obstacle, visit_tile_mma, &plan.tile_mma);
  consider(Kernel::kTileWgmma, tiles, tile_wgmma_obstacle, visit_tile_wgmma, &plan.tile_wgmma);
  consider(Kernel::kCol2im, tiles, col2im_obstacle, visit_col2im, &plan.col2im);
  consider(Kernel::kImplicitGemm, tiles, implicit_gemm_obstacle, visit_implicit_gemm, &plan.implicit_gemm);
  consider(Kernel::kHaloGemm, tiles, halo_gemm_obstacle, visit_halo_gemm, &plan.halo_gemm);
  consider(Kernel::kPixelGemm, precise && suits_pixel_gemm(problem), pixel_gemm_obstacle, visit_pixel_gemm,
           &plan.pixel_gemm);
  consider(Kernel::kScatterGemm, tiles, scatter_gemm_obstacle, visit_scatter_gemm, &plan.scatter_gemm);
  consider(Kernel::kPhaseGemm, tiles && suits_phase_gemm(problem), phase_gemm_obstacle, visit_phase_gemm,
           &plan.phase_gemm);
  if (plan.kernel != Kernel::kNone) return plan;
  if (forces(Kernel::kDepthwise) || (name.empty() && suits_depthwise(problem))) {
    obstacle = depthwise_obstacle(problem, device);
    if (obstacle == nullptr) {
      plan.depthwise = plan_depthwise(problem, device);
      plan.kernel = Kernel::kDepthwise;
      return plan;
    }
  }
  if (name.empty() || forces(Kernel::kTileSimt)) {
    obstacle = tile_simt_obstacle(problem);
    if (obstacle == nullptr && (!name.empty() || !groups_split_vectors(problem))) {
      if (plan_tile_simt(problem, device, &plan.tile_simt)) {
        plan.kernel = Kernel::kTileSimt;
        return plan;
      }
      obstacle = no_room;
    }
  }
  if (!name.empty() && obstacle != nullptr) {
    throw std::invalid_argument("CONVT_KERNEL=" + name + " cannot compute this problem: " + obstacle);
  }
  plan.kernel = Kernel::kGeneric;
  return plan;
}

std::string describe(const Plan& plan) {
  std::ostringstream line;
  line << kernel_name(plan.kernel);
  if (plan.kernel == Kernel::kDepthwise) {
    const DepthwiseLaunch& t = plan.depthwise;
    const bool by_channel = t.mapping == DepthwiseMapping::kChannels;
    const bool rolling = t.mapping == DepthwiseMapping::kRolling;
    line << " mapping="
         << (by_channel ? "channels"
             : rolling  ? "rolling"
                        : "columns")
         << " vector=" << t.vector << " shares_input=" << t.shares_input << " rows=" << t.rows << "x"
         << t.row_sets << " long=" << t.long_sums;
    if (by_channel) {
      line << " lanes=" << t.lanes << "x" << t.channel_tiles << " items=" << t.items_at_once << "x"
           << t.passes << "x" << t.blocks_an_image << " shared=" << t.shared_bytes;
    } else {
      line << " sets=" << t.sets_per_thread << "x" << t.runs << " channels=" << t.channels_per_thread << "x"
           << t.channel_runs;
      if (rolling) {
        const RollingFilter& filter = kRollingFilters[t.filter];
        line << " filter=" << filter.kernel << "," << filter.stride << "," << filter.phase
             << " loads_vectors=" << t.loads_vectors;
      }
    }
    line << " blocks=" << t.blocks;
  }
  if (plan.kernel == Kernel::kTileSimt) {
    const TileSimtLaunch& t = plan.tile_simt;
    const TileSimtConfig& config = kTileSimtConfigs[t.config];
    line << " couts=" << config.couts() << " pixels=" << config.pixels() << " tile=" << t.images << "x"
         << t.rows << "x" << t.cols << " channels=" << t.channel_chunk << "x" << t.channel_chunks
         << " taps=" << t.tap_chunk << " row_phases=" << t.row_phases << " workspace=" << t.workspace_bytes
         << " threads=" << config.threads() << " shared=" << t.shared_bytes << " blocks=" << t.blocks();
  }
  if (plan.kernel == Kernel::kThin) {
    const ThinLaunch& t = plan.thin;
    line << " rows=" << 16 * t.row_blocks << "x" << t.warps_m << " pixels=" << kThinPixels << "x"
         << t.groups_w << "x" << t.rows << " couts=" << t.couts << "x" << t.cout_tiles
         << " sets=" << t.taps_h.sets << " offsets=" << t.taps_h.begin[t.taps_h.sets]
         << " crop=" << t.taps_h.crop << " tile=" << t.images << "x" << t.segment_rows << "x" << t.cols
         << " walks=" << (t.walks ? t.stages : 0) << " chunks=" << t.chunks << " reads="
         << (t.along_w   ? "w"
             : t.along_c ? "c"
                         : "1")
         << " threads=" << 32 * t.warps() << " shared=" << t.shared_bytes << " blocks=" << t.blocks()
         << describe_precision(t);
  }
  if (plan.kernel == Kernel::kTileMma) {
    const TileMmaLaunch& t = plan.tile_mma;
    const TileMmaConfig& config = kTileMmaConfigs[t.config];
    line << " config=" << t.config << " rows=" << config.rows() << "x" << config.warps_m
         << " pixels=" << config.pixels() << " tile=" << t.images << "x" << t.rows << "x" << t.cols
         << " couts=" << t.couts() << "x" << t.cout_tiles << " phases=" << t.taps_h.set_size << "x"
         << t.taps_w.set_size << " crop=" << t.taps_h.crop << "," << t.taps_w.crop
         << " row_tiles=" << t.row_tiles_per_block << " steps=" << t.chunk_steps << "x" << t.chunks
         << " splits=" << t.splits << " vector=" << t.load_vector << " flat=" << t.flat_rows
         << " workspace=" << t.workspace_bytes << " threads=" << config.threads()
         << " shared=" << t.shared_bytes << " works=" << t.works() << " blocks=" << t.grid
         << describe_precision(t);
  }
  if (plan.kernel == Kernel::kTileWgmma) {
    const TileWgmmaLaunch& t = plan.tile_wgmma;
    const TileWgmmaConfig& config = kTileWgmmaConfigs[t.config];
    const char* const divisions[] = {"tiles", "rows", "pixels"};
    line << " config=" << t.config << " rows=" << kTileWgmmaRows << "x" << config.row_tiles
         << " pixels=" << config.pixels << " tile=" << t.images << "x" << t.rows << "x" << t.cols
         << " couts=" << t.couts() << "x" << t.cout_tiles << " halves=" << t.phases_in_halves
         << " inputs=" << t.taps_w.inputs << " repairs=" << t.repairs << " phases_w=" << t.phases_w
         << " crop=" << t.taps_h.crop << "," << t.taps_w.crop << " row_tiles=" << t.row_tiles_per_block
         << " division=" << divisions[static_cast<int>(t.division)] << " steps=" << t.chunk_steps << "x"
         << t.chunks << " stages=" << t.stages << "+" << t.row_stages << " weight=";
    if (t.keeps_weight) {
      line << "kept";
    } else {
      line << t.weight_steps << "x" << t.weight_stages;
      if (t.cluster > 1) line << "/" << t.cluster;
    }
    line << " vector=" << t.load_vector << " flat=" << t.flat_rows << " workspace=" << t.workspace_bytes
         << " shared=" << t.shared_bytes << " works=" << t.works() << " blocks=" << t.grid
         << describe_precision(t);
  }
  if (plan.kernel == Kernel::kCol2im) {
    const Col2imLaunch& t = plan.col2im;
    line << " pixels=" << t.pixels() << " couts=" << t.couts << "x" << t.warpgroups() << "x" << t.cout_tiles
         << " rows=" << (t.row_tap == 1 ? "by_cout" : "by_tap") << " tile=";
    if (t.flat) {
      line << "flat x" << t.tiles_w;
    } else {
      line << t.images << "x" << t.window_h << "x" << t.window_w << " outputs=" << t.rows_out << "x"
           << t.cols_out;
    }
    line << " terms=" << t.most_terms << " chunks=" << t.chunks << " stages=" << t.stages
         << (t.reuses_stages ? " shared_with_products" : "") << " copies=" << t.weight_bytes << "+"
         << t.input_bytes << (t.input_channels_last ? "c" : "w") << " shared=" << t.shared_bytes
         << " works=" << t.works() << " blocks=" << t.grid;
  }
  if (plan.kernel == Kernel::kHaloGemm) {
    const ImplicitGemmLaunch& t = plan.halo_gemm;
    const ImplicitGemmConfig& sizes = t.sizes();
    line << " rows=" << sizes.rows << " pixels=" << sizes.pixels << " warpgroups=" << sizes.groups()
         << " row_taps=" << sizes.row_taps << " keeps_weight=" << t.keeps_weight << " tile=" << t.images
         << "x" << t.rows << "x" << t.cols << " flat=" << t.flat << " fold=" << t.fold_h << "x" << t.fold_w
         << " phases=" << t.phases() << "x" << t.phases_together << " couts=" << t.cout_tiles
         << " pixel_tiles=" << t.pixel_tiles << " halo=" << t.halo_rows << "x" << t.halo_cols
         << " long_rows=" << (t.halo_pitch > 0) << " lines=" << t.halo_lines << " runs=" << t.halo_runs
         << " cluster=" << t.cluster_rows << "x" << t.cluster_pixels << " chunks=" << t.chunks
         << " stages=" << t.stages << "+" << t.halo_stages << " stores=" << t.store_elements
         << " workspace=" << t.workspace_bytes << " shared=" << t.shared_bytes << " works=" << t.works()
         << " blocks=" << t.grid << describe_precision(t);
  }
  if (plan.kernel == Kernel::kImplicitGemm) {
    const ImplicitGemmLaunch& t = plan.implicit_gemm;
    const ImplicitGemmConfig& sizes = t.sizes();
    line << " rows=" << sizes.rows << " pixels=" << sizes.pixels << " tile=";
    if (t.blocks) {
      line << "blocks";
    } else {
      line << t.images << "x" << t.rows << "x" << t.cols;
    }
    line << " flat=" << t.flat << " fold=" << t.fold_h << "x" << t.fold_w << " phases=" << t.phases() << "x"
         << t.phases_together << " couts=" << t.cout_tiles << " pixel_tiles=" << t.pixel_tiles
         << " columns=" << t.columns() << " cluster=" << t.cluster_rows << "x" << t.cluster_pixels
         << " splits=" << t.splits << " chunks=" << t.chunks << " stages=" << t.stages
         << " alternate=" << sizes.alternates << " turns=" << (t.turns_input ? "input" : "")
         << (t.turns_weight ? "+weight" : "") << " stores=" << t.store_elements << " boxes=" << t.box.count
         << (t.box.halves ? "+halves" : "") << " workspace=" << t.workspace_bytes
         << " shared=" << t.shared_bytes << " works=" << t.works() << " blocks=" << t.grid;
    line << describe_precision(t);
  }
  if (plan.kernel == Kernel::kThinSimt) {
    const ThinSimtLaunch& t = plan.thin_simt;
    const ThinSimtFilter& shape = t.shape();
    line << " filter=" << shape.kernel << "s" << shape.stride << " couts=" << shape.couts << "x" << t.groups
         << " cropped=" << shape.cropped << " bases=" << shape.rows() << "x" << kThinSimtColumns
         << " sets=" << t.row_sets << "x" << t.col_sets << " channels=" << shape.channels()
         << " dense=" << t.dense_weight << " shared=" << t.shared_bytes << " blocks=" << t.blocks();
  }
  if (plan.kernel == Kernel::kScatterGemm) {
    const ScatterLaunch& t = plan.scatter_gemm;
    line << " pixels=" << t.pixels() << "x" << t.strips << " teams=" << t.teams << " couts=" << t.couts << "x"
         << t.cout_tiles << " steps=" << t.steps << " pairs=" << t.pairs << " fills=" << t.fills
         << " items=" << t.items << " shared=" << t.shared_bytes << " blocks=" << t.blocks()
         << describe_precision(t);
  }
  if (plan.kernel == Kernel::kPhaseGemm) {
    const PhaseGemmLaunch& t = plan.phase_gemm;
    line << " places=" << t.rows << "x" << t.cols << " items=" << t.items << " groups=" << t.groups
         << " couts=" << t.channels << "x" << t.cout_tiles << " steps=" << t.steps
         << " load=" << t.load_bytes() << " fills=" << t.fills << " shared=" << t.shared_bytes
         << " blocks=" << t.blocks_of_grid() << describe_precision(t);
  }
  if (plan.kernel == Kernel::kPixelGemm) {
    const PixelGemmLaunch& t = plan.pixel_gemm;
    const PixelGemmConfig& sizes = t.sizes();
    line << " config=" << t.config << " rows=" << sizes.rows() << "x" << t.image_tiles
         << " columns=" << sizes.columns() << "x" << t.column_tiles;
    if (t.taps != 0) line << " taps=" << t.taps << "x" << t.tap_tiles;
    line << " chunks=" << t.chunks << " copies=" << t.weight_bytes << "+" << t.input_bytes
         << " stores=" << t.store_bytes << " threads=" << sizes.threads() << " shared=" << t.shared_bytes
         << " blocks=" << t.blocks() << describe_precision(t);
  }
  return line.str();
}

bool names_arch(const std::string& archs, const std::string& arch) {
  std::istringstream list(archs);
  std::string name;
  while (list >> name) {
    if (name == arch || name == arch + "+PTX") return true;
  }
  return false;
}

bool has_code_for(const std::string& archs, int compute_capability) {
  std::istringstream list(archs);
  std::string arch;
  while (list >> arch) {
    const size_t plus = arch.find('+');
    const bool ptx = plus != std::string::npos;
    std::string number = arch.substr(0, plus);
    const bool exact = !number.empty() && std::isalpha(static_cast<unsigned char>(number.back())) != 0;
    if (exact) number.pop_back();
    const size_t dot = number.find('.');
    const int built = 10 * std::stoi(number.substr(0, dot)) + std::stoi(number.substr(dot + 1));
    if (compute_capability == built) return true;
    if (exact) continue;
    if (ptx && compute_capability > built) return true;
    if (compute_capability / 10 == built / 10 && compute_capability > built) return true;
  }
  return false;
}

}  // namespace convt
