// Which launches of thin can compute a problem, and what each should cost.

#include <algorithm>
#include <cmath>

#include "convt/alignment.h"
#include "convt/plan.h"
#include "plan_common.h"

namespace convt {

namespace {

int64_t round_up(int64_t value, int64_t multiple) { return ceil_div(value, multiple) * multiple; }

struct Search {
  const Problem& problem;
  const DeviceLimits& device;
  const ThinVisitor& visit;

  // Floats from one row of products to the next: neighbouring outputs belong to neighbouring phases, whose
  // taps lie in neighbouring rows, and are read at once; so each row begins as many banks on as the one
  // before has pixels in them.
  static int pitch_of(int columns, int stride_w) {
    const int shift = std::max(4, static_cast<int>(round_up(ceil_div(32, stride_w), 4)) % 32);
    return static_cast<int>(round_up(columns - shift, 32)) + shift;
  }

  // Registers of a thread: what the compiler takes, or its bound.
  int registers(const ThinLaunch& t) const {
    if (t.walks) {
      const int sums = t.row_blocks * t.taps_h.offsets(0);
      return t.parts == 2 ? 90 + 41 * sums : 72 + 16 * sums;
    }
    if (t.parts == 2) return t.row_blocks == 1 ? 208 : 248;
    return std::min(65536 / thin_threads(t.parts, device.compute_capability) / 8 * 8, 208);
  }

  // Thread blocks that an SM has shared memory and registers for.
  int64_t most_resident(const ThinLaunch& t) const {
    const int64_t by_shared =
        device.shared_bytes_per_sm / (static_cast<int64_t>(thin_shared(t).bytes) + kReservedSharedBytes);
    return std::min<int64_t>({by_shared, 65536 / (registers(t) * 32 * t.warps()), 64 / t.warps()});
  }

  // Chunks that a warp has in shared memory: three, unless fewer blocks are resident then.
  int stages_of(ThinLaunch launch) const {
    launch.stages = 2;
    const int64_t resident = most_resident(launch);
    launch.stages = 3;
    return most_resident(launch) < resident ? 2 : 3;
  }

  // The most outputs of a line of a strip: those that its pixels are the last to reach, and past its last
  // pixel those over the halo.
  int64_t line_outputs(const ThinLaunch& t) const {
    int64_t most = 0;
    for (const int64_t strip : {int64_t{0}, std::min<int64_t>(1, t.strips - 1), t.strips - 1}) {
      const int64_t first = t.origin_w + strip * t.strip_step + t.strip_halo;
      const int64_t base = strip == 0 ? t.first_base_w : first;
      const int64_t end = strip + 1 == t.strips ? t.first_base_w + t.bases_w : first + t.strip_step;
      const auto output = [this](int64_t of_base) {
        return std::clamp<int64_t>(of_base * problem.w.stride - problem.w.padding, 0, problem.w.output);
      };
      most = std::max(most, output(end) - output(base));
    }
    return most * t.images * (problem.output_channels_last ? t.couts : 1);
  }

