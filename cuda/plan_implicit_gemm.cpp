// Which launches of implicit_gemm can compute a problem, and what each should cost.

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>
#include <vector>

#include "convt/alignment.h"
#include "convt/plan.h"
#include "plan_common.h"

namespace convt {
namespace {

// Of the addresses and distances of a tensor map.
constexpr int64_t kAlignment = 16;
constexpr int64_t kMaxPitch = int64_t{1} << 39;
constexpr int64_t kSector = 32;  // bytes
constexpr int kMaxBox = 256;     // elements of a tensor copy along a side
constexpr int kLeastStages = 3;  // where there is a choice
constexpr int kMostKept = 64;    // stages that keep a weight

// Whether a tensor map can have this distance between the neighbours of a dimension, which must not overlap:
// each holds `least` elements of `size` bytes.
bool is_pitch(int64_t size, int64_t side, int64_t stride, int64_t least) {
  return side == 1 || (stride >= least && stride * size % kAlignment == 0 && stride * size < kMaxPitch);
}

// Whether channels lie side by side and the others at distances that maps have.
bool reads_lines(const Problem& problem) {
  const ActivationStrides& in = problem.input_stride;
  const int64_t size = element_size(problem.dtype), cin = problem.cin();
  return is_aligned(problem.input, kAlignment) && (in.c == 1 || cin == 1) &&
         is_pitch(size, problem.w.input, in.w, cin) && is_pitch(size, problem.h.input, in.h, cin) &&
         is_pitch(size, problem.batch, in.n, cin) &&
         is_pitch(size, problem.groups, problem.cin_per_group, problem.cin_per_group);
}

// The same of halos of NCHW: columns lie side by side, and rows or, of `flat` tiles, images in one piece.
bool reads_halos(const Problem& problem, bool flat) {
  const ActivationStrides& in = problem.input_stride;
  const int64_t size = element_size(problem.dtype);
  const int64_t line = flat ? problem.h.input * problem.w.input : problem.w.input;
  return is_aligned(problem.input, kAlignment) && (in.w == 1 || problem.w.input == 1) &&
         (!flat || problem.h.input == 1 || in.h == problem.w.input) &&
         is_pitch(size, problem.cin(), in.c, line) && (flat || is_pitch(size, problem.h.input, in.h, line)) &&
         is_pitch(size, problem.batch, in.n, line);
}

// Whether every output sees the one input that has its place: a filter no larger than the stride.
bool stays_in_place(const Axis& axis, const AxisPhases<int>& phases) {
  return axis.padding == 0 && largest_shift(phases) == 0 && ceil_div(axis.output, axis.stride) == axis.input;
}

bool stays_in_place(const Problem& problem) {
  return stays_in_place(problem.h, narrow_phases(problem.h)) &&
         stays_in_place(problem.w, narrow_phases(problem.w));
}

struct Search {
  const Problem& problem;  // folded
  const DeviceLimits& device;
  const ImplicitGemmVisitor& visit;
  const int fold_h, fold_w;
  const int64_t size = element_size(problem.dtype);
  const int parts = operand_parts(problem);

  bool is_pitch(int64_t side, int64_t stride, int64_t least) const {
    return convt::is_pitch(size, side, stride, least);
  }

  bool reads_lines() const { return parts == 1 && convt::reads_lines(problem); }

  // The same of blocks, whose columns lie side by side.
  bool reads_blocks(bool flat) const {
    const ActivationStrides& in = problem.input_stride;
    const int64_t line = flat ? problem.h.input * problem.w.input : problem.w.input;
    return size == 2 && is_aligned(problem.input, kAlignment) && (in.w == 1 || problem.w.input == 1) &&
           is_pitch(problem.cin(), in.c, line) && (flat || is_pitch(problem.h.input, in.h, line)) &&
           is_pitch(problem.batch, in.n, line);
  }
  bool reads_weight() const {
    const WeightStrides& w = problem.weight_stride;
    return size == 2 && is_aligned(problem.weight, kAlignment) &&
           (w.cout == 1 || problem.cout_per_group == 1) &&
           is_pitch(problem.cin(), w.cin, problem.cout_per_group) &&
           is_pitch(problem.w.kernel, w.kw, problem.cout_per_group) &&
           is_pitch(problem.h.kernel, w.kh, problem.cout_per_group);
  }

