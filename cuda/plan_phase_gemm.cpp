// Which launches of phase_gemm can compute a problem, and what each should cost.

#include <algorithm>
#include <array>
#include <cmath>

#include "convt/plan.h"
#include "plan_common.h"

namespace convt {
namespace {

constexpr int64_t kVectorBytes = 16;
constexpr int64_t kPiece = 16;  // bytes that are copied at once
// Of a group: with more, products take longer than the output does.
constexpr int64_t kMostChunks = 8;

int64_t chunks_of(const Problem& p) {
  return ceil_div(p.cin_per_group * element_size(p.dtype), kVectorBytes);
}

int taps_of(const AxisPhases<int>& axis, int residue) { return phase_of(axis, residue).taps; }

// Steps of all phases: of each, its taps and chunks two at a time.
int64_t count_steps(const AxisPhases<int>& h, const AxisPhases<int>& w, int64_t chunks) {
  int64_t steps = 0;
  for (int row = 0; row < h.stride; ++row) {
    for (int col = 0; col < w.stride; ++col) {
      steps += ceil_div(taps_of(h, row) * taps_of(w, col) * chunks, 2);
    }
  }
  return steps;
}

// The distance of a slice's rows, a multiple of 16 bytes and at least `least`, at which what the lanes of a
// warp store at once lies in different banks: 8 output channels, whose rows are as far from a multiple of 16
// bytes as those of the output, and 4 places two apart.
int slice_pitch(int64_t least, int64_t place_bytes, int64_t channel_bytes) {
  constexpr int kBanks = 32, kWordBytes = 4;
  int64_t best = 0;
  int fewest = 0;
  for (int64_t pitch = ceil_div(least, kPiece) * kPiece; pitch < least + kBanks * kWordBytes;
       pitch += kPiece) {
    int conflicts = 0;
    for (int64_t first = 0; first < kPiece; first += kWordBytes) {
      std::array<int, kBanks> of_bank = {};
      for (int64_t channel = 0; channel < 8; ++channel) {
        for (int64_t place = 0; place < 4; ++place) {
          const int64_t at =
              channel * pitch + (first + channel * channel_bytes) % kPiece + 2 * place * place_bytes;
          ++of_bank[static_cast<size_t>(at / kWordBytes % kBanks)];
        }
      }
      conflicts += *std::max_element(of_bank.begin(), of_bank.end());
    }
    if (best == 0 || conflicts < fewest) {
      best = pitch;
      fewest = conflicts;
    }
  }
  return static_cast<int>(best);
}

struct Search {
  const Problem& problem;
  const DeviceLimits& device;
  const PhaseGemmVisitor& visit;
  const Bases bases_h = bases_of(problem.h), bases_w = bases_of(problem.w);
  const int64_t size = element_size(problem.dtype);

  int64_t resident(const PhaseGemmLaunch& t) const {
    const int64_t by_shared =
        device.shared_bytes_per_sm / (static_cast<int64_t>(t.shared_bytes) + kReservedSharedBytes);
    return std::clamp<int64_t>(by_shared, 1, phase_gemm_resident(t.parts, t.channels_last));
  }