  // Counts of what the kernel's loops do, with weights fitted to some 6,000 timed launches of 19 problems on
  // an H100. Over those the choice takes 1.05 times the best candidate's time in float16 on average, 1.07 in
  // TF32, 1.03 in IEEE. Those of launches that walk are of 500 of three problems.
  double cycles(const ThinLaunch& t) const {
    const double blocks = static_cast<double>(t.blocks()), sms = device.sm_count;
    const double resident =
        std::max(1.0, std::min(static_cast<double>(most_resident(t)), std::ceil(blocks / sms)));
    const double rounds = std::ceil(blocks / (sms * resident));
    const double steps = static_cast<double>(ceil_div(t.segment_rows, t.rows));

    // A step of a thread block: pixels of the input, and outputs by the warp.
    const double columns = static_cast<double>(t.images > 1 ? int64_t{t.images} * t.cols
                                                            : std::min<int64_t>(t.cols, problem.w.input));
    const double pixels = columns * t.rows;
    const double outputs = pixels * t.couts * t.taps_h.stride * static_cast<double>(t.phases_w.stride) / 32;
    const double offsets = t.taps_h.begin[t.taps_h.sets];
    const double depth = offsets * t.chunks;                                     // chunks of a warp
    const double warps = std::ceil(columns / kThinPixels) * t.rows * t.warps_m;  // that multiply

    // Issued instructions.
    const bool wide = t.element_size == 4;
    const double products = depth * kThinChunkSteps * 4 * t.row_blocks * (t.parts == 2 ? 3 : 1);
    const double reads = t.along_w ? (wide ? 30 : 60) : t.along_c ? 20 : 768.0 / t.element_size;
    const double converts = !wide ? (t.along_w ? 64 : 0) : t.parts == 2 ? 256 : 90;
    const double fragments = 4.4 * depth * t.row_blocks * t.parts;
    const double thread_columns = columns * static_cast<double>(t.phases_w.stride) *
                                  (problem.output_channels_last ? t.couts : 1) / t.gather_columns;
    const double tensor = 1.65 * warps * products;
    const double resident_warps = resident * t.warps();
    const double row_bytes = columns * static_cast<double>(problem.cin_per_group) * t.element_size;
    // Lines of NHWC in pieces of a few channels cost whole sectors.
    const bool in_pieces = problem.output_channels_last && t.couts < problem.cout();
    const double sectors = in_pieces ? 1 + 32.0 / (t.couts * t.element_size) : 1;
    const double stores = 0.099 * sectors * 32 * outputs * t.element_size;
    const double begin = 2860 + 530 * depth * kThinChunkSteps * t.all_row_blocks() / t.warps();
    const auto cube = [](double x) { return x * x * x; };
    if (t.walks) {
      // Sums of split operands begin anew every two steps. Rows of a channel are read one by one, each from
      // another place of NCHW.
      const double multiply = 1.05 * products + fragments + (t.parts == 2 ? 80 * depth * t.row_blocks : 0) +
                              t.chunks * (0.41 * reads + 0.39 * converts) + 416;
      const double gather = 13 * outputs + 60 * thread_columns * t.warps();
      // Warps of a thread block wait for each other, and for copies where they have but two stages of them;
      // another thread block hides both.
      const double hides = resident > 1 ? 1.1 : t.stages == 2 ? 0.95 : 1;
      const double most = (t.along_w ? (t.parts == 2 ? 1.25 : 1.4) : 1.7) * hides;
      const double ipc = std::min(most, (resident > 1 ? 0.2 : 0.19) * resident_warps);
      const double issue = (warps * multiply + gather) / ipc;
      const double bytes = (t.along_w ? 0.115 : 0.064) * row_bytes + stores;
      const double step = std::cbrt(cube(issue) + cube(tensor) + cube(bytes) + cube(1200 / resident));
      return 6200 + rounds * (resident * (steps + offsets - 1) * step + begin);
    }
    const double multiply = 1.05 * products + fragments + depth * (0.41 * reads + 0.39 * converts) + 166;
    const double lines = problem.output_channels_last ? outputs : outputs / t.couts;
    const double gather = 3.1 * outputs + 13 * lines + 52 * std::max(0.0, thread_columns - 1) * t.warps();
    const double issue = (warps * multiply + gather) * (resident_warps + 21) / (2.2 * resident_warps);
    // Rows are read once for each offset, from memory where what all thread blocks are about to read again
    // does not fit in its cache.
    const double kept_rows = std::min(t.segment_rows, t.taps_h.span + t.rows);
    const double sharers = static_cast<double>(t.cout_tiles);
    constexpr double kCacheBytes = 40e6;
    const bool reads_again = std::min(blocks, sms * resident) / sharers * kept_rows * row_bytes > kCacheBytes;
    const double bytes =
        (0.039 * offsets + (reads_again ? 0.06 * (offsets - 1) : 0)) * row_bytes * t.rows + stores;
    const double latency = (1090 + 1260 * depth) / resident;
    const double step = std::cbrt(cube(issue) + cube(tensor) + cube(bytes) + cube(latency));
    // In TF32 and 16 bits launches took 1.1 to 1.3 times the cycles of these weights, those that walk no more
    // than 1.1 times theirs.
    const double unhidden = t.parts == 1 ? 1.16 : 1;
    return 6200 + rounds * (unhidden * resident * steps * step + begin);
  }

