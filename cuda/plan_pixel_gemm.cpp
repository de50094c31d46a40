// Which launches of pixel_gemm can compute a problem, and what each should cost.

#include <algorithm>
#include <cmath>

#include "convt/alignment.h"
#include "convt/plan.h"
#include "plan_common.h"

namespace convt {
namespace {

// Outputs of an image and group, which its columns number. Each factor is below 2^30.
double columns_of(const Problem& p) {
  return static_cast<double>(p.cout_per_group) * static_cast<double>(p.h.output) *
         static_cast<double>(p.w.output);
}

struct Search {
  const Problem& problem;
  const DeviceLimits& device;
  const PixelGemmVisitor& visit;

  // The widest copy, from an element's to 16 bytes, whose elements divide the numbers.
  template <typename... Numbers>
  int width_of(Numbers... numbers) const {
    const int size = static_cast<int>(element_size(problem.dtype));
    return size * common_power_of_two(16 / size, numbers...);
  }

  // Whether every output along an axis is reached by the tap of its number.
  static bool has_tap_for_tap(const Axis& axis) {
    return axis.padding == 0 && axis.output == axis.kernel && (axis.dilation == 1 || axis.kernel == 1);
  }

  // Whether a channel of the weight has its taps in the order of the columns.
  bool weight_follows_outputs() const {
    if (!has_tap_for_tap(problem.h) || !has_tap_for_tap(problem.w)) return false;
    const int64_t couts = problem.cout_per_group, kernel_h = problem.h.kernel, kernel_w = problem.w.kernel;
    const bool channels_last = problem.output_channels_last;
    const int64_t pixel = channels_last ? couts : 1, channel = channels_last ? 1 : kernel_h * kernel_w;
    // Distances along a dimension of one do not matter.
    const WeightStrides& weight = problem.weight_stride;
    return (kernel_w == 1 || weight.kw == pixel) && (kernel_h == 1 || weight.kh == kernel_w * pixel) &&
           (couts == 1 || weight.cout == channel);
  }

  // Taps of a thread block, where pieces of output channels of a tap can be copied: 8, so that in float32
  // those of 64 columns, and outputs that lie side by side, are whole sectors of memory, or 4; 0 where they
  // cannot.
  int taps_of_block() const {
    if (problem.output_channels_last || weight_follows_outputs()) return 0;
    if (!has_tap_for_tap(problem.h) || !has_tap_for_tap(problem.w)) return 0;
    if (problem.cout_per_group == 1 || problem.weight_stride.cout != 1) return 0;
    if (tap_bytes(2) == static_cast<int>(element_size(problem.dtype))) return 0;
    const int taps = common_power_of_two(8, problem.h.kernel * problem.w.kernel);
    return taps >= 4 ? taps : 0;
  }

  // Bytes of a tap's output channels that can be copied at once, where a thread block has so many of them.
  int tap_bytes(int couts) const {
    const WeightStrides& weight = problem.weight_stride;
    return width_of(couts, problem.cin() == 1 ? 0 : weight.cin, problem.h.kernel == 1 ? 0 : weight.kh,
                    problem.w.kernel == 1 ? 0 : weight.kw);
  }

