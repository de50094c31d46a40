// Which launches of col2im can compute a problem, and what each should cost.

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "convt/alignment.h"
#include "convt/plan.h"
#include "plan_common.h"

namespace convt {
namespace {

constexpr std::array<int, 4> kWidths = {16, 8, 4, 2};  // bytes of a copy

// The part of one axis that a tile takes.
struct Span {
  int window, outputs, origin;
  int64_t tiles;
};

struct Search {
  const Problem& problem;
  const DeviceLimits& device;
  const Col2imVisitor& visit;
  ActivationStrides in = problem.input_stride;
  WeightStrides weight = problem.weight_stride;

  // Cycles of a launch: counts of what the kernel's loops do, with weights fitted to some 1,400 timed
  // launches of 20 problems on an H100 (the choice then takes 1.07 times the best candidate's time on
  // average).
  double cycles(const Col2imLaunch& t) const {
    const double rounds = std::ceil(static_cast<double>(t.works()) / t.grid);
    const bool by_tap = t.row_tap != 1;
    // A chunk of a tile: the tensor cores, or the copies of a warp.
    const double steps = static_cast<double>(ceil_div(problem.cin_per_group, 16)) / t.chunks;
    const double tensor = 0.58 * t.warpgroups() * t.pixels() * steps;
    const auto copies = [steps](double elements, int bytes) {
      const double each = bytes == 16 ? 17.6 : bytes == 8 ? 15.4 : bytes == 4 ? 10.3 : 24.3;
      return steps * elements / bytes * each;
    };
    const double load = copies(t.warpgroups() * kCol2imRows, t.weight_bytes) * (by_tap ? 1.9 : 1) +
                        copies(t.pixels(), t.input_bytes);
    const double multiply = t.chunks * (std::max(tensor, load) + 15);
    // Writing the products and gathering.
    const double pairs = t.flat ? static_cast<double>(t.pixels()) * t.phases_h.stride * t.phases_w.stride / 2
                                : static_cast<double>(t.images) * t.rows_out * (t.cols_out / 2 + 1);
    const double terms = t.most_terms > 0 ? t.most_terms * t.most_terms : 8;
    const double own_pairs = std::ceil(pairs / (128 * t.warpgroups()));
    const double gather =
        640 + 11.6 * t.pixels() +
        own_pairs * (880 + t.tile_couts() * (40 + 16 * terms) * (t.row_cout % 4 == 0 ? 1 : 2.4));
    const double ahead = t.reuses_stages
                             ? -2300
                             : 0.12 * std::min(gather, multiply * std::min(1.0, 1.0 * t.stages / t.chunks));
    const double pixels = static_cast<double>(problem.batch) * static_cast<double>(problem.h.input) *
                          static_cast<double>(problem.w.input);
    const double memory =
        2 * (pixels * static_cast<double>(problem.cin()) + static_cast<double>(problem.output_elements())) /
        1280;
    return 6100 + std::max(1.16 * rounds * (multiply + gather - ahead), memory);
  }

  void consider(Col2imLaunch launch) const {
    for (const bool reuses_stages : {false, true}) {
      launch.reuses_stages = reuses_stages;
      consider_stages(launch);
    }
  }

  void consider_stages(Col2imLaunch launch) const {
    launch.stages = kCol2imMaxStages;
    Col2imShared shared = col2im_shared(launch);
    while (shared.bytes > static_cast<size_t>(device.shared_bytes_per_block)) {
      if (--launch.stages < 2) return;
      shared = col2im_shared(launch);
    }
    launch.shared_bytes = shared.bytes;
    launch.shared_limit = static_cast<size_t>(device.shared_bytes_per_block);
    const double works = static_cast<double>(launch.cout_tiles) * static_cast<double>(launch.tiles_w) *
                         static_cast<double>(launch.tiles_h) * static_cast<double>(launch.image_tiles) *
                         static_cast<double>(launch.groups);
    if (works >= static_cast<double>(kMaxCoordinate)) return;
    launch.grid = static_cast<int>(std::min<int64_t>(launch.works(), device.sm_count));
    visit(launch, cycles(launch));
  }

  // The most inputs that an output sees along an axis.
  static int most_terms(const Axis& axis, const AxisPhases<int>& phases) {
    return static_cast<int>(std::min<int64_t>(most_taps(phases), ceil_div(axis.input, phases.shift_step)));
  }

  // The widest copy whose elements divide the numbers.
  template <typename... Numbers>
  static int width_of(Numbers... numbers) {
    return 2 * common_power_of_two(kWidths.front() / 2, numbers...);
  }