  // Counts of what the kernel's loops do, with weights that agree with 120 timed launches of six layers on an
  // H100.
  double cycles(const PhaseGemmLaunch& t) const {
    const double sms = device.sm_count;
    const double stride_h = t.phases_h.stride, stride_w = t.phases_w.stride;
    // Instructions of a thread block for an item.
    const double rows_with_taps = phases_reached(t.phases_h);
    const double phases = rows_with_taps * phases_reached(t.phases_w);
    const double tasks = static_cast<double>(t.groups) * t.blocks * t.cols / kPhaseGemmPlaces * t.rows;
    const double of_phase = (t.channels_last ? 71 : 5) + (t.parts == 1 ? 0 : 10);
    const double products = tasks * (16.0 * t.steps + of_phase * phases + 50 * rows_with_taps);
    const double slices = t.rows * stride_h, slice_rows = t.channels_last ? 1 : t.channels;
    const double fills =
        t.fills ? t.rows * rows_with_taps * t.channels * t.cols * stride_w / 32 * (t.channels_last ? 12 : 1)
                : 0;
    const PhaseGemmShared shared = phase_gemm_shared(t);
    const double vectors =
        static_cast<double>(shared.input_rows) * shared.input_cols * t.groups * t.chunks / 32;
    const double loads = vectors * t.parts * (t.loads == PhaseGemmLoads::kElements ? 240 : 60);
    const double of_item = products + slices * (150 + 6 * slice_rows) + fills + loads;
    // Rounds of items, of which the last may be nearly empty.
    const double blocks_of_sm =
        std::min(static_cast<double>(resident(t)), std::ceil(static_cast<double>(t.blocks_of_grid()) / sms));
    const double rounds = std::ceil(static_cast<double>(t.items) / t.shares) * t.shares;
    const double used = std::min(1.0, static_cast<double>(t.blocks_of_grid()) / (sms * blocks_of_sm));
    const double items_of_sm = rounds * static_cast<double>(t.tiles) / (sms * used);
    const double warps = kPhaseGemmWarps * blocks_of_sm;
    const double issue = items_of_sm * of_item * (1 + 0.063 * warps) / (0.138 * warps);
    const double input = static_cast<double>(problem.batch * problem.cin()) *
                         static_cast<double>(problem.h.input) * static_cast<double>(problem.w.input);
    const double output = static_cast<double>(problem.output_elements());
    const double memory = 0.00068 * static_cast<double>(size) * (input + output);
    // Every copy of a row has a price of its own; an item's input, and slices at their barriers, are waited
    // for.
    const double copies = 18.5 * slices * slice_rows * items_of_sm;
    const double wait = (1900 + 150 * slices) * items_of_sm / blocks_of_sm;
    return 11900 + std::max(issue, memory) + 0.05 * std::min(issue, memory) + copies + wait;
  }

  void consider(PhaseGemmLaunch launch) const {
    // A loose bound in 64 bits first, so that the exact sizes below cannot wrap.
    const int64_t stride_w = launch.phases_w.stride;
    const int64_t rows = int64_t{launch.rows} + largest_shift(launch.phases_h);
    const int64_t cols = int64_t{launch.cols} + launch.halo_w;
    const int64_t limit = device.shared_bytes_per_block;
    const auto exceeds = [limit](std::initializer_list<int64_t> factors) {
      double product = 1;
      for (const int64_t factor : factors) product *= static_cast<double>(factor);
      return product > static_cast<double>(limit);
    };
    if (exceeds({rows, cols, launch.groups, launch.chunks, kVectorBytes}) ||
        exceeds({launch.cols, stride_w, launch.channels, size}) ||
        exceeds({launch.steps, launch.groups, launch.blocks, 512})) {
      return;
    }
    if (!launch.channels_last) {
      // Rows begin up to a piece on.
      launch.pitch = slice_pitch(launch.cols * stride_w * size + kPiece - 1, stride_w * size,
                                 problem.h.output * problem.w.output % kPiece * size);
    }
    launch.shared_bytes = phase_gemm_shared(launch).bytes;
    launch.shared_limit = static_cast<size_t>(limit);
    if (static_cast<int64_t>(launch.shared_bytes) > limit) return;
    const int64_t shares = std::max<int64_t>(resident(launch) * device.sm_count / launch.tiles, 1);
    launch.shares = static_cast<int>(std::min(shares, launch.items));
    if (launch.blocks_of_grid() > kMaxGrid) return;
    visit(launch, cycles(launch));
  }

  void consider_items(PhaseGemmLaunch launch) const {
    const int places = places_w(launch).count;
    for (int cols = kPhaseGemmPlaces; cols <= 16 * kPhaseGemmPlaces; cols *= 2) {
      if (cols > kPhaseGemmPlaces && cols / 2 >= places) break;
      launch.cols = cols;
      launch.strips = ceil_div(places, cols);
      for (const int rows : {1, 2, 3, 4, 6, 8, 16}) {
        if (rows > 1 && rows / 2 >= bases_h.count) break;
        launch.rows = rows;
        launch.bands = ceil_div(bases_h.count, rows);
        const double items = static_cast<double>(launch.strips) * static_cast<double>(launch.bands) *
                             static_cast<double>(problem.batch);
        if (items >= static_cast<double>(kMaxCoordinate)) continue;
        launch.items = launch.strips * launch.bands * problem.batch;
        consider(launch);
      }
    }
  }