  // Whether the places that a lane reads in a row can be told in 32 bits.
  bool has_near_places(const ThinLaunch& launch) const {
    const ActivationStrides& in = problem.input_stride;
    return (static_cast<double>(launch.images) * static_cast<double>(in.n) +
            static_cast<double>(problem.w.input) * static_cast<double>(in.w) +
            16.0 * static_cast<double>(in.c)) *
               launch.element_size <
           2147483648.0;
  }

  void consider(ThinLaunch launch) const {
    if (launch.walks && !has_near_places(launch)) return;
    launch.pitch = pitch_of(kThinPixels * launch.groups_w, launch.phases_w.stride);
    const int64_t outputs = line_outputs(launch);
    launch.columns = static_cast<int>(std::min(outputs, kMaxCoordinate));  // more do not fit anyway
    launch.stages = launch.walks ? stages_of(launch) : 2;
    const ThinShared shared = thin_shared(launch);
    if (shared.bytes > static_cast<size_t>(device.shared_bytes_per_block)) return;
    launch.shared_bytes = shared.bytes;
    launch.shared_limit = static_cast<size_t>(device.shared_bytes_per_block);

    launch.gather_columns = static_cast<int>(std::min<int64_t>(32 * launch.warps(), round_up(outputs, 32)));
    const double factors = static_cast<double>(launch.cout_tiles) * static_cast<double>(launch.strips) *
                           static_cast<double>(launch.image_tiles) * static_cast<double>(launch.groups);
    for (int64_t segments = 1; segments <= launch.grid_h; segments *= 2) {
      const int64_t segment = round_up(ceil_div(launch.grid_h, segments), launch.rows);
      if (segments > 1 && segment * (segments / 2) >= launch.grid_h) break;
      launch.segment_rows = static_cast<int>(segment);
      launch.segments = ceil_div(launch.grid_h, segment);
      if (factors * static_cast<double>(launch.segments) > static_cast<double>(kMaxGrid)) break;
      visit(launch, cycles(launch));
      if (factors * static_cast<double>(launch.segments) > 64.0 * device.sm_count) break;
    }
  }

  // Sets the strips for launch.groups_w; false if they leave no column besides the halo.
  bool set_strips(int64_t vector, ThinLaunch& launch) const {
    const int64_t width = kThinPixels * launch.groups_w;
    const int64_t end = std::min<int64_t>(launch.first_base_w + launch.bases_w, problem.w.input);
    const int64_t origin = std::max<int64_t>(0, launch.first_base_w - launch.span_w) / vector * vector;
    launch.images = 1;
    launch.origin_w = static_cast<int>(origin);
    launch.strips = 1;
    launch.cols = static_cast<int>(width);
    launch.strip_halo = static_cast<int>(std::min<int64_t>(width, round_up(launch.span_w, vector)));
    launch.strip_step = static_cast<int>(width) - launch.strip_halo;
    if (end - origin > width) {
      if (launch.strip_step < 1) return false;
      launch.strips = 1 + ceil_div(end - origin - width, launch.strip_step);
    }
    return true;
  }

  void consider_warps(ThinLaunch launch) const {
    const int64_t vector = launch.along_w ? 4 : 1;
    const int max_warps =
        launch.walks ? thin_walk_threads(launch.parts, device.compute_capability) / 32 : kThinMaxWarps;
    for (int groups = 1; groups * launch.warps_m <= max_warps; ++groups) {
      launch.groups_w = groups;
      for (int rows = 1; rows * groups * launch.warps_m <= max_warps; rows *= 2) {
        if (rows > 1 && (launch.walks || rows >= 2 * launch.grid_h)) break;
        launch.rows = rows;
        if (!set_strips(vector, launch)) continue;
        launch.image_tiles = problem.batch;
        const bool fewer_do = groups > 1 && launch.strips == 1 &&
                              problem.w.input - launch.origin_w <= kThinPixels * (groups - 1);
        if (!fewer_do) consider(launch);
        const int64_t images = std::min(problem.batch, kThinPixels * groups / problem.w.input);
        if (images < 2) continue;
        launch.images = static_cast<int>(images);
        launch.image_tiles = ceil_div(problem.batch, images);
        launch.origin_w = 0;
        launch.cols = static_cast<int>(problem.w.input);
        consider(launch);
      }
    }
  }