  // Cycles of a launch: counts of what the kernel's loops do, with weights fitted to some 1000 timed launches
  // of 17 layers on an H100, those of warpgroups that take turns to 1300 of 20, and those of narrow products
  // and splits to 1900 of 20, some of them of small batches.
  double cycles(const ImplicitGemmLaunch& t) const {
    const ImplicitGemmConfig& sizes = t.sizes();
    const double rounds = std::ceil(static_cast<double>(t.works()) * t.cluster() / t.grid);
    const double kernel_w = static_cast<double>(problem.w.kernel);
    const double chunks = static_cast<double>(ceil_div(t.chunks, t.splits));
    const double all_steps = static_cast<double>(problem.h.kernel) * kernel_w * chunks;
    const double most_steps = static_cast<double>(most_taps(t.phases_h)) * chunks *
                              (t.phases_together == 1 ? most_taps(t.phases_w) : kernel_w);
    // Phases with many taps and with few even out after some rounds.
    const double mean_steps = all_steps / static_cast<double>(t.phases());
    const double steps = rounds < 4 ? most_steps + (rounds - 1) * mean_steps : rounds * mean_steps;
    // Blocks of a cluster wait for each other, which a shared weight makes up for where operands are split
    // and all phases have as many taps, and in TF32 where phases are folded.
    const bool even = problem.h.kernel == most_taps(t.phases_h) * problem.h.stride &&
                      problem.w.kernel == most_taps(t.phases_w) * problem.w.stride;
    const bool folded_pairs = size == 4 && parts == 1 && t.fold() > 1 && t.cluster_pixels > 1;
    const double shared_weight = parts > 1 && even ? t.cluster_pixels : folded_pairs ? 1.1 : 1;
    const double input = static_cast<double>(size) * static_cast<double>(problem.batch) *
                         static_cast<double>(problem.h.input * problem.w.input) *
                         static_cast<double>(problem.cin());
    const double weight = static_cast<double>(size) * static_cast<double>(problem.cin()) *
                          static_cast<double>(problem.cout_per_group) *
                          static_cast<double>(problem.h.kernel) * kernel_w;
    // Of a weight that L2 does not keep, or not for both halves of the device once it has been laid out
    // there, more than what blocks share comes from afar.
    const double kept = t.turns_weight && size == 2 ? 12e6 : 24e6;  // bytes
    const bool rereads = parts == 1 && weight > kept * static_cast<double>(problem.groups);
    const double weight_lines = rereads ? 1.4 * sizes.rows / t.cluster_pixels : sizes.rows / shared_weight;
    // What is shared comes from L2 once, but takes as long to arrive; in 16 bits it gains less where tiles
    // are small, and nothing beside the stores of folded phases.
    const double of_16_bits = t.fold() > 1 ? 1 : sizes.pixels == 128 ? 0.92 : t.blocks ? 0.87 : 0.93;
    const double two_share = parts > 1 ? 0.5 : size == 4 ? 0.82 : of_16_bits;
    const double shared_pixels = t.cluster_rows > 1 ? two_share : 1;
    const double loads =
        static_cast<double>(kImplicitGemmLine * parts) * (weight_lines + shared_pixels * t.lines());
    const bool waits_pay = folded_pairs || (parts > 1 && (even || t.cluster_pixels == 1));
    const double waits = !t.shares_copies() || waits_pay ? 1 : 1.05;
    // Of a step. Split operands are bound by the products, three of each term, and by a ring of two stages.
    double products = size == 2 ? 0.016 : 0.015;
    // Two stages hide less of what the rows take that only neighbouring tiles bring besides, and tiles of few
    // rows have many of them.
    const double halo_h = largest_shift(t.phases_h);
    const double two_stages = 1.12 + 0.5 * std::max(0.0, halo_h / (t.rows + halo_h) - 1.0 / 9);
    if (parts > 1) products = (t.phases_together == 1 ? 0.08 : 0.088) * (t.stages > 2 ? 1 : two_stages);
    const double tensor = products * sizes.rows * t.lines() * waits;
    const double load = parts > 1 ? 0.005 : size == 2 ? 0.0138 : 0.0129;  // of a byte
    // What a step takes at least, to start copies and wait for them; and besides products and copies.
    const double least = (parts > 1 ? 900 + 150 * sizes.rows / 64 : 500 + 50 * sizes.rows / 64);
    const double waits_for_copies = parts == 1 && t.stages < kLeastStages ? 1.6 : 1;
    // Measured of both phases of a small tile of TF32, which take the same lines of the input.
    const bool pairs = size == 4 && parts == 1 && t.phases_together == 2 && sizes.pixels == 128;
    const double step = waits_for_copies * (pairs ? 0.88 : 1) *
                        std::max(tensor + load * loads + (parts > 1 ? 100 : 50), least);
    // One tile and the next; tiles without products hide nothing.
    const auto tapless = [](const AxisPhases<int>& axis) {
      return 1 - static_cast<double>(std::min<int>(axis.kernel, axis.tap_step)) / axis.stride;
    };
    const double empty = 1 - (1 - tapless(t.phases_h)) * (1 - tapless(t.phases_w));
    const double between = parts == 1 ? 1300 + 900 * empty : 2500 * t.phases_together;
    const double bytes = static_cast<double>(size) * sizes.rows * t.lines() * t.phases_together;
    const double output = static_cast<double>(size) * static_cast<double>(problem.output_elements());
    const bool fits_l2 = output < 32e6;
    const int64_t row = problem.w.output * fold_w * size;  // bytes
    double store = parts == 1 ? 0.05 : 0.055;              // of a byte
    if (t.box.count > 0) {
      // Pieces of rows.
      const double run = static_cast<double>(t.box.side * size);
      store = 0.03 + (t.box.whole_rows ? 0 : 4.2 / run + (run < kSector ? 0.3 : 0));
    } else if (t.fold() > 1) {
      // By the bytes of a store, and of a tile's outputs that follow each other in a row.
      const int64_t bytes_of_store = t.store_elements * size, piece = fold_w * t.phases_together * size;
      const bool side_by_side = problem.w.stride == t.phases_together;
      store = bytes_of_store >= 16 ? 0.085 : bytes_of_store >= 8 ? 0.1 : 0.2;
      if (!side_by_side) store = piece >= 16 ? 0.1 : piece >= 8 ? 0.2 : 0.35;
      if (side_by_side && !t.flat && !t.blocks && t.cols * piece < kSector) store = 0.5;
      // Rows that share sectors with rows of another phase.
      if (problem.h.stride > 1 && row % kSector != 0 && !fits_l2) store = std::max(store, 0.2);
    } else if (!problem.output_channels_last) {
      // Rows of sectors, or ones that L2 can put together; rows that share sectors with their neighbours; and
      // words of two outputs that begin wherever the row does.
      if (problem.w.stride != t.phases_together) {
        store = problem.w.stride > 2 ? 0.35 : !fits_l2 ? 0.25 : size == 2 ? 0.1 : 0.14;
      } else {
        store = row % kSector == 0 || fits_l2 ? 0.058 : 0.058 + 0.24 * std::min(1.0, 2.0 * kSector / row);
        if (t.store_elements * size < 4) store = std::max(store, 0.14);
      }
      // Pieces of rows, and what of a sector lies beside them.
      const int64_t run = t.cols * t.phases_together * size;
      const bool whole_sectors = size == 4 && run % kSector == 0 && row % kSector == 0;
      if (!t.flat && !t.blocks && !whole_sectors)
        store *= 1 + 1.5 * std::min(1.0, static_cast<double>(kSector) / static_cast<double>(run));
    }
    const double moved = (1 + parts) / 2.0;  // read once, written for each part
    const bool gathers = t.fold() > 1 && size == 2;
    const double turn = (t.turns_input || t.turns_weight ? 2500 : 0) +
                        (t.turns_input ? 0.0013 * moved * input : 0) +
                        (t.turns_weight ? (gathers ? 0.003 : 0.0015) * moved * weight : 0);
    // Where warpgroups take turns, one multiplies at a time, which reads shared memory more often for it and
    // waits longer for what is not in L2, and one stores.
    const double alone = !sizes.alternates ? 1 : sizes.rows > 64 ? 1.2 : fits_l2 ? 1.1 : 1.35;
    const double multiplies = alone * steps * step;
    const double stores = (sizes.alternates ? 2 : 1) * (between + store * bytes);
    const double all = sizes.alternates ? std::max(multiplies, (multiplies + rounds * stores) / 2) + stores
                                        : multiplies + rounds * stores;
    // Of float32 in NHWC, tiles of short rows are faster where memory bounds all of them, but not of single
    // pixels.
    const double rows_cost =
        size == 4 && problem.output_channels_last ? 1 + 0.0002 * t.cols + 0.05 / t.cols : 1;
    const double memory = 0.00057 * rows_cost * (input + output);
    const double shares = !t.shares_copies() ? 0
                          : folded_pairs     ? 1000
                          : parts == 1       ? 1100 + 400 * rounds
                          : t.fold() == 1    ? 2000 + 500 * rounds
                                             : 1000;
    // A tile's boxes leave while the next one is multiplied, if there is one.
    const double boxes = t.box.count > 0 && size == 2 && rounds == 1 ? 2000 : 0;
    const double splits = t.splits == 1 ? 0 : 6000 + 0.08 * static_cast<double>(implicit_gemm_split_bytes(t));
    return 7000 + shares + splits + boxes + turn + (t.flat && parts == 1 ? 0.98 : 1) * std::max(all, memory);
  }