  void set_loads(PhaseGemmLaunch& launch) const {
    ActivationStrides in = problem.input_stride;
    // Distances of a dimension of one do not matter.
    if (problem.batch == 1) in.n = 0;
    if (problem.h.input == 1) in.h = 0;
    const int64_t vector = kVectorBytes / size;
    launch.halo_w = largest_shift(launch.phases_w);
    if (in.c == 1 && divides(vector, {problem.cin_per_group, in.n, in.h, in.w})) {
      launch.loads = PhaseGemmLoads::kVectors;
    } else if (in.w == 1 && divides(kPhaseGemmQuad, {problem.w.input, in.n, in.h, in.c})) {
      launch.loads = PhaseGemmLoads::kQuads;
      launch.halo_w = static_cast<int>(ceil_div(launch.halo_w, kPhaseGemmQuad)) * kPhaseGemmQuad;
    }
  }

  // Places along W, of quads from a whole one on.
  Bases places_w(const PhaseGemmLaunch& launch) const {
    Bases places = bases_w;
    const int before = launch.loads == PhaseGemmLoads::kQuads ? places.first % kPhaseGemmQuad : 0;
    return {places.first - before, places.count + before};
  }

  void run() const {
    PhaseGemmLaunch launch;
    launch.element_size = static_cast<int>(size);
    launch.parts = operand_parts(problem);
    launch.channels_last = problem.output_channels_last;
    launch.phases_h = narrow_phases(problem.h);
    launch.phases_w = narrow_phases(problem.w);
    launch.first_row = bases_h.first;
    launch.chunks = static_cast<int>(chunks_of(problem));
    launch.steps = static_cast<int>(count_steps(launch.phases_h, launch.phases_w, launch.chunks));
    for (int col = 0; col < launch.phases_w.stride; ++col) {
      launch.fills = launch.fills || taps_of(launch.phases_w, col) == 0;
    }
    set_loads(launch);
    launch.first_col = places_w(launch).first;
    const int64_t blocks = ceil_div(problem.cout_per_group, kPhaseGemmCouts);
    // Whole groups. Rows of NHWC are all of them; those of NCHW may be few.
    for (int64_t tiles = 1; tiles <= problem.groups; tiles *= 2) {
      const int64_t groups = ceil_div(problem.groups, tiles);
      if (problem.output_channels_last && tiles > 1) break;
      if (groups * blocks * kPhaseGemmCouts >= kMaxCoordinate) continue;
      launch.groups = static_cast<int>(groups);
      launch.blocks = static_cast<int>(blocks);
      launch.channels = static_cast<int>(groups * problem.cout_per_group);
      launch.tiles = ceil_div(problem.groups, groups);
      consider_items(launch);
    }
    if (problem.output_channels_last) return;
    // Some output channels of a group.
    launch.groups = 1;
    for (int64_t tiles = 2; tiles <= blocks; tiles *= 2) {
      const int64_t of_tile = ceil_div(blocks, tiles);
      launch.blocks = static_cast<int>(of_tile);
      launch.channels = static_cast<int>(of_tile) * kPhaseGemmCouts;
      launch.cout_tiles = ceil_div(blocks, of_tile);
      launch.tiles = problem.groups * launch.cout_tiles;
      consider_items(launch);
    }
  }
};

}  // namespace

const char* phase_gemm_obstacle(const Problem& p, const DeviceLimits& device) {
  const char* const obstacle = tensor_core_obstacle(p, device);
  if (obstacle != nullptr) return obstacle;
  if (p.h.stride * p.w.stride > kPhaseGemmMaxPhases) return "it has too many phases";
  if (chunks_of(p) > kMostChunks) return "a group has too many input channels";
  return nullptr;
}

void visit_phase_gemm(const Problem& problem, const DeviceLimits& device, const PhaseGemmVisitor& visit) {
  Search{problem, device, visit}.run();
}

}  // namespace convt