  // Sets the rows of the weight for launch.couts; false if they do not fit.
  bool set_rows(Col2imLaunch& launch) const {
    const int64_t kernel_w = problem.w.kernel, taps = problem.h.kernel * kernel_w;
    const int64_t rows = launch.couts * taps;
    if (rows > kCol2imRows) return false;
    const bool taps_together = (kernel_w == 1 || weight.kw == 1) &&
                               (problem.h.kernel == 1 || weight.kh == kernel_w) &&
                               (problem.cout_per_group == 1 || weight.cout == taps);
    launch.weight_bytes = 2;
    if (taps_together || weight.cout != 1) {
      launch.row_cout = static_cast<int>(taps);
      launch.row_tap = 1;
      if (!taps_together) return true;
      // Copies begin at an aligned address, up to `before` rows before the first.
      for (const int bytes : kWidths) {
        const int64_t vector = bytes / 2, before = vector - std::gcd(vector, rows);
        if (before + rows <= kCol2imRows && weight.cin % vector == 0) {
          launch.weight_bytes = bytes;
          return true;
        }
      }
      return true;
    }
    launch.row_cout = 1;
    launch.row_tap = launch.couts;
    launch.weight_bytes = width_of(launch.couts, weight.cin, kernel_w == 1 ? 0 : weight.kw,
                                   problem.h.kernel == 1 ? 0 : weight.kh);
    return true;
  }

  // Tiles of successive pixels, where every output sees one input pixel at most, that of its base.
  void consider_flat(Col2imLaunch launch) const {
    const Bases h = bases_of(problem.h), w = bases_of(problem.w);
    const int64_t pixels = problem.h.input * problem.w.input;
    if (largest_shift(launch.phases_h) > 0 || largest_shift(launch.phases_w) > 0) return;
    if (launch.phases_w.stride % 2 != 0) return;  // outputs are gathered in pairs
    if (h.first + h.count > problem.h.input || w.first + w.count > problem.w.input) return;
    if (pixels >= kMaxCoordinate / problem.batch) return;
    launch.flat = true;
    launch.tiles_w = ceil_div(problem.batch * pixels, launch.pixels());
    if (!launch.input_channels_last) {
      const bool together = problem.h.input == 1 || in.h == problem.w.input;
      launch.input_bytes =
          in.w == 1 ? width_of(in.n, in.c, together ? pixels : problem.w.input, together ? 0 : in.h) : 2;
    }
    consider(launch);
  }

  // The tiles along an axis whose windows begin at multiples of `align` and have at most `most` pixels.
  static bool set_span(const Axis& axis, const AxisPhases<int>& phases, int align, int64_t most, Span& span) {
    const Bases bases = bases_of(axis);
    const int reach = largest_shift(phases), stride = phases.stride;
    if (axis.input <= most) {
      span = {static_cast<int>(axis.input), static_cast<int>(axis.output), 0, 1};
      return true;
    }
    // Tiles begin with a base; in whole vectors of bases every window is off by the same number of pixels.
    const int64_t off = (bases.first - reach) % align + ((bases.first - reach) % align < 0 ? align : 0);
    int64_t own = most - reach - off;
    if (own >= align) own -= own % align;
    if (own < 1 || (align > 1 && own % align != 0)) return false;
    const int64_t tiles = ceil_div(bases.count, own);
    own = std::min<int64_t>(own, ceil_div(ceil_div(bases.count, tiles), align) * align);
    const int64_t window = std::min(ceil_div(off + own + reach, align) * align, axis.input);
    span = {static_cast<int>(window), static_cast<int>(own * stride),
            -static_cast<int>(axis.padding % axis.stride), ceil_div(bases.count, own)};
    return true;
  }