  // The same of launches with halos, with weights fitted to some 750 timed launches of 24 layers.
  double halo_cycles(const ImplicitGemmLaunch& t) const {
    const ImplicitGemmConfig& sizes = t.sizes();
    const auto number = [](int64_t n) { return static_cast<double>(n); };
    const double works = works_of(t) * t.cluster();
    const double rounds = std::ceil(works / t.grid);
    // Of a multiprocessor, which has one block or two.
    const double own_works = std::ceil(works / std::min(t.grid, device.sm_count));
    const bool two_blocks = sizes.single && own_works > 1;
    const double kernel = number(problem.h.kernel * problem.w.kernel);
    // Of a piece of work: for each chunk of channels, and all.
    const double taps = kernel / number(t.phases());
    const double steps = taps * t.chunks;
    const double most_steps = number(most_taps(t.phases_h)) * t.chunks *
                              (t.phases_together == 1 ? most_taps(t.phases_w) : number(problem.w.kernel));
    const double phases_w = number(phases_reached(t.phases_w)) / t.phases_together;
    const double halos = number(problem.h.kernel) / number(problem.h.stride) *
                         std::min(1.0, std::ceil(phases_w) * t.phases_together / t.phases_w.stride);
    const double step = halo_step_cycles(t, halos / taps, two_blocks);
    const double sums = steps * step;
    // Others multiply while a block or warpgroup stores, for some of the time, but for the last work.
    const bool pairs = fold_w * t.phases_together >= 2;
    const bool parts_of_sectors = fold_w > 1 && problem.w.stride > t.phases_together;
    const double lines = sizes.rows == 32 ? 0.07 : 0.084;
    const double store = problem.output_channels_last ? lines  // of a byte
                         : !pairs                     ? 0.152
                         : parts_of_sectors           ? 0.085
                         : t.halo_runs                ? 0.055
                                                      : 0.072;
    const double stores = 150 + store * number(size) * sizes.rows * sizes.pixels * t.phases_together;
    const double hidden = (parts > 1 ? 0.15 : 0.3) * std::min(sums, stores);
    // Phases with many taps and with few even out after some rounds.
    const double late = rounds < 4 ? (most_steps - steps) * step * (two_blocks ? 2 : 1) : 0;
    const double all = own_works * (sums + stores) - (own_works - 1) * hidden + late;
    const double memory = halo_memory_cycles(t.halo_runs ? 0 : torn_sectors(t));
    const double weight = number(size * problem.cin() * problem.cout_per_group) * kernel;
    const double turn = t.turns_weight ? 2500 + 0.00053 * (1 + parts) / 2 * weight : 0;
    const double shares = t.shares_copies() ? 5250 + 140 * rounds : 0;
    // With split operands fitted to the two layers with one image, b1_unet and b1_k4s2.
    const double begin = parts > 1 ? 10800 : 8600;
    return begin + shares + turn + std::max(all, memory) + 0.1 * std::min(all, memory);
  }

  // Of a multiprocessor, for a step of one block, which brings so many halos: what it waits for most.
  double halo_step_cycles(const ImplicitGemmLaunch& t, double halos, bool two_blocks) const {
    const ImplicitGemmConfig& sizes = t.sizes();
    const int products = parts > 1 ? 3 : 1;
    const double tensor = sizes.rows * sizes.pixels / 32.0 * products;
    // Shared memory hands out the words of A, and B to each product of 64 places; copies write it.
    const double halo_bytes = static_cast<double>(t.halo_bytes());
    const double shared = sizes.pixels * (bank_conflicts(t) + sizes.rows / 64.0 * products) +
                          sizes.rows * parts + halos * halo_bytes / kImplicitGemmLine;
    // A warpgroup waits for its products before it begins others, in one or two turns of a step
    // (HaloConfig), and splits words in between; another one multiplies meanwhile.
    const bool two_turns = sizes.pixels / sizes.groups() == 128 && (parts > 1 || sizes.rows == 64);
    const double split = parts > 1 ? 3.0 * sizes.pixels / sizes.groups() : 0;
    const double own_products = (parts > 1 ? 1.85 : 1.58) * tensor / sizes.groups();
    const double alone = own_products + split + (parts > 1 ? 310 : 166) * (two_turns ? 2 : 1);
    const double warpgroup = alone / (two_blocks ? 2 : 1);
    // Copies: the weight, which comes from L2 faster, and the halo, row by row.
    const double weight = kImplicitGemmLine * parts * sizes.rows / 56.0;
    const double rows = t.halo_lines ? 0 : 32.0 * t.images * (t.rows / t.halo_rows);
    const double halo = 3.5 * rows + halo_bytes / 36;
    const double copies = weight * (t.cluster_pixels > 1 ? 0.6 : 1) + halos * halo;
    // What lies beside the image is made zero before words are multiplied.
    const bool long_rows = t.halo_pitch > 0 && !t.flat;
    const double zeros = long_rows ? (sizes.single ? 0.75 : 1.4) * sizes.pixels : 0;
    return std::max({0.95 * tensor, 1.05 * shared, warpgroup, copies}) + zeros;
  }