  // Counts of what the kernel's loops do; the weights are of the instruction set and of other kernels'
  // measurements, and agree with the order of the launches of one layer (128 images, 100 to 512 channels, 4 x
  // 4) in all precisions on an H100.
  double cycles(const PixelGemmLaunch& t) const {
    const PixelGemmConfig& sizes = t.sizes();
    const double blocks = static_cast<double>(t.blocks()), sms = device.sm_count;
    const int64_t by_shared =
        device.shared_bytes_per_sm / (static_cast<int64_t>(t.shared_bytes) + kReservedSharedBytes);
    const int registers = t.parts == 2 ? 56 + 56 * sizes.row_blocks : 64 + 16 * sizes.row_blocks;
    const int64_t by_registers = 65536 / (registers * sizes.threads());
    const double resident = std::max(
        1.0, std::min(static_cast<double>(std::min(by_shared, by_registers)), std::ceil(blocks / sms)));
    const double rounds = std::ceil(blocks / (sms * resident));

    const bool wide = t.element_size == 4;
    const double products = t.parts == 2 ? 3 : 1;
    const double steps = std::ceil(static_cast<double>(problem.cin_per_group) * t.element_size /
                                   static_cast<double>(kPixelGemmStepBytes));
    // Tensor cores: a step of a tile is 16 rows x 8 columns of 32 channels of 16 bits, or of 16 of 32 at half
    // the rate.
    constexpr double kTileStepCycles = 16.0 * 8 * 32 / (0.6 * 1024);
    const double tensor = kTileStepCycles * steps * products * sizes.rows() * sizes.columns() / (16 * 8);
    // Instructions of a warp's step, of two products: reads and turns of the operands, conversions of
    // float32, products.
    const double conversions = !wide ? 0 : (8 + 4 * sizes.row_blocks) * (t.parts == 2 ? 6 : 2);
    // By taps, each column of the weight is read by itself.
    const double reads = (wide ? 4 : 14) + (t.taps == 0 ? 0 : wide ? 6 : 12);
    const double step_issue = 2 * (reads + sizes.row_blocks * (1 + 4 * products) + conversions) + 10;
    constexpr double kIssuedPerCycle = 2.2, kIssuedByWarp = 0.095;
    const double issued = std::min(kIssuedPerCycle, kIssuedByWarp * resident * sizes.warps());
    const double multiply = std::max(tensor, sizes.warps() * steps * step_issue / issued);

    // Loads: what an SM receives from L2, or the copies of a warp, whose number the width decides, and which
    // lines that do not exist take, too.
    const double rows = static_cast<double>(std::min<int64_t>(sizes.rows(), problem.batch));
    const double columns = std::min(sizes.columns(), t.columns);
    const double channel_bytes = static_cast<double>(problem.cin_per_group) * t.element_size;
    // By taps, output channels of a tap that are less than a sector of memory bring it whole.
    constexpr double kSectorBytes = 32;
    const double sectors =
        t.taps == 0 ? 1 : std::max(1.0, kSectorBytes * t.taps / (sizes.columns() * t.element_size));
    const auto load = [channel_bytes](double existing, double lines, int bytes) {
      constexpr double kBytesPerCycle = 24, kCopyCycles = 8, kFourByteCycles = 32, kTwoByteCycles = 28;
      const double copy = bytes == 2 ? kTwoByteCycles : bytes == 4 ? kFourByteCycles : kCopyCycles;
      return channel_bytes * std::max(existing / kBytesPerCycle, lines * copy / (32 * bytes));
    };
    const double loads =
        load(rows, sizes.rows(), t.input_bytes) + load(sectors * columns, sizes.columns(), t.weight_bytes);
    const double stored = rows * columns * t.element_size;
    const double store = stored / (32 * t.store_bytes) * (10 + t.store_bytes);

    // All but the first chunks are waited for, some of the time; nothing hides the begin and the end of a
    // block that has an SM for itself, or with one other, which begins and ends when it does.
    constexpr double kBegin = 1500, kChunkWait = 250, kAlone = 1000;
    const double wait = kBegin + kChunkWait * t.chunks + (resident <= 2 ? kAlone : 0);
    constexpr double kMemoryBytesPerCycle = 1280;
    const double weight = static_cast<double>(t.groups) * t.columns * channel_bytes;
    const double input = static_cast<double>(problem.batch) * static_cast<double>(t.groups) * channel_bytes;
    const double output = static_cast<double>(problem.output_elements()) * t.element_size;
    constexpr double kLaunch = 4000;
    return kLaunch + std::max(rounds * (wait + resident * (std::hypot(multiply, loads) + store)),
                              (weight + input + output) / kMemoryBytesPerCycle);
  }

  void consider(PixelGemmLaunch launch) const {
    const PixelGemmConfig& sizes = launch.sizes();
    launch.shared_bytes = pixel_gemm_shared(sizes, launch.element_size, launch.chunks).bytes;
    launch.shared_limit = static_cast<size_t>(device.shared_bytes_per_block);
    if (launch.shared_bytes > launch.shared_limit) return;
    launch.image_tiles = ceil_div(problem.batch, sizes.rows());
    launch.column_tiles = ceil_div(launch.columns / launch.tap_tiles, sizes.columns());
    if (launch.taps != 0) launch.weight_bytes = tap_bytes(sizes.columns() / launch.taps);
    const double blocks = static_cast<double>(launch.image_tiles) * static_cast<double>(launch.column_tiles) *
                          static_cast<double>(launch.tap_tiles) * static_cast<double>(launch.groups);
    if (blocks > static_cast<double>(kMaxGrid)) return;
    visit(launch, cycles(launch));
  }

  void run() const {
    PixelGemmLaunch launch;
    launch.element_size = static_cast<int>(element_size(problem.dtype));
    launch.parts = operand_parts(problem);
    launch.columns = static_cast<int>(columns_of(problem));
    launch.chunks = static_cast<int>(ceil_div(problem.cin_per_group, launch.chunk_channels()));
    launch.groups = problem.groups;
    // Distances along a dimension of one do not matter.
    const bool channels_together = problem.input_stride.c == 1 || problem.cin_per_group == 1;
    launch.input_bytes = channels_together ? width_of(problem.batch == 1 ? 0 : problem.input_stride.n,
                                                      problem.groups == 1 ? 0 : problem.cin_per_group)
                                           : launch.element_size;
    launch.weight_bytes = weight_follows_outputs()
                              ? width_of(problem.cin() == 1 ? 0 : problem.weight_stride.cin)
                              : launch.element_size;
    launch.taps = taps_of_block();
    if (launch.taps != 0) launch.tap_tiles = problem.h.kernel * problem.w.kernel / launch.taps;
    const bool in_runs = problem.output_channels_last && problem.groups > 1;
    const int64_t run = in_runs                ? problem.cout_per_group
                        : launch.tap_tiles > 1 ? launch.taps
                                               : launch.columns;
    launch.store_bytes = width_of(run);
    for (int config = 0; config < kPixelGemmConfigCount; ++config) {
      launch.config = config;
      consider(launch);
    }
  }
};

}  // namespace

const char* pixel_gemm_obstacle(const Problem& p, const DeviceLimits& device) {
  const char* const obstacle = tensor_core_obstacle(p, device);
  if (obstacle != nullptr) return obstacle;
  if (p.h.input != 1 || p.w.input != 1) return "its input images have one pixel";
  return columns_of(p) < static_cast<double>(kMaxCoordinate) ? nullptr : "its coordinates have 32 bits";
}

void visit_pixel_gemm(const Problem& problem, const DeviceLimits& device, const PixelGemmVisitor& visit) {
  Search{problem, device, visit}.run();
}

}  // namespace convt
