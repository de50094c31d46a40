// Which launches of scatter_gemm can compute a problem, and what each should cost.

#include <algorithm>
#include <cmath>

#include "convt/plan.h"
#include "plan_common.h"

namespace convt {
namespace {

constexpr int64_t kPiece = 16;  // bytes that are copied at once

int64_t channel_steps(const Problem& problem) {
  return ceil_div(problem.cin_per_group * element_size(problem.dtype), 32);
}

// Places along an axis, counted from the first that has outputs: input pixels, and pixels behind the last.
struct Places {
  int64_t first, count;
};

Places places_of(const Axis& axis, int64_t multiple) {
  const int64_t first = axis.padding / axis.stride / multiple * multiple;
  return {first, ceil_div(axis.output + axis.padding, axis.stride) - first};
}

struct Search {
  const Problem& problem;
  const DeviceLimits& device;
  const ScatterVisitor& visit;
  const Places rows = places_of(problem.h, 1), cols = places_of(problem.w, kRowVector);
  const int64_t size = element_size(problem.dtype);

  // Thread blocks of an SM: by registers two, unless a warp holds many channels, or operands are split.
  int64_t resident(const ScatterLaunch& t) const {
    const int64_t by_registers = (t.parts == 1 && t.steps <= 4 ? 2 : 1) * kScatterMaxWarps / t.warps();
    const int64_t by_shared =
        device.shared_bytes_per_sm / (static_cast<int64_t>(t.shared_bytes) + kReservedSharedBytes);
    return std::clamp<int64_t>(by_shared, 1, by_registers);
  }

  // Counts of what the kernel's loops do, with weights that agree with 120 timed launches of two layers on an
  // H100.
  double cycles(const ScatterLaunch& t) const {
    const double sms = device.sm_count, warps = t.team_warps;
    // Instructions of a warp for a slice.
    const double kernel_w = static_cast<double>(problem.w.kernel);
    const double products = 5.0 * t.steps * (t.parts == 2 ? 3 : 1);
    const double splits = t.parts == 2 ? 45.0 * t.steps * (t.pairs ? 0.5 : 1) : 0;
    const double scatter = t.pairs ? 40 : 80;
    const double fill = 16.0 * t.pitch / 512 / warps * 6 + 40;
    const double with_taps = static_cast<double>(problem.h.kernel) / static_cast<double>(problem.h.stride);
    const double of_slice = 130 + 100 / warps + (t.fills ? 1 : 1 - with_taps) * fill +
                            with_taps * kernel_w * (products + splits + scatter);
    const double slices =
        static_cast<double>(t.items) * static_cast<double>(problem.h.stride) *
        std::ceil(static_cast<double>(std::min<int64_t>(t.couts, problem.cout_per_group)) / kScatterCouts);
    const double resident_teams = static_cast<double>(t.shares) * t.teams;
    const double rounds = std::ceil(static_cast<double>(t.items) / resident_teams) * resident_teams /
                          static_cast<double>(t.items);
    const double blocks_of_sm =
        std::min(static_cast<double>(resident(t)), std::ceil(static_cast<double>(t.blocks()) / sms));
    const double issue_rate = 0.15 * blocks_of_sm * t.warps();
    const double used = std::min(1.0, static_cast<double>(t.blocks()) / (sms * blocks_of_sm));
    const double issue = slices * rounds * warps * of_slice * static_cast<double>(t.cout_tiles * t.groups) /
                         (issue_rate * sms * used);
    const double input = static_cast<double>(size) * static_cast<double>(problem.batch) *
                         static_cast<double>(problem.h.input * problem.w.input) *
                         static_cast<double>(problem.cin());
    const double output = static_cast<double>(size) * static_cast<double>(problem.output_elements());
    const double memory = 0.0006 * (input + output);
    // Copies of rows, and a team's wait for the input of an item, once for each tile of output channels.
    const double tiles = static_cast<double>(t.cout_tiles * t.groups);
    const double copies = 6 * kScatterCouts * slices * tiles / (sms * used);
    const double wait = (1000 + 250 * t.steps) * static_cast<double>(t.items) * rounds * tiles /
                        (sms * used * blocks_of_sm * t.teams);
    return 7000 + std::max(issue, memory) + 0.2 * std::min(issue, memory) + copies + wait;
  }