  // Cycles in which each lane gets a word of a halo: one if their channels and places are in different banks
  // (set_halo_cols), which those at the ends of rows are not.
  static double bank_conflicts(const ImplicitGemmLaunch& t) {
    if (t.halo_lines) return 1;
    if (t.halo_cols % 16 != 8) return 1.5;
    const bool long_rows = t.halo_pitch > 0 && !t.flat;
    return t.cols % 8 == 0 || long_rows ? 1 : 1 + std::min(1.0, 5.0 / t.cols);
  }

  // What memory takes for a launch with halos, where a part of the output's sectors is torn.
  double halo_memory_cycles(double torn) const {
    const auto bytes = [this](int64_t n) { return static_cast<double>(size * n); };
    const double input = bytes(problem.batch * problem.h.input * problem.w.input * problem.cin());
    return 0.000606 * (input + bytes(problem.output_elements()) * (1 + torn));
  }

  // Sectors that are written in parts, where L2 does not put them together.
  double torn_sectors(const ImplicitGemmLaunch& t) const {
    if (problem.output_channels_last || static_cast<double>(size * problem.output_elements()) < 32e6)
      return 0;
    // A tile's outputs that follow each other: of a row, or of whole rows of all phases.
    int64_t run = int64_t{t.cols} * t.phases_together * fold_w * size;
    int64_t row = problem.w.output * fold_w * size;
    if (t.flat) {
      const bool whole_rows = t.cols % problem.w.input == 0 && t.phases() == 1;
      run = whole_rows ? run * fold_h : std::min(run, row);
      if (whole_rows) row = run;
    }
    if (problem.w.stride != t.phases_together) return 1.27 * static_cast<double>(problem.w.stride);
    return row % kSector != 0 || run % kSector != 0
               ? 5 * std::sqrt(static_cast<double>(kSector) / static_cast<double>(run))
               : 0;
  }

  // The same of products that take all taps of a row of the filter, with weights fitted to launches of two
  // layers: a tile's outputs take as long as they do whatever their number, and rows of NCHW longer.
  double row_taps_cycles(const ImplicitGemmLaunch& t) const {
    const ImplicitGemmConfig& sizes = t.sizes();
    const auto number = [](int64_t n) { return static_cast<double>(n); };
    const double columns = sizes.rows * sizes.row_taps;
    const double taps = number(problem.h.kernel) / number(problem.h.stride);
    // A step's copies: the weight, and rows of the input, which warpgroups share.
    const double weight = t.keeps_weight ? 0 : columns * kImplicitGemmLine / 56.0;
    const double rows = (sizes.groups() - 1) / std::max(taps, 1.0) + 1;
    // Split operands have three products of each term, and are split before them.
    const double products = 2.16 * columns * sizes.groups() * (parts > 1 ? 3 : 1) + (parts > 1 ? 170 : 0);
    const double step = std::max(products, weight * parts + rows * static_cast<double>(t.halo_bytes()) / 36);
    const double tile = taps * t.chunks * step + (t.halo_lines ? 3000 : 4200);
    return 11000 + std::max(std::ceil(works_of(t) / t.grid) * tile, halo_memory_cycles(0));
  }

  // launch.works(), which may be more than a number has.
  double works_of(const ImplicitGemmLaunch& launch) const {
    return static_cast<double>(launch.cout_groups()) * static_cast<double>(launch.pixel_groups()) *
           static_cast<double>(launch.phases()) * static_cast<double>(launch.groups);
  }

  // Of halos: gives each part of the weight a stage that keeps it, if there is room and all works of a thread
  // block take the same; else false.
  template <typename Fits>
  bool keep_weight(ImplicitGemmLaunch& launch, const Fits& fits) const {
    const int64_t stages = problem.h.kernel * launch.chunks;
    const int64_t couts = ceil_div(problem.cout_per_group, launch.sizes().rows);
    if (launch.groups > 1 || launch.phases() > 1 || device.sm_count % couts != 0 || stages > kMostKept)
      return false;
    launch.stages = static_cast<int>(stages);
    const int groups = launch.sizes().groups();
    for (launch.halo_stages = kImplicitGemmMaxStages * groups; launch.halo_stages > groups;
         --launch.halo_stages) {
      if (!fits()) continue;
      launch.keeps_weight = true;
      return true;
    }
    return false;
  }

  // Sets as many stages as there is room for; false if too few.
  bool set_stages(ImplicitGemmLaunch& launch) const {
    // Each block takes some of its multiprocessor's for itself.
    const int64_t reserved = device.shared_bytes_per_sm - device.shared_bytes_per_block;
    const int64_t room =
        launch.sizes().single ? device.shared_bytes_per_sm / 2 - reserved : device.shared_bytes_per_block;
    const auto fits = [&] {
      launch.shared_bytes = implicit_gemm_shared(launch).bytes;
      return launch.shared_bytes <= static_cast<size_t>(room);
    };
    if (launch.halos) {
      if (launch.sizes().row_taps > 1 && keep_weight(launch, fits)) return true;
      // Of both in turns; of taps together, a row of the input for each warpgroup and another one.
      const int rows = launch.sizes().row_taps > 1 ? launch.sizes().groups() - 1 : 0;
      launch.stages = 2;
      launch.halo_stages = rows + 2;
      if (!fits()) return false;
      for (int most = 3; most <= kImplicitGemmMaxStages; ++most) {
        for (const auto& [stages, least] : {std::pair{&launch.halo_stages, rows}, {&launch.stages, 0}}) {
          if (*stages != most - 1 + least) continue;
          ++*stages;
          if (!fits()) --*stages;
        }
      }
      return fits();
    }
    for (launch.stages = kImplicitGemmMaxStages; launch.stages >= 2; --launch.stages) {
      if (fits()) return true;
    }
    return false;
  }