  void consider_windows(Col2imLaunch launch, int bytes, int64_t most_w) const {
    const int align = launch.input_channels_last ? 1 : bytes / 2;
    Span h, w;
    if (!set_span(problem.w, launch.phases_w, align, most_w, w)) return;
    if (!set_span(problem.h, launch.phases_h, 1, launch.pixels() / w.window, h)) return;
    if (!launch.input_channels_last && bytes > 2) {
      // Vectors of a row, or of the window's rows one after the other.
      if (in.w != 1 || !divides(align, {in.n, in.c})) return;
      const bool whole = w.window == problem.w.input && h.window == problem.h.input;
      const bool rows_together = problem.h.input == 1 || in.h == problem.w.input;
      const bool by_row = divides(align, {problem.w.input, problem.h.input == 1 ? 0 : in.h});
      const bool by_image = whole && rows_together && divides(align, {problem.h.input * problem.w.input});
      if (!by_row && !by_image) return;
      launch.input_bytes = bytes;
    }
    launch.window_h = h.window;
    launch.window_w = w.window;
    launch.align_w = w.window < problem.w.input ? align : 1;
    launch.rows_out = h.outputs;
    launch.cols_out = w.outputs;
    launch.origin_h = h.origin;
    launch.origin_w = w.origin;
    launch.tiles_h = h.tiles;
    launch.tiles_w = w.tiles;
    launch.images = 1;
    if (h.tiles == 1 && w.tiles == 1) {
      launch.images = static_cast<int>(
          std::min<int64_t>(problem.batch, launch.pixels() / (launch.window_h * launch.window_w)));
    }
    launch.image_tiles = ceil_div(problem.batch, launch.images);
    // Threads number the outputs of a tile.
    if (static_cast<double>(launch.images) * launch.rows_out * launch.cols_out > 1e6) return;
    consider(launch);
  }

  void consider_pixels(Col2imLaunch launch) const {
    consider_flat(launch);
    int last = 0;
    for (int64_t most_w = launch.pixels(); most_w >= 8; most_w /= 2) {
      const int width = static_cast<int>(std::min(most_w, problem.w.input));
      if (width == last) continue;
      last = width;
      if (launch.input_channels_last) {
        consider_windows(launch, launch.input_bytes, most_w);
        continue;
      }
      for (const int bytes : kWidths) consider_windows(launch, bytes, most_w);
    }
  }

  void run() {
    // Distances along a dimension of one do not matter.
    if (problem.batch == 1) in.n = 0;
    if (problem.h.input == 1) in.h = 0;
    if (problem.w.input == 1) in.w = problem.h.input == 1 && in.c == 1 ? 0 : 1;
    Col2imLaunch launch;
    launch.phases_h = narrow_phases(problem.h);
    launch.phases_w = narrow_phases(problem.w);
    launch.groups = problem.groups;
    launch.chunks = static_cast<int>(ceil_div(problem.cin_per_group, kCol2imChunk));
    const int most = std::max(most_terms(problem.h, launch.phases_h), most_terms(problem.w, launch.phases_w));
    launch.most_terms = most <= 2 ? most : 0;
    launch.input_channels_last = in.c == 1 && in.w != 1;
    if (launch.input_channels_last) {
      launch.input_bytes = width_of(in.n, in.h, in.w, problem.groups == 1 ? 0 : problem.cin_per_group);
    }
    for (int config = 0; config < kCol2imConfigCount; ++config) {
      launch.config = config;
      consider_couts(launch);
    }
  }

  void consider_couts(Col2imLaunch launch) const {
    const int64_t most_couts = std::min(kCol2imRows / (problem.h.kernel * problem.w.kernel),
                                        ceil_div(problem.cout_per_group, launch.warpgroups()));
    int64_t last = 0;
    for (const int64_t multiple : {1, 2, 4, 8}) {
      const int64_t couts = most_couts / multiple * multiple;
      if (couts < 1 || couts == last) continue;
      last = couts;
      launch.couts = static_cast<int>(couts);
      if (!set_rows(launch)) continue;
      launch.cout_tiles = ceil_div(problem.cout_per_group, launch.warpgroups() * couts);
      launch.store_couts = 1;
      for (const int vector : {8, 4}) {
        if (!divides(vector, {launch.tile_couts(), problem.cout_per_group})) continue;
        launch.store_couts = vector;
        break;
      }
      consider_pixels(launch);
    }
  }
};

}  // namespace

const char* col2im_obstacle(const Problem& p, const DeviceLimits& device) {
  const char* const obstacle = tensor_core_obstacle(p, device);
  if (obstacle != nullptr) return obstacle;
  if (element_size(p.dtype) != 2) return "it has 16-bit paths only";
  if (!device.has_wgmma) return "it needs compute capability 9.0 and a build for 9.0a";
  if (p.h.kernel * p.w.kernel > kCol2imRows) return "the filter has more taps than a product has rows";
  if (p.cout_per_group >= kMaxCoordinate / kCol2imRows) return "its coordinates have 32 bits";
  return nullptr;
}

void visit_col2im(const Problem& problem, const DeviceLimits& device, const Col2imVisitor& visit) {
  Search{problem, device, visit}.run();
}

}  // namespace convt