  void consider(ScatterLaunch launch) const {
    const ScatterShared shared = scatter_shared(launch, problem.h.kernel * problem.w.kernel);
    if (shared.bytes > static_cast<size_t>(device.shared_bytes_per_block)) return;
    launch.shared_bytes = shared.bytes;
    launch.shared_limit = static_cast<size_t>(device.shared_bytes_per_block);
    const int64_t tiles = launch.cout_tiles * launch.groups;
    const int64_t shares = std::max<int64_t>(resident(launch) * device.sm_count / tiles, 1);
    launch.shares = static_cast<int>(std::min(shares, ceil_div(launch.items, launch.teams)));
    if (launch.blocks() > kMaxGrid) return;
    visit(launch, cycles(launch));
  }

  void consider_couts(ScatterLaunch launch) const {
    const int64_t blocks = ceil_div(problem.cout_per_group, kScatterCouts);
    int64_t last = 0;
    for (int64_t tiles = 1; last != 1; tiles *= 2) {
      const int64_t of_tile = ceil_div(blocks, tiles);
      if (of_tile == last) continue;
      last = of_tile;
      launch.couts = static_cast<int>(of_tile) * kScatterCouts;
      launch.cout_tiles = ceil_div(blocks, of_tile);
      consider(launch);
    }
  }

  void run() const {
    ScatterLaunch launch;
    launch.element_size = static_cast<int>(size);
    launch.parts = operand_parts(problem);
    const int64_t steps = channel_steps(problem);
    for (const int compiled : kScatterSteps) {
      launch.steps = compiled;
      if (compiled >= steps) break;
    }
    launch.pairs = problem.w.kernel == 2 && problem.w.stride == 2;
    launch.first_row = static_cast<int>(rows.first);
    launch.first_col = static_cast<int>(cols.first);
    launch.rows = rows.count;
    launch.groups = problem.groups;
    launch.fills = problem.w.kernel < problem.w.stride || cols.first + cols.count > problem.w.input;
    for (int warps = 1; warps <= kScatterMaxTeamWarps; warps *= 2) {
      launch.team_warps = warps;
      if (warps > 1 && launch.pixels() / 2 >= cols.count) break;
      launch.strips = ceil_div(cols.count, launch.pixels());
      const double items = static_cast<double>(launch.strips) * static_cast<double>(launch.rows) *
                           static_cast<double>(problem.batch);
      if (items >= static_cast<double>(kMaxCoordinate)) continue;
      launch.items = launch.strips * launch.rows * problem.batch;
      // Rows begin up to a piece on, and odd numbers of pieces apart: in other banks.
      const int64_t bytes = launch.pixels() * problem.w.stride * size + kPiece - 1;
      if (bytes >= device.shared_bytes_per_block) continue;
      launch.pitch = static_cast<int>((ceil_div(bytes, kPiece) | 1) * kPiece);
      for (int all_warps = kScatterMaxWarps; all_warps >= warps; all_warps /= 2) {
        launch.teams = all_warps / warps;
        consider_couts(launch);
      }
    }
  }
};

}  // namespace

const char* scatter_gemm_obstacle(const Problem& p, const DeviceLimits& device) {
  const char* const obstacle = tensor_core_obstacle(p, device);
  if (obstacle != nullptr) return obstacle;
  if (p.output_channels_last) return "its output must be NCHW";
  for (const Axis* axis : {&p.h, &p.w}) {
    if (axis->dilation * (axis->kernel - 1) >= axis->stride) return "its filter is longer than the stride";
  }
  if (channel_steps(p) > kScatterMaxSteps) return "a group has too many input channels";
  return row_vectors_obstacle(p);
}

void visit_scatter_gemm(const Problem& problem, const DeviceLimits& device, const ScatterVisitor& visit) {
  Search{problem, device, visit}.run();
}

}  // namespace convt