  void consider(ImplicitGemmLaunch launch) const {
    const ImplicitGemmConfig& sizes = launch.sizes();
    // The sums of split operands are there twice.
    if (parts > 1 && !launch.halos && (sizes.columns() > 128 || sizes.alternates)) return;
    const bool fits = set_stages(launch);
    if (launch.box.count > 0 && launch.stages < kLeastStages && launch.fold() <= kImplicitGemmWarpRows / 2) {
      launch.box.halves = true;
      if (!set_stages(launch)) return;
    } else if (!fits) {
      return;
    }
    launch.shared_limit = static_cast<size_t>(device.shared_bytes_per_block);
    launch.cout_tiles = ceil_div(problem.cout_per_group, sizes.rows);
    if (launch.box.count == 0 && !launch.halos) consider_splits(launch);
    for (const auto& [rows, pixels] : {std::pair{1, 1}, {2, 1}, {1, 2}}) {
      launch.cluster_rows = rows;
      launch.cluster_pixels = pixels;
      if (rows > launch.cout_tiles || pixels > launch.pixel_tiles) continue;
      if (launch.halos && (rows > 1 || (pixels > 1 && (parts > 1 || sizes.row_taps > 1)))) continue;
      if (rows > 1 && !launch.blocks) {
        // Parts of a tile are whole eights of lines.
        const int lines = launch.images * launch.rows * launch.cols;
        const bool divides_side =
            launch.images % rows == 0 || launch.rows % rows == 0 || launch.cols % rows == 0;
        const bool outermost = launch.images % rows == 0 || (launch.images == 1 && launch.rows % rows == 0) ||
                               (launch.images == 1 && launch.rows == 1);
        if (!divides_side || !outermost || lines / rows % 8 != 0) continue;
      }
      if (works_of(launch) >= static_cast<double>(kMaxCoordinate)) continue;
      const int64_t resident = device.sm_count * (sizes.single ? 2 : 1) / launch.cluster();
      if (resident == 0) continue;
      launch.grid = static_cast<int>(std::min<int64_t>(launch.works(), resident) * launch.cluster());
      visit(launch, sizes.row_taps > 1 ? row_taps_cycles(launch)
                    : launch.halos     ? halo_cycles(launch)
                                       : cycles(launch));
    }
  }

  // Blocks that divide channels, where tiles leave multiprocessors over. Clusters lie in one part of the
  // device each, and not every multiprocessor of it finds others.
  void consider_splits(ImplicitGemmLaunch launch) const {
    if (launch.sizes().alternates || launch.blocks || launch.phases_together > 1) return;
    for (launch.splits = 2; launch.splits <= std::min(launch.chunks, kImplicitGemmMaxSplits);
         launch.splits *= 2) {
      const double blocks = works_of(launch) * launch.splits;
      const size_t stages = implicit_gemm_shared(launch).output;
      if (blocks > 0.75 * device.sm_count || implicit_gemm_split_bytes(launch) > stages) return;
      launch.grid = static_cast<int>(launch.works()) * launch.splits;
      visit(launch, cycles(launch));
    }
  }

  // The widest stores of elements that lie side by side.
  void set_stores(ImplicitGemmLaunch& launch) const {
    const int most = static_cast<int>(kAlignment / size);
    if (problem.output_channels_last) {
      launch.store_elements = common_power_of_two(most, problem.cout_per_group);
    } else if (problem.w.stride == launch.phases_together) {
      const int64_t together = launch.phases_together * fold_w;
      const int64_t line = launch.blocks || launch.flat ? most : launch.cols * together;
      launch.store_elements = common_power_of_two(most, problem.w.output * fold_w, line);
    } else {
      launch.store_elements = common_power_of_two(most, fold_w);
    }
  }

  void consider_phases(ImplicitGemmLaunch launch) const {
    const ImplicitGemmConfig& sizes = launch.sizes();
    // Sums of float32 are there twice.
    const bool fits = launch.halos ? sizes.fits_halos(2, parts)
                                   : size == 2 || (sizes.columns() == 128 && !sizes.alternates);
    const bool pairs = !problem.output_channels_last && problem.w.stride == 2 && problem.w.output > 1 && fits;
    for (const int together : {1, 2}) {
      if (together == 2 && !pairs) continue;
      launch.phases_together = together;
      launch.box = {};
      set_stores(launch);
      if (launch.halos) {
        consider_halo_rows(launch);
        continue;
      }
      consider(launch);
      if (set_box(launch)) consider(launch);
    }
  }

  // The side of boxes of whole rows, each of so many elements of an output channel: the largest that copies
  // can have and that divides both box and channel, in whole sectors if possible; 0 if there is none.
  int side_of_whole_rows(int64_t box) const {
    const int64_t channel = problem.h.output * problem.w.output * fold_h * fold_w;
    for (const int64_t bytes : {kSector, kAlignment}) {
      for (int side = kMaxBox; side > 0; --side) {
        if (side * size % bytes == 0 && divides(side, {box, channel})) return side;
      }
    }
    return 0;
  }