  void run() const {
    ThinLaunch launch;
    const int size = static_cast<int>(element_size(problem.dtype));
    launch.element_size = size;
    launch.parts = operand_parts(problem);
    launch.chunks = static_cast<int>(ceil_div(problem.cin_per_group, kThinChunkSteps * (32 / size)));
    launch.groups = problem.groups;
    launch.phases_w = narrow_phases(problem.w);
    launch.span_w = largest_shift(launch.phases_w);
    const Bases bases = bases_of(problem.w);
    launch.first_base_w = bases.first;
    launch.bases_w = bases.count;
    if (!set_taps_h(launch)) return;
    // Distances of a dimension of one do not matter.
    ActivationStrides in = problem.input_stride;
    if (problem.batch == 1) in.n = 0;
    if (problem.h.input == 1) in.h = 0;
    if (problem.w.input == 1) in.w = 0;
    launch.along_w = in.w == 1 && divides(4, {in.n, in.c, in.h, problem.w.input});
    launch.along_c =
        !launch.along_w && in.c == 1 && divides(16 / size, {in.n, in.h, in.w, problem.cin_per_group});

    const int64_t cout_rows = int64_t{launch.taps_h.set_size} * launch.phases_w.kernel;
    const int64_t most = std::min<int64_t>(problem.cout_per_group, kThinMaxRows / cout_rows);
    if (most < 1) return;
    int64_t last = 0;
    for (int64_t tiles = ceil_div(problem.cout_per_group, most); tiles <= problem.cout_per_group;
         tiles *= 2) {
      const int64_t couts = ceil_div(problem.cout_per_group, tiles);
      if (couts == last) continue;
      last = couts;
      launch.couts = static_cast<int>(couts);
      launch.cout_tiles = ceil_div(problem.cout_per_group, couts);
      const int blocks = static_cast<int>(ceil_div(couts * cout_rows, 16));
      for (int row_blocks = 1; row_blocks <= kThinMostRowBlocks; ++row_blocks) {
        launch.row_blocks = row_blocks;
        launch.warps_m = static_cast<int>(ceil_div(blocks, row_blocks));
        if (launch.warps_m > kThinMaxWarpsM) continue;
        for (const bool walks : {false, true}) {
          launch.walks = walks;
          if (!walks || may_walk(launch)) consider_warps(launch);
        }
      }
      if (couts * cout_rows <= 16) break;
    }
  }

  bool may_walk(const ThinLaunch& launch) const {
    const AxisTaps& taps = launch.taps_h;
    const int offsets = taps.offsets(0);
    // Many tiles of output channels would each read the weight's lines in pieces, and wait for them.
    return problem.cout_per_group <= kThinMostCouts && taps.sets == 1 &&
           thin_may_walk(launch.parts, launch.row_blocks, offsets) && taps.span == offsets - 1 &&
           (launch.along_w || launch.along_c) &&
           is_aligned(problem.input, launch.along_w ? 4 * launch.element_size : 16);
  }

  // All phases along H in one set where they have the same offsets, by one way to number outputs or the
  // other; else each in its own set.
  bool set_taps_h(ThinLaunch& launch) const {
    const int stride = static_cast<int>(problem.h.stride);
    const int cropped = static_cast<int>(problem.h.padding % problem.h.stride);
    for (const int crop : {cropped, 0}) {
      if (stride > kMaxSetPhases) break;
      launch.grid_h = static_cast<int>(ceil_div(problem.h.output + crop, stride));
      if (!make_axis_taps(problem.h, crop, stride, 1, &launch.taps_h)) return false;
      if (phases_agree(launch.taps_h)) return true;
    }
    launch.grid_h = static_cast<int>(ceil_div(problem.h.output, stride));
    return make_axis_taps(problem.h, 0, 1, 1, &launch.taps_h);
  }
};

}  // namespace

void visit_thin(const Problem& problem, const DeviceLimits& device, const ThinVisitor& visit) {
  Search{problem, device, visit}.run();
}

}  // namespace convt