  // Lets outputs leave in boxes where all phases are rows of one product, the places of a warpgroup are
  // boxes, and a tensor map can have the output's rows or, where whole ones follow each other, others.
  bool set_box(ImplicitGemmLaunch& launch) const {
    const ImplicitGemmConfig& sizes = launch.sizes();
    if (fold_w < 2 || launch.fold() > kImplicitGemmWarpRows || launch.phases() != 1 ||
        launch.phases_together != 1 || sizes.alternates)
      return false;
    ImplicitGemmBox box;
    if (launch.blocks) {
      const int64_t w = problem.w.input, block = kImplicitGemmBlock;
      const bool part_of_row = w % block == 0;
      const bool whole_rows = launch.flat && block % w == 0 && problem.h.input * w % block == 0;
      if (!part_of_row && !whole_rows) return false;
      box.cols = static_cast<int>(std::min(w, block));
      box.rows = kImplicitGemmBlock / box.cols;
      box.count = sizes.columns() / kImplicitGemmBlock;
    } else if (launch.flat) {
      return false;
    } else {
      box.count = 1;
      box.images = launch.images;
      box.rows = launch.rows;
      box.cols = launch.cols;
      if (sizes.shares() > 1) {
        int& outermost = box.images > 1 ? box.images : box.rows > 1 ? box.rows : box.cols;
        if (outermost % sizes.shares() != 0) return false;
        outermost /= sizes.shares();
        if (box.places() != launch.columns()) return false;
      }
    }
    // A lane has two neighbouring places.
    if (box.cols % 2 != 0) return false;
    box.side = box.cols * fold_w;
    box.whole_rows = box.cols == problem.w.output;
    const int64_t row = problem.w.output * fold_w, each = int64_t{box.rows} * box.cols * launch.fold();
    if (box.whole_rows) {
      box.side = side_of_whole_rows(each);
      if (box.side == 0) return false;
    } else if (row * size % kAlignment != 0 || box.side * size % kAlignment != 0 || box.side > kMaxBox) {
      return false;
    }
    if (each / box.side > kMaxBox || box.images > kMaxBox) return false;
    if (problem.h.output * fold_h * row / box.side >= kMaxCoordinate) return false;
    // A box must not reach into the next group's output channels.
    if (problem.groups > 1 && problem.cout_per_group % kImplicitGemmWarpRows != 0) return false;
    const double image = static_cast<double>(problem.cout()) * static_cast<double>(problem.h.output) *
                         static_cast<double>(problem.w.output * size);
    if (image >= static_cast<double>(kMaxPitch)) return false;
    launch.box = box;
    return true;
  }

  void consider_lines(ImplicitGemmLaunch launch) const {
    const int pixels = launch.sizes().pixels;
    launch.turns_input = !reads_lines();
    const ActivationStrides& in = problem.input_stride;
    // Pixels follow each other at the distance of neighbours along W, whether or not there are any.
    const bool dense =
        launch.turns_input || ((problem.h.input == 1 || in.h == problem.w.input * in.w) &&
                               (problem.batch == 1 || in.n == problem.h.input * problem.w.input * in.w));
    const int64_t plane = problem.h.input * problem.w.input;
    const double all = static_cast<double>(problem.batch) * static_cast<double>(plane);
    // Second parts are further images of a tensor map, or pixels of one.
    if ((launch.flat ? all : static_cast<double>(problem.batch)) * parts >=
            static_cast<double>(kMaxCoordinate) ||
        (launch.flat && !dense))
      return;
    if (launch.turns_input) {
      launch.padded_cin = ceil_div(problem.cin_per_group, kAlignment / size) * (kAlignment / size);
      const double bytes = all * static_cast<double>(problem.groups * launch.padded_cin * size * parts);
      // turn_operands counts an image's pixels, and blocks of at most 64 x 64 elements, in 32 bits.
      const double turned_blocks = static_cast<double>(problem.batch * problem.groups) *
                                   static_cast<double>(ceil_div(plane, 64) * ceil_div(launch.padded_cin, 64));
      if (bytes >= static_cast<double>(kMaxPitch) || plane >= kMaxCoordinate ||
          turned_blocks >= static_cast<double>(kMaxCoordinate))
        return;
      launch.weight_offset = static_cast<size_t>(bytes + 255) / 256 * 256;
    }
    if (launch.flat) {
      launch.cols = static_cast<int>(std::min<int64_t>(pixels, static_cast<int64_t>(all)));
      launch.pixel_tiles = ceil_div(static_cast<int64_t>(all), launch.cols);
      launch.tiles_w = launch.pixel_tiles;
      return set_weight(launch);
    }
    consider_tiles(launch);
  }

  void consider_tiles(ImplicitGemmLaunch launch) const {
    const int pixels = launch.sizes().pixels;
    int last = 0;
    for (int limit = pixels; limit >= 1; limit /= 2) {
      const int cols =
          static_cast<int>(ceil_div(launch.places_w, ceil_div(launch.places_w, std::min(limit, 256))));
      if (cols == last) continue;
      last = cols;
      launch.cols = cols;
      launch.rows = static_cast<int>(std::min<int64_t>(launch.places_h, pixels / cols));
      launch.rows = static_cast<int>(ceil_div(launch.places_h, ceil_div(launch.places_h, launch.rows)));
      launch.tiles_w = ceil_div(launch.places_w, cols);
      launch.tiles_h = ceil_div(launch.places_h, launch.rows);
      const int images = static_cast<int>(std::min<int64_t>(problem.batch, pixels / (cols * launch.rows)));
      consider_images(launch, images);
      // Batches are often powers of two.
      const int power = static_cast<int>(next_power_of_two(images + 1) / 2);
      if (power < images) consider_images(launch, power);
    }
  }

  // Halos are read as they lie, from images or from long rows (convt/implicit_gemm.h).
  void consider_halos(ImplicitGemmLaunch launch) const {
    launch.halo_lines = problem.output_channels_last;
    if (launch.halo_lines ? launch.flat || !convt::reads_lines(problem) : !reads_halos(problem, launch.flat))
      return;
    if (!launch.sizes().fits_halos(1, parts)) return;
    if (launch.sizes().row_taps > 1) return consider_row_taps(launch);
    // Columns of products beyond the output channels cost as much as others.
    const int rows = launch.sizes().rows;
    if (rows > 32 && problem.cout_per_group <= rows / 2) return;
    if (rows == 32 && problem.cout_per_group > rows) return;
    const int64_t plane = problem.h.input * problem.w.input, pixels = launch.sizes().pixels;
    if (static_cast<double>(problem.batch) * static_cast<double>(plane) >=
        static_cast<double>(kMaxCoordinate))
      return;
    if (!launch.flat) return consider_tiles(launch);
    // Any part of an image is a row, of as many pixels as leave room for the distance of channels.
    const int64_t vector = kAlignment / size;
    int64_t last = 0;
    for (const int64_t limit : {kMaxBox - 16, 128, 64, 32, 16}) {
      const int64_t parts_of_plane = ceil_div(plane, std::min(limit, pixels));
      const int64_t cols = ceil_div(ceil_div(plane, parts_of_plane), vector) * vector;
      if (cols == last) continue;
      last = cols;
      launch.cols = static_cast<int>(cols);
      launch.halo_pitch = launch.cols;
      launch.places_w = cols;
      launch.places_h = ceil_div(plane, cols);
      launch.tiles_w = 1;
      launch.rows = static_cast<int>(std::min<int64_t>(launch.places_h, pixels / cols));
      launch.tiles_h = ceil_div(launch.places_h, launch.rows);
      consider_images(launch,
                      static_cast<int>(std::min<int64_t>(problem.batch, pixels / (cols * launch.rows))));
      if (launch.rows == 1) continue;
      launch.rows = 1;
      launch.tiles_h = launch.places_h;
      consider_images(launch, static_cast<int>(std::min<int64_t>(problem.batch, pixels / cols)));
    }
  }

  // Lets products take all taps of a row of the filter together: rows of outputs that overlap by their taps.
  void consider_row_taps(ImplicitGemmLaunch launch) const {
    const ImplicitGemmConfig& sizes = launch.sizes();
    const Axis& w = problem.w;
    if (launch.flat || w.stride != 1 || w.dilation != 1 || w.kernel != sizes.row_taps || fold_h > 1) return;
    // Taps of a phase along H read rows that follow each other.
    if (launch.phases_h.shift_step != 1 && most_taps(launch.phases_h) > 1) return;
    if (problem.cout_per_group <= sizes.rows / 2) return;
    launch.cols = 64 - (sizes.row_taps - 1);
    launch.tiles_w = ceil_div(launch.places_w, launch.cols);
    // A row for each warpgroup.
    launch.rows = static_cast<int>(std::min<int64_t>(launch.places_h, sizes.groups()));
    launch.tiles_h = ceil_div(launch.places_h, launch.rows);
    consider_images(launch, 1);
  }

  // Whether a flat tile's outputs can leave in runs, which begin and end at multiples of 16 bytes: all phases
  // are columns of one product, and images, and rows where tiles have parts of them, are such multiples.
  bool stores_runs(const ImplicitGemmLaunch& launch) const {
    if (!launch.flat || launch.halo_lines || !halo_gemm_stores_runs(launch.sizes(), parts) || fold_w < 2 ||
        launch.phases() > 1 || launch.fold() > kHaloGemmRunColumns)
      return false;
    const int64_t vector = kAlignment / size, plane = problem.h.input * problem.w.input;
    const bool whole_images = int64_t{launch.rows} * launch.cols >= plane;
    return plane * fold_w % vector == 0 &&
           (fold_h == 1 || whole_images || problem.w.input * fold_w % vector == 0);
  }

  // Takes rows of a tile by themselves, or as parts of a long row.
  void consider_halo_rows(ImplicitGemmLaunch launch) const {
    if (set_halo_cols(launch)) {
      consider(launch);
      if (stores_runs(launch)) {
        launch.halo_runs = true;
        return consider(launch);
      }
    }
    // Whole rows, which begin at multiples of 16 bytes and follow each other.
    const int64_t w = problem.w.input;
    if (launch.halo_lines || launch.flat || launch.tiles_w > 1 || launch.rows == 1 ||
        launch.sizes().row_taps > 1 || w * size % kAlignment != 0 || problem.input_stride.h != w)
      return;
    launch.halo_pitch = static_cast<int>(w);
    for (launch.halo_rows = launch.rows; launch.halo_rows > 1; --launch.halo_rows) {
      if (launch.rows % launch.halo_rows == 0 && set_halo_cols(launch)) return consider(launch);
    }
  }

  // Sets the columns of halos: those of the taps of all phases that read the same one, of NCHW from a
  // multiple of 16 bytes on; of parts of a long row, from those of the first row to those of the last. A
  // channel's lie so far from the next one's that four of them, of eight columns each, are in different
  // banks, or two, where that is much shorter.
  bool set_halo_cols(ImplicitGemmLaunch& launch) const {
    const int64_t vector = launch.halo_lines ? 1 : kAlignment / size;
    int64_t most = 0;
    for (int first = 0; first < problem.w.stride; first += launch.phases_together) {
      bool reads = false;
      int64_t begin = 0, end = 0;
      for (int phase = first; phase < std::min<int64_t>(first + launch.phases_together, problem.w.stride);
           ++phase) {
        const int64_t at = phase + problem.w.padding;
        const Phase<int> taps = phase_of(launch.phases_w, static_cast<int>(at % problem.w.stride));
        if (taps.taps == 0) continue;
        const int64_t last = at / problem.w.stride - taps.first_shift;
        const int64_t least = last - int64_t{taps.taps - 1} * launch.phases_w.shift_step;
        begin = reads ? std::min(begin, least) : least;
        end = reads ? std::max(end, last) : last;
        reads = true;
      }
      const int64_t before = launch.cols % vector != 0 ? vector - 1 : (begin % vector + vector) % vector;
      most = std::max(most, before + launch.cols + end - begin);
    }
    const int64_t needed =
        ceil_div(most + int64_t{launch.halo_rows - 1} * launch.halo_pitch, vector) * vector;
    int64_t cols = needed;
    if (!launch.halo_lines && launch.sizes().row_taps > 1) {
      cols = kHaloGemmRowColumns;
    } else if (!launch.halo_lines) {
      while (cols % 16 != 8) cols += vector;
      if (cols > needed * 5 / 4) {
        for (cols = needed; cols % 8 != 4;) cols += vector;
      }
    }
    launch.halo_cols = static_cast<int>(cols);
    return cols <= kMaxBox;
  }

  void consider_images(ImplicitGemmLaunch launch, int images) const {
    launch.images = images;
    launch.image_tiles = ceil_div(problem.batch, images);
    const double tiles = static_cast<double>(launch.tiles_w) * static_cast<double>(launch.tiles_h) *
                         static_cast<double>(launch.image_tiles);
    if (tiles >= static_cast<double>(kMaxCoordinate)) return;
    launch.pixel_tiles = launch.tiles_w * launch.tiles_h * launch.image_tiles;
    set_weight(launch);
  }

  void consider_blocks(ImplicitGemmLaunch launch) const {
    // Copies begin at multiples of 16 bytes: columns cannot be shifted. Turns gain nothing here.
    if (!reads_blocks(launch.flat) || !stays_in_place(problem.w, launch.phases_w) ||
        launch.sizes().alternates)
      return;
    launch.blocks = true;
    const ActivationStrides& in = problem.input_stride;
    const int64_t pixels = problem.h.input * problem.w.input;
    if (launch.flat && problem.h.input > 1 && in.h != problem.w.input) return;
    if (pixels >= kMaxCoordinate) return;
    launch.tiles_w = ceil_div(launch.flat ? pixels : launch.places_w, kImplicitGemmBlock);
    launch.tiles_h = launch.flat ? 1 : launch.places_h;
    const double tiles = static_cast<double>(launch.tiles_w) * static_cast<double>(launch.tiles_h) *
                         static_cast<double>(problem.batch);
    if (tiles >= static_cast<double>(kMaxCoordinate / kImplicitGemmBlock)) return;
    const int64_t blocks = launch.tiles_w * launch.tiles_h * problem.batch;
    launch.pixel_tiles = ceil_div(blocks, launch.sizes().pixels / kImplicitGemmBlock);
    set_weight(launch);
  }

  void set_weight(ImplicitGemmLaunch launch) const {
    launch.turns_weight = !reads_weight();
    const int64_t vector = kAlignment / size, taps = problem.h.kernel * problem.w.kernel;
    launch.workspace_bytes = launch.weight_offset;
    if (launch.turns_weight) {
      launch.padded_cin = ceil_div(problem.cin_per_group, vector) * vector;
      launch.padded_cout = ceil_div(problem.cout_per_group, vector) * vector;
      const double elements = static_cast<double>(taps) * static_cast<double>(problem.groups * parts) *
                              static_cast<double>(size == 4 ? launch.padded_cin * problem.cout_per_group
                                                            : problem.cin_per_group * launch.padded_cout);
      if (elements >= static_cast<double>(kMaxCoordinate)) return;
      launch.workspace_bytes += static_cast<size_t>(elements) * static_cast<size_t>(size);
    }
    consider_phases(launch);
  }

  // What all launches have in common.
  ImplicitGemmLaunch first_launch() const {
    ImplicitGemmLaunch launch;
    launch.element_size = static_cast<int>(size);
    launch.parts = parts;
    launch.fold_h = fold_h;
    launch.fold_w = fold_w;
    launch.phases_h = narrow_phases(problem.h);
    launch.phases_w = narrow_phases(problem.w);
    launch.groups = problem.groups;
    launch.places_h = ceil_div(problem.h.output, problem.h.stride);
    launch.places_w = ceil_div(problem.w.output, problem.w.stride);
    launch.chunks = static_cast<int>(ceil_div(problem.cin_per_group, launch.chunk()));
    return launch;
  }

  void run() const {
    ImplicitGemmLaunch launch = first_launch();
    const bool may_be_flat = stays_in_place(problem);
    for (int config = 0; config < kImplicitGemmConfigCount; ++config) {
      launch.config = config;
      for (const bool flat : {false, true}) {
        if (flat && !may_be_flat) continue;
        launch.flat = flat;
        consider_lines(launch);
        // Of flat blocks, rows have one dimension less, which is faster.
        if (flat || !may_be_flat) consider_blocks(launch);
      }
    }
  }

  void run_halos() const {
    ImplicitGemmLaunch launch = first_launch();
    launch.halos = true;
    for (int config = 0; config < kHaloGemmConfigCount; ++config) {
      launch.config = config;
      for (const bool flat : {false, true}) {
        launch.flat = flat;
        if (!flat || stays_in_place(problem)) consider_halos(launch);
      }
    }
  }
};

// How many neighbouring phases along an axis may be rows of one product, beside none: the largest power of
// two, up to 8, that divides everything.
std::vector<int> folds(const Problem& problem, const Axis& axis) {
  const int most = axis.dilation == 1 && !problem.output_channels_last ? 8 : 1;
  const int fold = common_power_of_two(most, axis.stride, axis.kernel, axis.padding, axis.output);
  return fold == 1 ? std::vector<int>{1} : std::vector<int>{1, fold};
}

}  // namespace

const char* implicit_gemm_obstacle(const Problem& p, const DeviceLimits& device) {
  const char* const obstacle = tensor_core_obstacle(p, device);
  if (obstacle != nullptr) return obstacle;
  if (!device.has_wgmma) return "it needs compute capability 9.0 and a build for 9.0a";
  return nullptr;
}

const char* halo_gemm_obstacle(const Problem& p, const DeviceLimits& device) {
  const char* const obstacle = implicit_gemm_obstacle(p, device);
  if (obstacle != nullptr) return obstacle;
  if (p.dtype != DType::kFloat32) return "it computes in float32";
  if (p.output_channels_last)
    return reads_lines(p) ? nullptr : "it reads channels that lie side by side, at multiples of 16 bytes";
  const bool reads_rows = reads_halos(p, false), reads_images = stays_in_place(p) && reads_halos(p, true);
  if (!reads_rows && !reads_images)
    return "it reads rows, or images of unshifted taps, at multiples of 16 bytes";
  return nullptr;
}

namespace {

// Calls search(Search) for each way to fold the problem.
template <typename SearchFolded>
void search_folds(const Problem& problem, const DeviceLimits& device, const ImplicitGemmVisitor& visit,
                  const SearchFolded& search) {
  for (const int fold_h : folds(problem, problem.h)) {
    for (const int fold_w : folds(problem, problem.w)) {
      // Stores take 4 bytes of a row at least.
      if (fold_h > 1 && fold_w * element_size(problem.dtype) < 4) continue;
      if (problem.cout() * fold_h * fold_w >= kMaxCoordinate) continue;
      const Problem smaller = folded(problem, fold_h, fold_w);
      search(Search{smaller, device, visit, fold_h, fold_w});
    }
  }
}

}  // namespace

void visit_implicit_gemm(const Problem& problem, const DeviceLimits& device,
                         const ImplicitGemmVisitor& visit) {
  search_folds(problem, device, visit, [](const Search& search) { search.run(); });
}

void visit_halo_gemm(const Problem& problem, const DeviceLimits& device, const ImplicitGemmVisitor& visit) {
  search_folds(problem, device, visit, [](const Search& search) { search.run_halos(); });
}

}  // namespace convt
