// The plan: which kernel it chooses, that its launches cover every output and stay within the device's
// limits, and which GPUs a library has code for.
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <iterator>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "convt/alignment.h"
#include "convt/plan.h"

namespace {

using convt::Axis;
using convt::DeviceLimits;
using convt::DType;
using convt::Kernel;
using convt::Plan;
using convt::Problem;

struct Device {
  const char* name;
  DeviceLimits limits;
  bool fast_tf32 = true;  // beside its FMA units
};

// Of the CUDA programming guide's table of compute capabilities.
const Device kDevices[] = {
    {"A100", {80, 108, 163 << 10, 164 << 10}},
    {"RTX 3090", {86, 82, 99 << 10, 100 << 10}, false},
    {"L4", {89, 58, 99 << 10, 100 << 10}, false},
    {"H100", {90, 132, 227 << 10, 228 << 10, true}},
    {"B200", {100, 148, 227 << 10, 228 << 10}},
    {"RTX 5090", {120, 170, 99 << 10, 100 << 10}, false},
    {"H100, built for 9.0", {90, 132, 227 << 10, 228 << 10}},
};
const DeviceLimits& kH100 = kDevices[3].limits;

Axis make_axis(int64_t input, int64_t kernel, int64_t stride, int64_t padding = 0, int64_t output_padding = 0,
               int64_t dilation = 1) {
  Axis axis;
  axis.input = input;
  axis.kernel = kernel;
  axis.stride = stride;
  axis.padding = padding;
  axis.output_padding = output_padding;
  axis.dilation = dilation;
  axis.output = axis.full_output();
  return axis;
}

Problem make_problem(DType dtype, int64_t batch, int64_t cin, int64_t cout, Axis h, Axis w,
                     int64_t groups = 1, bool channels_last = false) {
  Problem p;
  p.dtype = dtype;
  p.batch = batch;
  p.groups = groups;
  p.cin_per_group = cin / groups;
  p.cout_per_group = cout / groups;
  p.h = h;
  p.w = w;
  p.output_channels_last = channels_last;
  if (channels_last) {
    p.input_stride = {h.input * w.input * cin, 1, w.input * cin, cin};
  } else {
    p.input_stride = {cin * h.input * w.input, h.input * w.input, w.input, 1};
  }
  p.weight_stride = {p.cout_per_group * h.kernel * w.kernel, h.kernel * w.kernel, w.kernel, 1};
  return p;
}

// Gives the weight channels_last strides.
void lay_channels_last(Problem& p) {
  const int64_t couts = p.cout_per_group;
  p.weight_stride = {couts * p.h.kernel * p.w.kernel, 1, couts * p.w.kernel, couts};
}

std::string describe(const Problem& p) {
  std::string text = "batch " + std::to_string(p.batch) + ", groups " + std::to_string(p.groups) +
                     ", channels " + std::to_string(p.cin()) + " to " + std::to_string(p.cout());
  for (const Axis* axis : {&p.h, &p.w}) {
    text += ", input " + std::to_string(axis->input) + " kernel " + std::to_string(axis->kernel) +
            " stride " + std::to_string(axis->stride) + " padding " + std::to_string(axis->padding) +
            " dilation " + std::to_string(axis->dilation);
  }
  return text;
}

void check_bases(const Axis& axis, int first_base, int bases, const std::string& context) {
  const auto base_of = [&](int64_t output) { return (output + axis.padding) / axis.stride; };
  CHECK(first_base == base_of(0), context);
  CHECK(first_base + bases - 1 == base_of(axis.output - 1), context);
}

// Every output is computed by exactly one block, and every product by that block.
void check_coverage(const Problem& p, const convt::TileSimtLaunch& launch, const std::string& context) {
  const convt::TileSimtConfig& config = convt::kTileSimtConfigs[launch.config];
  check_bases(p.h, launch.first_base_h, launch.bases_h, context);
  check_bases(p.w, launch.first_base_w, launch.bases_w, context);
  const auto covers = [&](int64_t blocks, int64_t each, int64_t all) {
    CHECK(each >= 1 && blocks * each >= all && (blocks - 1) * each < all, context);
  };
  covers(launch.tiles_cout, config.couts(), p.cout_per_group);
  covers(launch.tiles_w, launch.cols, launch.bases_w);
  covers(launch.tiles_h, launch.rows, launch.bases_h);
  covers(launch.tiles_n, launch.images, p.batch);
  covers(launch.row_phase_splits, launch.row_phases, p.h.stride);
  covers(launch.channel_chunks, launch.channel_chunk, p.cin_per_group);
  CHECK(launch.groups == p.groups, context);
  CHECK(launch.images * launch.rows * launch.cols <= config.pixels(), context);
  CHECK(launch.tap_chunk >= 1 && launch.tap_chunk <= p.h.kernel * p.w.kernel, context);
  CHECK(launch.phases_h.stride == p.h.stride && launch.phases_w.stride == p.w.stride, context);
  CHECK(launch.phases_h.dilation == p.h.dilation && launch.phases_w.dilation == p.w.dilation, context);
  CHECK(launch.phases_h.kernel == p.h.kernel && launch.phases_w.kernel == p.w.kernel, context);
}

void check_limits(const Problem& p, const convt::TileSimtLaunch& launch, const DeviceLimits& device,
                  const std::string& context) {
  const convt::TileSimtConfig& config = convt::kTileSimtConfigs[launch.config];
  const auto shared = convt::tile_simt_shared(
      launch, config.couts(), static_cast<int>(convt::element_size(p.dtype)), p.output_channels_last);
  CHECK(shared.bytes == launch.shared_bytes, context);
  CHECK(static_cast<int64_t>(launch.shared_bytes) <= device.shared_bytes_per_block, context);
  CHECK(shared.input_offset % 16 == 0 && shared.weights_offset % 16 == 0 && shared.output_offset % 16 == 0,
        context);
  CHECK(shared.plane % 2 == 1, context);
  CHECK(shared.halo_h == convt::largest_shift(launch.phases_h), context);
  CHECK(launch.blocks() >= 1 && launch.blocks() <= 2147483647, context);
  CHECK(launch.channel_chunk % config.channel_vector == 0, context);
  CHECK(!launch.vector_input || (p.input_stride.c == 1 && config.channel_vector > 1), context);
  CHECK(p.h.kernel * p.w.kernel <= convt::kTileSimtMaxTaps, context);
}

// Every tap carries its input to each of its outputs through exactly one offset.
void check_taps(const Axis& axis, const convt::AxisTaps& taps, int points, const std::string& context) {
  CHECK(taps.inputs == 1 || (taps.inputs == 2 && axis.stride == 1), context);
  const int64_t stride = taps.inputs * axis.stride;
  CHECK(taps.stride == stride, context);
  CHECK(points * stride >= axis.output + taps.crop, context);
  CHECK((int64_t{points} - 1) * stride < axis.output + taps.crop, context);
  CHECK(taps.crop >= 0 && taps.crop < axis.stride && taps.sets * taps.set_size >= stride, context);
  for (int r = 0; r < stride; ++r) {
    const int set = r / taps.set_size;
    int64_t found = 0, expected = 0;
    for (int i = taps.begin[set]; i < taps.begin[set + 1]; ++i) {
      const int offset = taps.offset[i];
      const int point = taps.point_of(offset);
      CHECK(point * taps.inputs + taps.input_of(offset) == offset && taps.input_of(offset) >= 0 &&
                taps.input_of(offset) < taps.inputs,
            context);
      CHECK(point >= taps.least_offset && point <= taps.least_offset + taps.span, context);
      const bool listed = (taps.phases[i] >> (r - set * taps.set_size) & 1) != 0;
      const int tap = taps.tap(r, offset, taps.dilation);
      CHECK(listed == (tap >= 0), context);
      // Output o = stride * q + r - crop sits at o + padding; input inputs * q + offset reaches it through
      // this tap.
      if (listed) {
        CHECK(offset * axis.stride + tap * axis.dilation == r - taps.crop + axis.padding, context);
        ++found;
      }
    }
    for (int64_t k = 0; k < axis.kernel; ++k) {
      expected += (r - taps.crop + axis.padding - k * axis.dilation) % axis.stride == 0;
    }
    CHECK(found == expected, context);
  }
}

// What tile_mma and tile_wgmma have in common.
void check_products(const Problem& p, const convt::TileMmaLaunch& launch, const DeviceLimits& device,
                    const convt::TileMmaShared& shared, const std::string& context) {
  check_taps(p.h, launch.taps_h, launch.grid_h, context);
  check_taps(p.w, launch.taps_w, launch.grid_w, context);
  const auto covers = [&](int64_t blocks, int64_t each, int64_t all) {
    CHECK(each >= 1 && blocks * each >= all && (blocks - 1) * each < all, context);
  };
  covers(launch.tiles_m, launch.row_tiles_per_block, launch.row_tiles());
  covers(launch.tiles_w, launch.cols, launch.grid_w);
  covers(launch.tiles_h, launch.rows, launch.grid_h);
  covers(launch.tiles_n, launch.images, p.batch);
  covers(launch.cout_tiles, launch.couts(), p.cout_per_group);
  CHECK(launch.splits * launch.chunks * launch.chunk_steps >= launch.channel_steps, context);
  CHECK(launch.step_channels() * launch.channel_steps >= p.cin_per_group, context);
  CHECK(launch.element_size == convt::element_size(p.dtype), context);
  const bool splits = p.dtype == DType::kFloat32 && p.float32_precision == convt::Float32Precision::kIeee;
  CHECK(launch.parts == (splits ? 2 : 1), context);
  CHECK(launch.groups == p.groups, context);
  CHECK(launch.grid >= 1 && launch.grid <= launch.works() && launch.works() <= 2147483647, context);
  CHECK(shared.bytes == launch.shared_bytes, context);
  CHECK(static_cast<int64_t>(shared.bytes) <= device.shared_bytes_per_block, context);
  CHECK(shared.plane % 2 == 1 && shared.planes_offset % 16 == 0 && shared.rows_offset % 16 == 0 &&
            shared.output_offset % 16 == 0 && shared.output_bytes % 16 == 0,
        context);
  CHECK(launch.workspace_bytes >= launch.packed_bytes && launch.packed_bytes % 16 == 0, context);
  // What is read at once lies side by side.
  const int64_t neighbour = launch.input_channels_last ? p.input_stride.c : p.input_stride.w;
  CHECK(launch.load_vector == 1 || neighbour == 1, context);
}

void check_tile_mma(const Problem& p, const convt::TileMmaLaunch& launch, const DeviceLimits& device,
                    const std::string& context) {
  const convt::TileMmaConfig& config = convt::kTileMmaConfigs[launch.config];
  check_products(p, launch, device, convt::tile_mma_shared(launch, config, p.output_channels_last), context);
  CHECK(launch.step_channels() * (launch.channel_steps - 1) < p.cin_per_group, context);
  CHECK(launch.element_size == 2 || config.takes_float32(), context);
  CHECK(launch.images * launch.rows * launch.cols <= config.pixels(), context);
  const int rows = launch.couts() * launch.taps_h.set_size * launch.taps_w.set_size;
  CHECK(rows <= config.rows() && launch.taps_h.set_size <= 32 && launch.taps_w.set_size <= 32, context);
  CHECK(launch.prefetches || (launch.chunks == 1 && launch.grid == launch.works()), context);
}

void check_tile_wgmma(const Problem& p, const convt::TileWgmmaLaunch& launch, const DeviceLimits& device,
                      const std::string& context) {
  const convt::TileWgmmaConfig& config = convt::kTileWgmmaConfigs[launch.config];
  const convt::TileWgmmaShared shared = convt::tile_wgmma_shared(launch, p.output_channels_last);
  CHECK(config.takes(launch.parts), context);
  check_products(p, launch, device, shared, context);
  CHECK(device.has_wgmma && launch.splits == 1 && launch.grid <= device.sm_count, context);
  CHECK(launch.channel_steps == launch.chunks * launch.chunk_steps && launch.packs_blocks, context);
  // The last pixel's number is one of the tile's, and two pixels that are stored together lie in one row.
  const bool by_tiles = launch.division == convt::TileWgmmaDivision::kTiles;
  const bool by_pixels = launch.division == convt::TileWgmmaDivision::kPixels;
  const int last =
      (launch.images - 1) * shared.image_numbers + (launch.rows - 1) * shared.row_numbers + launch.cols;
  CHECK(last <= config.pixels * (by_pixels ? convt::kTileWgmmaGroups : 1), context);
  const int inputs = launch.taps_w.inputs;
  CHECK(shared.second_inputs == launch.images * shared.image_pixels, context);
  CHECK(shared.plane < 1 << 14 && shared.plane >= inputs * shared.second_inputs, context);
  CHECK(launch.taps_h.inputs == 1 && (inputs == 1 || !launch.flat_rows), context);
  CHECK(shared.image_numbers % shared.row_numbers == 0, context);
  CHECK(launch.flat_rows || shared.row_numbers % 2 == 0, context);
  // What products read past the planes is the block's.
  const size_t planes_end =
      shared.planes_offset + static_cast<size_t>(launch.stages) * convt::plane_bytes(shared, launch);
  CHECK(planes_end + convt::kTileWgmmaOverread <= shared.bytes, context);
  CHECK(launch.couts() * launch.taps_w.set_size == convt::kTileWgmmaRows && launch.taps_h.set_size == 1,
        context);
  CHECK(launch.phases_in_halves == (launch.taps_w.set_size == 2), context);
  // A block of 16 rows holds both phases: where one multiplies an input that only the other sees, outputs are
  // repaired.
  for (int i = 0; launch.phases_in_halves && i < launch.taps_w.begin[launch.taps_w.sets]; ++i)
    CHECK(launch.taps_w.phases[i] == 3 || launch.repairs, context);
  CHECK(launch.workspace_bytes == launch.packed_bytes + (launch.repairs ? 4 : 0), context);
  CHECK(launch.stages >= 2 && launch.row_stages >= (launch.input_channels_last ? 0 : 2), context);
  // A warpgroup must see each turn of the ring, and keep no tile that the other waits for.
  CHECK(!by_tiles || launch.chunks < launch.stages, context);
  if (launch.keeps_weight) {
    // All of it, for every piece of work.
    const int offsets = launch.taps_h.begin[launch.taps_h.sets] * launch.taps_w.begin[launch.taps_w.sets];
    CHECK(launch.tiles_m == 1 && launch.groups == 1, context);
    CHECK(launch.weight_steps == offsets * launch.cout_tiles * launch.channel_steps, context);
    CHECK(launch.weight_streams() == 1 && (by_tiles || by_pixels), context);
  } else {
    // One buffer is multiplied, one waits for its products: at least one more is filled meanwhile.
    CHECK(launch.weight_stages >= 3 && launch.weight_steps <= convt::kTileWgmmaGroupSteps, context);
  }
  // A cluster's blocks share the weight of each turn, and take as many turns.
  const int64_t pixel_tiles = launch.tiles_w * launch.tiles_h * launch.tiles_n;
  CHECK(launch.cluster == 1 || (launch.cluster == 2 && !launch.keeps_weight), context);
  CHECK(pixel_tiles % launch.cluster == 0 && launch.grid % launch.cluster == 0, context);
}

// Every output is stored by exactly one thread, which has the filter as constants and walks down whole bases.
void check_rolling(const Problem& p, const convt::DepthwiseLaunch& launch, const std::string& context) {
  const convt::RollingFilter& filter = convt::kRollingFilters[launch.filter];
  CHECK(p.cin_per_group == 1, context);
  for (const Axis* axis : {&p.h, &p.w}) {
    CHECK(axis->kernel == filter.kernel && axis->stride == filter.stride && axis->dilation == 1, context);
  }
  CHECK(p.w.padding % filter.stride == filter.phase, context);
  CHECK(launch.vector % filter.stride == 0 && p.w.output % launch.vector == 0, context);
  if (p.output_channels_last) {
    const convt::ActivationStrides& in = p.input_stride;
    CHECK(launch.vector == filter.stride && !launch.loads_vectors && p.cout_per_group == 1, context);
    CHECK(launch.channels_per_thread == convt::kDepthwiseVector && in.c == 1, context);
    for (const int64_t distance : {p.cout(), in.n, in.h, in.w})
      CHECK(distance % convt::kDepthwiseVector == 0, context);
  } else {
    CHECK(launch.vector * convt::element_size(p.dtype) == convt::kRollingVectorBytes, context);
    CHECK(launch.channels_per_thread == 1 && (p.w.input == 1 || p.input_stride.w == 1), context);
  }
  const int64_t first_base = p.h.padding / filter.stride, last_base = first_base + launch.row_sets - 1;
  CHECK(launch.rows == filter.stride, context);
  CHECK(last_base == (p.h.output - 1 + p.h.padding) / filter.stride, context);
  if (launch.loads_vectors) {
    // The inputs of a thread whose outputs begin at V * i are those from V * i / stride on.
    const int64_t columns = launch.vector / filter.stride;
    CHECK(columns > 1 && p.w.output <= p.w.input * filter.stride, context);
    CHECK(filter.same_padding() == p.w.padding, context);
    CHECK(p.h.input == 1 || p.input_stride.h % columns == 0, context);
    CHECK(p.cin() == 1 || p.input_stride.c % columns == 0, context);
    CHECK(p.batch == 1 || p.input_stride.n % columns == 0, context);
  }
}

// Every output is computed by exactly one thread, from the inputs of its phase.
void check_depthwise(const Problem& p, const convt::DepthwiseLaunch& launch, const DeviceLimits& device,
                     const std::string& context) {
  const auto covers = [&](int64_t blocks, int64_t each, int64_t all) {
    CHECK(each >= 1 && blocks * each >= all && (blocks - 1) * each < all, context);
  };
  const bool rolling = launch.mapping == convt::DepthwiseMapping::kRolling;
  const int64_t products =
      p.cin_per_group * convt::most_taps(launch.phases_h) * convt::most_taps(launch.phases_w);
  CHECK(launch.long_sums == (products > convt::kMaxSummedProducts), context);
  CHECK(launch.phases_h.stride == p.h.stride && launch.phases_w.stride == p.w.stride, context);
  CHECK(launch.blocks >= 1 && launch.blocks <= 2147483647, context);
  if (rolling) {
    check_rolling(p, launch, context);
  } else {
    CHECK(launch.vector == 1 || launch.vector == convt::kDepthwiseVector, context);
    CHECK(launch.rows == 1 || launch.rows == convt::kDepthwiseRows, context);
    const int64_t step = launch.phases_h.shift_step, rows = (p.h.output + p.h.stride - 1) / p.h.stride;
    CHECK(launch.row_sets % step == 0, context);
    covers(launch.row_sets / step, launch.rows * step, rows);
    CHECK((rows + launch.rows * step) * p.h.stride < int64_t{1} << 31, context);
  }
  if (launch.mapping != convt::DepthwiseMapping::kChannels) {
    CHECK(p.w.output % launch.vector == 0, context);
    // Neighbouring columns read neighbouring inputs.
    CHECK(launch.vector == 1 || rolling || (launch.phases_w.shift_step == 1 && !p.output_channels_last),
          context);
    covers(launch.runs, launch.sets_per_thread, launch.row_sets);
    const int64_t phases = rolling ? 1 : p.h.stride;
    CHECK(launch.threads == p.w.output / launch.vector * phases * launch.runs * launch.channel_runs * p.batch,
          context);
    covers(launch.channel_runs, launch.channels_per_thread, p.cout());
    covers(launch.blocks, convt::kDepthwiseThreads, launch.threads);
    return;
  }
  CHECK(p.output_channels_last, context);
  const bool one_to_one = p.cin_per_group == 1 && p.cout_per_group == 1;
  CHECK(launch.vector == 1 || (launch.shares_input ? p.cout_per_group % launch.vector == 0 : one_to_one),
        context);
  const int64_t channels = int64_t{launch.lanes} * launch.vector;
  covers(launch.channel_tiles, channels, p.cout());
  // A block can also take one channel a thread.
  CHECK(p.cout() % launch.vector == 0 && channels <= convt::kDepthwiseThreads, context);
  CHECK(launch.items == p.w.output * p.h.stride * launch.row_sets, context);
  CHECK(launch.items_at_once >= 1 && launch.items_at_once * launch.lanes <= convt::kDepthwiseThreads,
        context);
  covers(launch.blocks_an_image, int64_t{launch.passes} * launch.items_at_once, launch.items);
  CHECK(launch.blocks == launch.blocks_an_image * launch.channel_tiles * p.batch, context);
  CHECK(launch.pitch >= channels && launch.pitch % launch.vector == 0, context);
  const int64_t weights = p.cin_per_group * p.h.kernel * p.w.kernel * launch.pitch;
  CHECK(static_cast<int64_t>(launch.shared_bytes) == 4 * weights, context);
  CHECK(launch.shared_bytes <= 48 << 10 && 4 * weights <= device.shared_bytes_per_block, context);
}

// Every output is gathered once, from products of a strip that holds all the inputs of its column.
void check_thin(const Problem& p, const convt::ThinLaunch& launch, const DeviceLimits& device,
                const std::string& context) {
  const auto covers = [&](int64_t blocks, int64_t each, int64_t all) {
    CHECK(each >= 1 && blocks * each >= all && (blocks - 1) * each < all, context);
  };
  check_taps(p.h, launch.taps_h, launch.grid_h, context);
  // A row of the product holds one phase of a set: none may multiply an input that only another sees.
  CHECK(launch.taps_h.set_size <= convt::kMaxSetPhases, context);
  const uint32_t all_phases = ~0u >> (convt::kMaxSetPhases - launch.taps_h.set_size);
  for (int i = 0; i < launch.taps_h.begin[launch.taps_h.sets]; ++i)
    CHECK(launch.taps_h.phases[i] == all_phases, context);
  covers(launch.segments, launch.segment_rows, launch.grid_h);
  covers(launch.image_tiles, launch.images, p.batch);
  covers(launch.cout_tiles, launch.couts, p.cout_per_group);
  CHECK(launch.groups == p.groups && launch.blocks() <= 2147483647, context);
  CHECK(16 * launch.all_row_blocks() >= launch.set_rows(), context);
  CHECK(launch.set_rows() <= convt::kThinMaxRows && launch.warps_m <= convt::kThinMaxWarpsM, context);
  const int max_warps = launch.walks ? convt::thin_walk_threads(launch.parts, device.compute_capability) / 32
                                     : convt::kThinMaxWarps;
  CHECK(launch.warps() <= max_warps && launch.row_blocks <= convt::kThinMostRowBlocks, context);
  if (launch.walks) {
    // A row is read for all offsets at once.
    const int offsets = launch.taps_h.offsets(0);
    CHECK(launch.taps_h.sets == 1 && launch.taps_h.span == offsets - 1 && launch.rows == 1, context);
    CHECK(convt::thin_may_walk(launch.parts, launch.row_blocks, offsets), context);
    CHECK(launch.along_w || launch.along_c, context);
  }
  const int64_t chunk_channels = convt::kThinChunkSteps * (32 / launch.element_size);
  covers(launch.chunks, chunk_channels, p.cin_per_group);
  const bool splits = p.dtype == DType::kFloat32 && p.float32_precision == convt::Float32Precision::kIeee;
  CHECK(launch.parts == (splits ? 2 : 1) && launch.element_size == convt::element_size(p.dtype), context);
  const int width = convt::kThinPixels * launch.groups_w;
  CHECK(launch.images * launch.cols <= width && launch.pitch >= width && launch.pitch % 4 == 0, context);
  CHECK(launch.images == 1 || (launch.cols == p.w.input && launch.strips == 1 && launch.origin_w == 0),
        context);
  if (launch.along_w) {
    CHECK(p.w.input % 4 == 0 && launch.origin_w % 4 == 0 && launch.strip_step % 4 == 0, context);
  }
  CHECK(launch.gather_columns % 32 == 0 && launch.gather_columns <= 32 * launch.warps(), context);
  CHECK(convt::thin_shared(launch).bytes == launch.shared_bytes, context);
  CHECK(static_cast<int64_t>(launch.shared_bytes) <= device.shared_bytes_per_block, context);
  const int64_t end_base = launch.first_base_w + int64_t{launch.bases_w};
  for (int64_t strip = 0; strip < launch.strips; ++strip) {
    const int64_t first_col = launch.origin_w + strip * launch.strip_step;
    const int64_t begin = strip == 0 ? launch.first_base_w : first_col + launch.strip_halo;
    const bool last = strip + 1 == launch.strips;
    const int64_t end = last ? end_base : first_col + launch.strip_step + launch.strip_halo;
    const int64_t first_input = std::max<int64_t>(0, begin - launch.span_w);
    const int64_t end_input = std::min(end, p.w.input);
    CHECK(begin < end && end <= end_base, context);
    const int64_t first_output = std::max<int64_t>(begin * p.w.stride - p.w.padding, 0);
    const int64_t outputs = std::min(end * p.w.stride - p.w.padding, p.w.output) - first_output;
    const int64_t gathered = outputs * launch.images * (p.output_channels_last ? launch.couts : 1);
    CHECK(!launch.walks || gathered <= launch.columns, context);
    CHECK(first_input >= end_input ||
              (first_input >= first_col && end_input <= first_col + int64_t{launch.cols}),
          context);
  }
}

// The tiles of one axis: every output is in one of them, and the inputs that it sees in the tile's window.
void check_windows(const Axis& axis, int64_t tiles, int outputs, int origin, int window, int align,
                   const std::string& context) {
  const auto phases = convt::make_axis_phases<int64_t>(axis.stride, axis.dilation, axis.kernel);
  const int64_t span = convt::largest_shift(phases);
  CHECK(window >= 1 && window <= axis.input, context);
  CHECK(origin <= 0 && origin + axis.padding >= 0 && origin + tiles * outputs >= axis.output, context);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t first = std::max<int64_t>(origin + tile * outputs, 0);
    const int64_t end = std::min(origin + (tile + 1) * outputs, axis.output);
    if (first >= end) continue;
    int64_t begin = (origin + tile * outputs + axis.padding) / axis.stride - span;
    begin = std::min(std::max<int64_t>(begin, 0), axis.input - window);
    begin -= begin % align;
    const int64_t first_input = std::max<int64_t>((first + axis.padding) / axis.stride - span, 0);
    const int64_t last_input = std::min((end - 1 + axis.padding) / axis.stride, axis.input - 1);
    CHECK(first_input > last_input || (begin <= first_input && last_input < begin + window), context);
  }
}

void check_col2im(const Problem& p, const convt::Col2imLaunch& launch, const DeviceLimits& device,
                  const std::string& context) {
  const auto covers = [&](int64_t blocks, int64_t each, int64_t all) {
    CHECK(each >= 1 && blocks * each >= all && (blocks - 1) * each < all, context);
  };
  CHECK(device.has_wgmma && convt::element_size(p.dtype) == 2, context);
  const int taps = static_cast<int>(p.h.kernel * p.w.kernel), rows = launch.couts * taps;
  const int vector = launch.weight_bytes / 2;
  const bool by_cout = launch.row_tap == 1;
  CHECK(launch.row_cout == (by_cout ? taps : 1) && (by_cout || launch.row_tap == launch.couts), context);
  // Copies of the weight begin at whole vectors; those of a tap's output channels are whole vectors.
  int before = 0;
  for (int first = 0; first < 8 * rows; first += rows) before = std::max(before, first % vector);
  CHECK(by_cout ? rows + before <= convt::kCol2imRows
                : rows <= convt::kCol2imRows && launch.couts % vector == 0,
        context);
  CHECK(p.weight_stride.cin % vector == 0, context);
  covers(launch.cout_tiles, launch.tile_couts(), p.cout_per_group);
  covers(launch.chunks, convt::kCol2imChunk, p.cin_per_group);
  CHECK(launch.groups == p.groups && launch.stages >= 2, context);
  CHECK(launch.grid >= 1 && launch.grid <= std::min<int64_t>(launch.works(), device.sm_count), context);
  CHECK(convt::col2im_shared(launch).bytes == launch.shared_bytes, context);
  CHECK(static_cast<int64_t>(launch.shared_bytes) <= device.shared_bytes_per_block, context);
  const int pixels = launch.input_channels_last ? 1 : launch.input_bytes / 2;
  if (launch.flat) {
    // Every output sees the pixel of its base at most.
    for (const Axis* axis : {&p.h, &p.w}) {
      CHECK((axis->kernel - 1) * axis->dilation < axis->stride, context);
      CHECK((axis->output - 1 + axis->padding) / axis->stride < axis->input, context);
    }
    CHECK(p.w.stride % 2 == 0 && launch.images == 1, context);
    covers(launch.tiles_w, launch.pixels(), p.batch * p.h.input * p.w.input);
    CHECK(p.h.input * p.w.input % pixels == 0, context);
    return;
  }
  CHECK(launch.images * launch.window_h * launch.window_w <= launch.pixels(), context);
  covers(launch.image_tiles, launch.images, p.batch);
  check_windows(p.h, launch.tiles_h, launch.rows_out, launch.origin_h, launch.window_h, 1, context);
  check_windows(p.w, launch.tiles_w, launch.cols_out, launch.origin_w, launch.window_w, launch.align_w,
                context);
  const bool whole = launch.window_h == p.h.input && launch.window_w == p.w.input;
  CHECK(launch.images == 1 || (launch.tiles_h == 1 && launch.tiles_w == 1), context);
  CHECK(launch.window_w % pixels == 0 || (whole && launch.window_h * launch.window_w % pixels == 0), context);
  CHECK(launch.window_w == p.w.input || launch.align_w % pixels == 0, context);
}

// Halos hold what taps read, and begin where copies may.
void check_halos(const Problem& p, const convt::ImplicitGemmLaunch& launch, const DeviceLimits& device,
                 const std::string& context) {
  const convt::ImplicitGemmConfig& sizes = launch.sizes();
  const convt::ActivationStrides& in = p.input_stride;
  const int64_t w = p.w.input, vector = launch.halo_lines ? 1 : 16 / launch.element_size;
  CHECK(launch.element_size == 4 && launch.halo_lines == p.output_channels_last, context);
  CHECK(!sizes.alternates && !launch.blocks && !launch.turns_input && launch.turns_weight, context);
  CHECK(launch.box.count == 0 && launch.splits == 1 && launch.halo_stages >= 2, context);
  // Two thread blocks are on a multiprocessor at a time, each with some shared memory of its own.
  const int64_t reserved = device.shared_bytes_per_sm - device.shared_bytes_per_block;
  CHECK(!sizes.single ||
            2 * (static_cast<int64_t>(launch.shared_bytes) + reserved) <= device.shared_bytes_per_sm,
        context);
  CHECK(sizes.fits_halos(launch.phases_together, launch.parts), context);
  CHECK(launch.images * launch.rows * launch.cols <= sizes.pixels, context);
  // What is copied at once.
  CHECK(launch.halo_cols % vector == 0 && launch.halo_cols <= 256, context);
  CHECK(launch.halo_rows >= 1 && launch.rows % launch.halo_rows == 0, context);
  CHECK(launch.cluster_rows == 1, context);
  CHECK(launch.halo_rows == 1 || launch.halo_pitch > 0, context);
  CHECK(!launch.halo_lines || (launch.halo_pitch == 0 && !launch.flat && launch.phases_together == 1),
        context);
  if (launch.halo_pitch > 0) {
    CHECK(p.h.input == 1 || in.h == w, context);
    CHECK(launch.halo_pitch % vector == 0 && launch.tiles_w == 1, context);
    CHECK(launch.halo_pitch == (launch.flat ? launch.cols : w) && (!launch.flat || launch.halo_rows == 1),
          context);
  }
  if (sizes.row_taps > 1) {
    CHECK(p.w.stride == 1 && p.w.dilation == 1 && p.w.kernel == sizes.row_taps, context);
    CHECK(launch.images == 1 && launch.rows <= sizes.groups(), context);
    CHECK(launch.cols == 64 - (sizes.row_taps - 1) && launch.halo_stages > sizes.groups(), context);
    CHECK(launch.phases_h.shift_step == 1 || most_taps(launch.phases_h) == 1, context);
    // A warpgroup reads 64 columns, up to three behind where copies may begin.
    CHECK(launch.halo_cols == (launch.halo_lines ? 64 : 72) && launch.cluster_pixels == 1, context);
  }
  if (launch.keeps_weight) {
    // All works of a thread block take the same weight.
    CHECK(sizes.row_taps > 1 && p.groups == 1 && p.h.stride == 1, context);
    CHECK(launch.stages == p.h.kernel * launch.chunks, context);
    CHECK(launch.grid % launch.cout_tiles == 0 || launch.grid == launch.works(), context);
  } else {
    CHECK(launch.stages <= 8, context);
  }
  for (int first = 0; first < p.w.stride; first += launch.phases_together) {
    for (const int64_t place : {int64_t{0}, (launch.tiles_w - 1) * launch.cols}) {
      int64_t begin = std::numeric_limits<int64_t>::max(), end = std::numeric_limits<int64_t>::min();
      for (int phase = first; phase < first + launch.phases_together; ++phase) {
        for (int64_t k = 0; k < p.w.kernel; ++k) {
          // Output place * stride + phase, and the input that this tap brings there.
          const int64_t from = phase + p.w.padding - k * p.w.dilation;
          if ((from % p.w.stride + p.w.stride) % p.w.stride != 0) continue;
          const int64_t at = place + (from - (from % p.w.stride + p.w.stride) % p.w.stride) / p.w.stride;
          begin = std::min(begin, at);
          end = std::max(end, at + launch.cols);
        }
      }
      if (end < begin) continue;
      begin -= (begin % vector + vector) % vector;
      CHECK(end + int64_t{launch.halo_rows - 1} * launch.halo_pitch - begin <= launch.halo_cols, context);
    }
  }
}

// Outputs that leave in runs: bulk copies take whole pieces of 16 bytes, from such places to such places.
void check_runs(const Problem& p, const convt::ImplicitGemmLaunch& launch, const std::string& context) {
  const int64_t w = p.w.input, plane = p.h.input * w, fold = launch.fold(), fold_w = launch.fold_w;
  CHECK(launch.flat && !launch.halo_lines && launch.parts == 1, context);
  CHECK(launch.phases() == 1 && launch.phases_together == 1 && fold_w >= 2, context);
  CHECK(p.h.output == p.h.input && p.w.output == w, context);  // without rows or columns between them
  CHECK(convt::kHaloGemmRunColumns % fold == 0 && launch.sizes().rows % (2 * convt::kHaloGemmRunColumns) == 0,
        context);
  CHECK(convt::halo_gemm_run_pitch(launch) % 16 == 0 && plane * fold % 4 == 0, context);
  CHECK(convt::implicit_gemm_shared(launch).output_bytes * static_cast<size_t>(launch.sizes().groups()) >=
            2 * convt::halo_gemm_run_bytes(launch),
        context);
  const int64_t span = int64_t{launch.rows} * launch.cols;
  for (int64_t first = 0; first < plane; first += span) {
    const int64_t end = std::min(first + span, plane);
    for (int64_t at = first; at < end;) {
      // To the end of the row, of a row of each phase along H; whole rows are runs of all of them.
      const int64_t next = std::min((at / w + 1) * w, end);
      const bool whole = next - at == w || launch.fold_h == 1;
      const int64_t of_pixel = whole ? fold : fold_w;
      CHECK((at - first) * fold % 4 == 0 || whole, context);
      CHECK(whole || (at % w * fold_w % 4 == 0 && (next - at) * of_pixel % 4 == 0), context);
      CHECK(!whole || (at * of_pixel % 4 == 0 && next * of_pixel % 4 == 0) || end - first == plane, context);
      at = next;
    }
  }
}

void check_implicit_gemm(const Problem& whole, const convt::ImplicitGemmLaunch& launch,
                         const DeviceLimits& device, const std::string& context) {
  // Folded phases are as many in every row of a product, and leave nothing over.
  CHECK(64 % launch.fold() == 0 && (launch.fold() == 1 || !whole.output_channels_last), context);
  CHECK(launch.fold() == 1 || launch.fold_w * launch.element_size >= 4, context);
  for (const auto& [axis, fold] : {std::pair{&whole.h, launch.fold_h}, {&whole.w, launch.fold_w}}) {
    for (const int64_t size : {axis->kernel, axis->stride, axis->padding, axis->output})
      CHECK(size % fold == 0 && (fold == 1 || axis->dilation == 1), context);
  }
  CHECK(whole.output_channels_last || whole.w.output % launch.store_elements == 0, context);
  const Problem p = convt::folded(whole, launch.fold_h, launch.fold_w);
  CHECK(p.output_elements() == whole.output_elements(), context);
  const auto covers = [&](int64_t blocks, int64_t each, int64_t all) {
    CHECK(each >= 1 && blocks * each >= all && (blocks - 1) * each < all, context);
  };
  const int size = launch.element_size, vector = 16 / size;
  const convt::ImplicitGemmConfig& sizes = launch.sizes();
  CHECK(device.has_wgmma && size == convt::element_size(p.dtype), context);
  const bool splits = size == 4 && p.float32_precision == convt::Float32Precision::kIeee;
  CHECK(launch.parts == (splits ? 2 : 1), context);
  CHECK(!splits || launch.halos || (launch.turns_input && launch.turns_weight && sizes.columns() <= 128),
        context);
  if (launch.halos) check_halos(p, launch, device, context);
  if (launch.halo_runs) check_runs(p, launch, context);
  // Registers for the sums of two phases of float32, or of split operands, are not there.
  CHECK(!sizes.alternates || (!splits && (size == 2 || launch.phases_together == 1)), context);
  covers(launch.cout_tiles, sizes.rows, p.cout_per_group);
  covers(launch.chunks, launch.chunk(), p.cin_per_group);
  if (launch.halos && launch.flat) {
    covers(launch.places_h, launch.places_w, p.h.input * p.w.input);
  } else {
    covers(launch.places_h, p.h.stride, p.h.output);
    covers(launch.places_w, p.w.stride, p.w.output);
  }
  CHECK(launch.groups == p.groups && launch.stages >= 2, context);
  // Whole clusters, as many as the device holds at a time.
  CHECK(launch.grid % launch.cluster() == 0 && launch.grid >= launch.cluster(), context);
  CHECK(launch.grid <= device.sm_count * (sizes.single ? 2 : 1), context);
  CHECK(launch.grid / launch.cluster() <= launch.works(), context);
  CHECK(convt::implicit_gemm_shared(launch).bytes == launch.shared_bytes, context);
  // Blocks that divide channels have some each, do one piece of work and have room for what they take over.
  CHECK(launch.splits >= 1 && launch.splits <= std::min(launch.chunks, 8), context);
  CHECK(launch.splits == 1 ||
            (launch.cluster() == launch.splits && launch.phases_together == 1 && !sizes.alternates &&
             !launch.blocks && launch.grid == launch.works() * launch.splits),
        context);
  CHECK(convt::implicit_gemm_split_bytes(launch) <= convt::implicit_gemm_shared(launch).output, context);
  CHECK(static_cast<int64_t>(launch.shared_bytes) <= device.shared_bytes_per_block, context);
  const convt::ImplicitGemmBox& box = launch.box;
  if (box.count > 0) {
    // Each warp has whole output channels, and all their phases; a lane two neighbouring places of a row.
    CHECK(launch.fold_w >= 2 && box.product_rows() % launch.fold() == 0 && box.cols % 2 == 0, context);
    CHECK(launch.phases() == 1 && launch.phases_together == 1, context);
    CHECK(!sizes.alternates && launch.splits == 1, context);
    CHECK(p.groups == 1 || p.cout_per_group % box.product_rows() == 0, context);
    // A warpgroup's places, and none besides, unless it has the whole tile.
    const int places = box.count * box.places();
    CHECK(places <= launch.columns() && (sizes.shares() == 1 || places == launch.columns()), context);
    CHECK(
        places * sizes.shares() == (launch.blocks ? sizes.pixels : launch.images * launch.rows * launch.cols),
        context);
    // Rows of copies have whole pieces of 16 bytes, and boxes whole rows of copies.
    const int64_t plane = whole.h.output * whole.w.output, each = int64_t{box.places()} * launch.fold();
    CHECK(box.side > 0 && box.side <= 256 && box.side % vector == 0, context);
    CHECK(each / box.images % box.side == 0 && each / box.images / box.side <= 256, context);
    CHECK(box.whole_rows ? box.cols == p.w.output && plane % box.side == 0
                         : box.side == box.cols * launch.fold_w && whole.w.output % vector == 0,
          context);
    CHECK(box.count == 1 || box.product_rows() * box.places() * size % 128 == 0, context);
  }
  // What tensor maps read lies at multiples of 16 bytes.
  const auto aligned = [&](int64_t side, int64_t stride) { return side == 1 || stride % vector == 0; };
  if (launch.turns_input) {
    CHECK(launch.padded_cin % vector == 0 && launch.padded_cin >= p.cin_per_group, context);
    const int64_t turned = p.batch * p.h.input * p.w.input * p.groups * launch.padded_cin;
    CHECK(static_cast<int64_t>(launch.weight_offset) >= turned * launch.parts * size, context);
    CHECK(p.h.input * p.w.input <= std::numeric_limits<int>::max(), context);
  } else {
    const convt::ActivationStrides& in = p.input_stride;
    const bool rows = launch.blocks || (launch.halos && !launch.halo_lines);
    // Neither do neighbours overlap.
    CHECK(p.w.input == 1 || p.cin() == 1 || (rows ? in.c >= p.w.input : in.w >= p.cin()), context);
    CHECK((rows ? in.w == 1 || p.w.input == 1 : in.c == 1 || p.cin() == 1), context);
    CHECK(aligned(p.batch, in.n) && ((rows && launch.flat) || aligned(p.h.input, in.h)), context);
    CHECK((rows ? aligned(p.cin(), in.c) : aligned(p.w.input, in.w)), context);
  }
  if (launch.turns_weight) {
    const int64_t taps = p.h.kernel * p.w.kernel;
    const int64_t turned =
        p.groups * taps *
        (size == 4 ? launch.padded_cin * p.cout_per_group : p.cin_per_group * launch.padded_cout);
    CHECK(static_cast<int64_t>(launch.workspace_bytes - launch.weight_offset) >= turned * launch.parts * size,
          context);
    CHECK(launch.weight_offset % 16 == 0, context);
  } else {
    CHECK(size == 2 && (p.weight_stride.cout == 1 || p.cout_per_group == 1), context);
    CHECK(aligned(p.cin(), p.weight_stride.cin), context);
  }
  CHECK(launch.phases_together == 1 || (!p.output_channels_last && p.w.stride == 2), context);
  CHECK(!p.output_channels_last || p.cout_per_group % launch.store_elements == 0, context);
  if (launch.flat) {
    for (const Axis* axis : {&p.h, &p.w}) {
      CHECK(axis->padding == 0 && (axis->kernel - 1) * axis->dilation < axis->stride, context);
      CHECK((axis->output + axis->stride - 1) / axis->stride == axis->input, context);
    }
  }
  const int64_t pixels = p.h.input * p.w.input;
  const int shares = sizes.alternates || sizes.rows > 64 ? 1 : 2;  // of a stage's lines
  if (launch.halos) {
    if (launch.flat) {
      CHECK(launch.cols == launch.places_w && launch.tiles_w == 1, context);
    } else {
      covers(launch.tiles_w, launch.cols, launch.places_w);
    }
    covers(launch.tiles_h, launch.rows, launch.places_h);
    covers(launch.image_tiles, launch.images, p.batch);
    CHECK(launch.pixel_tiles == launch.image_tiles * launch.tiles_h * launch.tiles_w, context);
    return;
  }
  CHECK(launch.columns() % 16 == 0 && launch.columns() <= sizes.columns(), context);
  CHECK(launch.lines() == launch.columns() * shares && launch.lines() <= sizes.pixels, context);
  if (launch.blocks) {
    CHECK(!sizes.alternates && launch.lines() == sizes.pixels, context);
    const int64_t row = launch.flat ? pixels : launch.places_w, rows = launch.flat ? 1 : launch.places_h;
    covers(launch.tiles_w, convt::kImplicitGemmBlock, row);
    CHECK(launch.tiles_h == rows, context);
    covers(launch.pixel_tiles, sizes.pixels / convt::kImplicitGemmBlock,
           launch.tiles_w * launch.tiles_h * p.batch);
    return;
  }
  const int lines = launch.images * launch.rows * launch.cols;
  CHECK(lines <= launch.lines() && lines > launch.lines() - 16 * shares, context);
  CHECK(std::max({launch.images, launch.rows, launch.cols}) <= 256, context);
  if (launch.cluster_rows > 1) {
    // Each block loads a part whose lines follow each other, in whole eights.
    const int parts = launch.cluster_rows;
    CHECK(lines % (8 * parts) == 0, context);
    CHECK(launch.images % parts == 0 || (launch.images == 1 && launch.rows % parts == 0) ||
              (launch.images == 1 && launch.rows == 1),
          context);
  }
  if (launch.flat) return covers(launch.pixel_tiles, launch.cols, pixels * p.batch);
  covers(launch.image_tiles, launch.images, p.batch);
  covers(launch.tiles_h, launch.rows, launch.places_h);
  covers(launch.tiles_w, launch.cols, launch.places_w);
  CHECK(launch.pixel_tiles == launch.image_tiles * launch.tiles_h * launch.tiles_w, context);
}

// Every output is a column of one thread block, and what is copied or stored at once lies side by side.
void check_pixel_gemm(const Problem& p, const convt::PixelGemmLaunch& launch, const DeviceLimits& device,
                      const std::string& context) {
  const auto covers = [&](int64_t blocks, int64_t each, int64_t all) {
    CHECK(each >= 1 && blocks * each >= all && (blocks - 1) * each < all, context);
  };
  const convt::PixelGemmConfig& sizes = launch.sizes();
  const int64_t size = convt::element_size(p.dtype);
  CHECK(p.h.input == 1 && p.w.input == 1 && launch.element_size == size, context);
  const bool splits = size == 4 && p.float32_precision == convt::Float32Precision::kIeee;
  CHECK(launch.parts == (splits ? 2 : 1) && launch.groups == p.groups, context);
  CHECK(launch.columns * p.groups * p.batch == p.output_elements(), context);
  covers(launch.image_tiles, sizes.rows(), p.batch);
  CHECK(launch.columns % launch.tap_tiles == 0 && (launch.tap_tiles == 1 || launch.taps != 0), context);
  covers(launch.column_tiles, sizes.columns(), launch.columns / launch.tap_tiles);
  covers(launch.chunks, launch.chunk_channels(), p.cin_per_group);
  CHECK(launch.blocks() >= 1 && launch.blocks() <= 2147483647, context);
  const convt::PixelGemmShared shared =
      convt::pixel_gemm_shared(sizes, static_cast<int>(size), launch.chunks);
  CHECK(shared.bytes == launch.shared_bytes && shared.stage_bytes % 16 == 0, context);
  CHECK(static_cast<int64_t>(launch.shared_bytes) <= device.shared_bytes_per_block, context);
  for (const int bytes : {launch.input_bytes, launch.weight_bytes, launch.store_bytes})
    CHECK((bytes == 16 || bytes == 8 || bytes == 4 || bytes == 2) && bytes >= size, context);
  const int64_t input = launch.input_bytes / size, weight = launch.weight_bytes / size,
                store = launch.store_bytes / size;
  if (input > 1) {
    CHECK(p.input_stride.c == 1 || p.cin_per_group == 1, context);
    CHECK(p.batch == 1 || p.input_stride.n % input == 0, context);
    CHECK(p.groups == 1 || p.cin_per_group % input == 0, context);
  }
  if (weight > 1) {
    CHECK(p.cin() == 1 || p.weight_stride.cin % weight == 0, context);
    CHECK(p.h.padding == 0 && p.h.output == p.h.kernel && (p.h.kernel == 1 || p.h.dilation == 1), context);
    CHECK(p.w.padding == 0 && p.w.output == p.w.kernel && (p.w.kernel == 1 || p.w.dilation == 1), context);
  }
  if (launch.taps != 0) {
    // Pieces of a tap's output channels; a lane's four columns are taps of one of them.
    CHECK(weight > 1 && !p.output_channels_last && p.cout_per_group > 1, context);
    CHECK((launch.taps == 8 || launch.taps == 4) && sizes.columns() / launch.taps % weight == 0, context);
    CHECK(launch.taps * launch.tap_tiles == p.h.kernel * p.w.kernel, context);
    CHECK(p.weight_stride.cout == 1, context);
    CHECK(p.h.kernel == 1 || p.weight_stride.kh % weight == 0, context);
    CHECK(p.w.kernel == 1 || p.weight_stride.kw % weight == 0, context);
  } else if (weight > 1) {
    // A channel's taps are in the order of the outputs that they reach.
    int64_t column = 0;
    const int64_t outer = p.output_channels_last ? 1 : p.cout_per_group;
    const int64_t inner = p.output_channels_last ? p.cout_per_group : 1;
    for (int64_t first = 0; first < outer; ++first) {
      for (int64_t oh = 0; oh < p.h.output; ++oh) {
        for (int64_t ow = 0; ow < p.w.output; ++ow) {
          for (int64_t last = 0; last < inner; ++last) {
            const int64_t at =
                (first + last) * p.weight_stride.cout + oh * p.weight_stride.kh + ow * p.weight_stride.kw;
            CHECK(at == column++, context);
          }
        }
      }
    }
  }
  const bool in_runs = p.output_channels_last && p.groups > 1;
  const int64_t run = in_runs ? p.cout_per_group : launch.tap_tiles > 1 ? launch.taps : launch.columns;
  CHECK(run % store == 0 && launch.columns % store == 0, context);
}

// Every output has a place in one slice, between its team's first pixel and its last.
void check_scatter_gemm(const Problem& p, const convt::ScatterLaunch& launch, const DeviceLimits& device,
                        const std::string& context) {
  const auto covers = [&](int64_t blocks, int64_t each, int64_t all) {
    CHECK(each >= 1 && blocks * each >= all && (blocks - 1) * each < all, context);
  };
  const int64_t size = convt::element_size(p.dtype);
  CHECK(launch.element_size == size && !p.output_channels_last && launch.groups == p.groups, context);
  CHECK(p.h.dilation * (p.h.kernel - 1) < p.h.stride && p.w.dilation * (p.w.kernel - 1) < p.w.stride,
        context);
  CHECK(launch.steps * 32 >= p.cin_per_group * size, context);
  CHECK(launch.steps == convt::kScatterSteps[0] || launch.steps / 2 * 32 < p.cin_per_group * size, context);
  CHECK(launch.warps() <= convt::kScatterMaxWarps && launch.team_warps <= convt::kScatterMaxTeamWarps,
        context);
  // The pixels before the first place have no outputs, and the last place has some.
  const auto end = [](const Axis& axis) { return axis.output + axis.padding; };
  CHECK(launch.first_row * p.h.stride <= p.h.padding && launch.first_col % 4 == 0, context);
  CHECK(launch.first_col * p.w.stride <= p.w.padding, context);
  covers(launch.first_row + launch.rows, p.h.stride, end(p.h));
  const int64_t cols = (end(p.w) + p.w.stride - 1) / p.w.stride - launch.first_col;
  covers(launch.strips, launch.pixels(), cols);
  CHECK(launch.items == launch.strips * launch.rows * p.batch && launch.items < 1 << 30, context);
  covers(launch.cout_tiles, launch.couts, p.cout_per_group);
  CHECK(launch.couts % convt::kScatterCouts == 0, context);
  // A row of a slice begins up to 15 bytes on.
  CHECK(launch.pitch % 16 == 0 && launch.pitch >= launch.pixels() * p.w.stride * size + 15, context);
  CHECK(launch.fills || (p.w.kernel == p.w.stride && launch.first_col + cols <= p.w.input), context);
  CHECK(!launch.pairs || (p.w.kernel == 2 && p.w.stride == 2), context);
  CHECK(launch.blocks() >= 1 && launch.blocks() <= 2147483647, context);
  const convt::ScatterShared shared = convt::scatter_shared(launch, p.h.kernel * p.w.kernel);
  CHECK(shared.bytes == launch.shared_bytes && shared.slots % 16 == 0 && shared.bias % 16 == 0, context);
  CHECK(static_cast<int64_t>(launch.shared_bytes) <= device.shared_bytes_per_block, context);
}

bool has_filter(const Problem& p, const convt::ThinSimtFilter& filter) {
  for (const Axis* axis : {&p.h, &p.w}) {
    if (axis->kernel != filter.kernel || axis->stride != filter.stride || axis->dilation != 1) return false;
  }
  return p.cout_per_group == filter.couts && p.w.padding >= filter.cropped;
}

// Every base that has outputs is in one four of one thread block, the filter is the problem's, and what is
// read at once lies at multiples of 16 bytes.
void check_thin_simt(const Problem& p, const convt::ThinSimtLaunch& launch, const DeviceLimits& device,
                     const std::string& context) {
  const auto covers = [&](int64_t blocks, int64_t each, int64_t all) {
    CHECK(each >= 1 && blocks * each >= all && (blocks - 1) * each < all, context);
  };
  CHECK(p.dtype == DType::kFloat32 && launch.groups == p.groups, context);
  CHECK(launch.filter >= 0 && launch.filter < convt::kThinSimtFilterCount, context);
  const convt::ThinSimtFilter& filter = launch.shape();
  CHECK(has_filter(p, filter), context);
  for (const convt::ThinSimtFilter& other : convt::kThinSimtFilters) {
    CHECK(!has_filter(p, other) || other.cropped <= filter.cropped, context);
  }
  const auto bases = [](const Axis& axis, int64_t padding, int64_t first) {
    return (axis.output - 1 + padding) / axis.stride - first + 1;
  };
  const int64_t padding_w = p.w.padding - filter.cropped;
  CHECK(launch.first_row == p.h.padding / p.h.stride, context);
  covers(launch.row_sets, filter.rows(), bases(p.h, p.h.padding, launch.first_row));
  CHECK(launch.first_col % 4 == 0 && launch.first_col * p.w.stride <= padding_w, context);
  CHECK((launch.first_col + 4) * p.w.stride > padding_w, context);
  covers(launch.col_sets, convt::kThinSimtColumns, bases(p.w, padding_w, launch.first_col));
  const int64_t fours = p.batch * launch.row_sets * launch.col_sets;
  covers(launch.tiles, convt::kThinSimtQuads, fours);
  CHECK(fours <= convt::kMaxCoordinate && launch.blocks() == launch.tiles * launch.groups, context);
  CHECK(launch.blocks() >= 1 && launch.blocks() <= 2147483647, context);
  // Rows of fours.
  const auto aligned = [](int64_t side, int64_t stride) { return side == 1 || stride % 4 == 0; };
  CHECK(p.w.input % 4 == 0 && p.input_stride.w == 1 && aligned(p.batch, p.input_stride.n), context);
  CHECK(aligned(p.cin(), p.input_stride.c) && aligned(p.h.input, p.input_stride.h), context);
  CHECK(convt::is_aligned(p.input, 16), context);
  if (launch.dense_weight) {
    const convt::WeightStrides& w = p.weight_stride;
    int64_t place = 0;
    for (int64_t c = 0; c < std::min<int64_t>(p.cin(), 3); ++c) {
      for (int64_t cout = 0; cout < p.cout_per_group; ++cout) {
        for (int64_t kh = 0; kh < p.h.kernel; ++kh) {
          for (int64_t kw = 0; kw < p.w.kernel; ++kw)
            CHECK(c * w.cin + cout * w.cout + kh * w.kh + kw * w.kw == place++, context);
        }
      }
    }
  }
  const convt::ThinSimtShared shared = convt::thin_simt_shared(filter, p.cin_per_group);
  CHECK(shared.bytes == launch.shared_bytes && shared.bytes <= launch.shared_limit, context);
  CHECK(static_cast<int64_t>(launch.shared_limit) <= device.shared_bytes_per_block, context);
  CHECK(static_cast<int64_t>(shared.totals) >= p.cin_per_group * filter.weights() * 4, context);
  CHECK(shared.totals % 16 == 0 && shared.warp_totals % 16 == 0 && shared.places % 16 == 0, context);
  CHECK(shared.places >= shared.totals + convt::kThinSimtWarps * shared.warp_totals, context);
}

// Every place that has outputs is in one item, every output channel in one thread block, every tap in a step.
void check_phase_gemm(const Problem& p, const convt::PhaseGemmLaunch& launch, const DeviceLimits& device,
                      const std::string& context) {
  const auto covers = [&](int64_t blocks, int64_t each, int64_t all) {
    CHECK(each >= 1 && blocks * each >= all && (blocks - 1) * each < all, context);
  };
  const int64_t size = convt::element_size(p.dtype);
  CHECK(launch.element_size == size && launch.channels_last == p.output_channels_last, context);
  CHECK(launch.parts == 1 || size == 4, context);
  const bool quads = launch.loads == convt::PhaseGemmLoads::kQuads;
  const auto check_axis = [&](const Axis& axis, int first, int64_t tiles, int64_t each, int before) {
    const int64_t end = axis.output + axis.padding;
    CHECK(first * axis.stride <= axis.padding && (first + 1 + before) * axis.stride > axis.padding, context);
    covers(tiles, each, (end + axis.stride - 1) / axis.stride - first);
  };
  check_axis(p.h, launch.first_row, launch.bands, launch.rows, 0);
  check_axis(p.w, launch.first_col, launch.strips, launch.cols, quads ? 3 : 0);
  const int64_t halo = (p.w.kernel - 1) * p.w.dilation / p.w.stride;
  CHECK(launch.halo_w >= halo && launch.halo_w < halo + (quads ? 4 : 1), context);
  CHECK(!quads || (launch.halo_w % 4 == 0 && launch.first_col % 4 == 0 && p.w.input % 4 == 0), context);
  CHECK(launch.cols % convt::kPhaseGemmPlaces == 0, context);
  CHECK(launch.items == launch.strips * launch.bands * p.batch && launch.items < 1 << 30, context);
  CHECK(launch.shares >= 1 && launch.shares <= launch.items, context);
  CHECK(launch.blocks_of_grid() >= 1 && launch.blocks_of_grid() <= 2147483647, context);
  if (launch.cout_tiles > 1) {
    CHECK(launch.groups == 1 && launch.tiles == p.groups * launch.cout_tiles, context);
    CHECK(launch.channels == launch.blocks * convt::kPhaseGemmCouts, context);
    covers(launch.cout_tiles, launch.channels, p.cout_per_group);
  } else {
    CHECK(launch.channels == launch.groups * p.cout_per_group, context);
    covers(launch.blocks, convt::kPhaseGemmCouts, p.cout_per_group);
    covers(launch.tiles, launch.groups, p.groups);
  }
  // Rows of NHWC are copied whole.
  CHECK(!p.output_channels_last || launch.tiles == 1, context);
  covers(launch.chunks, 16, p.cin_per_group * size);
  const int64_t vectors = p.h.kernel * p.w.kernel * launch.chunks;
  CHECK(2 * launch.steps >= vectors && 2 * launch.steps <= vectors + p.h.stride * p.w.stride, context);
  CHECK(launch.loads != convt::PhaseGemmLoads::kVectors ||
            (p.cin_per_group * size % 16 == 0 && p.input_stride.c == 1),
        context);
  const convt::PhaseGemmShared shared = convt::phase_gemm_shared(launch);
  CHECK(shared.bytes == launch.shared_bytes, context);
  CHECK(static_cast<int64_t>(launch.shared_bytes) <= device.shared_bytes_per_block, context);
  for (const size_t at : {shared.weight, shared.slots, shared.zeros, shared.table, shared.line}) {
    CHECK(at % 16 == 0 || at == shared.table, context);
  }
  CHECK(shared.slot_bytes % 16 == 0 && shared.table % 4 == 0 && shared.bias % 4 == 0, context);
  // A row of a slice begins up to 15 bytes on.
  const int64_t row = launch.cols * p.w.stride * size;
  CHECK(p.output_channels_last ? shared.slot_bytes >= row * launch.channels + 15
                               : shared.pitch % 16 == 0 && shared.pitch >= row + 15,
        context);
}

// Why the plan refuses a forced kernel or launch; empty where it does not.
std::string refusal(const Problem& p, const DeviceLimits& device, const std::string& forced) {
  try {
    convt::make_plan(p, device, forced.c_str());
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

void check_plan(const Problem& p, const DeviceLimits& device, const char* forced,
                const std::string& context) {
  const Plan plan = convt::make_plan(p, device, forced);
  if (plan.kernel == Kernel::kPixelGemm) return check_pixel_gemm(p, plan.pixel_gemm, device, context);
  if (plan.kernel == Kernel::kScatterGemm) return check_scatter_gemm(p, plan.scatter_gemm, device, context);
  if (plan.kernel == Kernel::kPhaseGemm) return check_phase_gemm(p, plan.phase_gemm, device, context);
  if (plan.kernel == Kernel::kImplicitGemm) {
    CHECK(!plan.implicit_gemm.halos, context);
    return check_implicit_gemm(p, plan.implicit_gemm, device, context);
  }
  if (plan.kernel == Kernel::kHaloGemm) {
    CHECK(plan.halo_gemm.halos, context);
    return check_implicit_gemm(p, plan.halo_gemm, device, context);
  }
  if (plan.kernel == Kernel::kCol2im) return check_col2im(p, plan.col2im, device, context);
  if (plan.kernel == Kernel::kThin) return check_thin(p, plan.thin, device, context);
  if (plan.kernel == Kernel::kThinSimt) return check_thin_simt(p, plan.thin_simt, device, context);
  if (plan.kernel == Kernel::kTileMma) return check_tile_mma(p, plan.tile_mma, device, context);
  if (plan.kernel == Kernel::kTileWgmma) return check_tile_wgmma(p, plan.tile_wgmma, device, context);
  if (plan.kernel == Kernel::kDepthwise) return check_depthwise(p, plan.depthwise, device, context);
  if (plan.kernel != Kernel::kTileSimt) return;
  check_coverage(p, plan.tile_simt, context);
  check_limits(p, plan.tile_simt, device, context);
}

// The compiled tile shapes make sense.
void test_configurations() {
  for (const convt::TileSimtConfig& config : convt::kTileSimtConfigs) {
    const std::string context =
        "couts " + std::to_string(config.couts()) + ", pixels " + std::to_string(config.pixels());
    CHECK(config.threads() >= 32 && config.threads() <= 1024, context);
    CHECK(config.threads() * config.min_blocks <= 2048, context);
    CHECK(config.lanes_cout * config.lanes_pixel() == 32, context);
    CHECK(config.couts_per_thread == 1 || config.couts_per_thread % 4 == 0, context);
    CHECK(config.channel_vector == 1 || config.channel_vector == 4, context);
  }
}

void test_typical_problems() {
  const Axis k4s2 = make_axis(16, 4, 2, 1), k3s1 = make_axis(512, 3, 1), k2s2 = make_axis(64, 2, 2);
  const Axis large = make_axis(128, 4, 2, 1);
  const struct {
    const char* name;
    Problem problem;
    bool tensor_cores = true;
    bool thin = false;
    bool one_pixel = false, disjoint = false;
  } typical[] = {
      {"dcgan", make_problem(DType::kFloat32, 128, 128, 64, k4s2, k4s2)},
      {"dcgan, one pixel",
       make_problem(DType::kFloat16, 128, 100, 512, make_axis(1, 4, 1), make_axis(1, 4, 1)), true, false,
       true},
      {"unet", make_problem(DType::kFloat16, 8, 128, 64, k2s2, k2s2, 1, true)},
      {"kb65", make_problem(DType::kBFloat16, 8, 64, 64, k3s1, make_axis(512, 7, 1))},
      {"hifigan", make_problem(DType::kFloat32, 16, 512, 256, make_axis(1, 1, 1), make_axis(400, 16, 8, 4))},
      {"to an image", make_problem(DType::kFloat32, 16, 128, 3, large, large), true, true},
      {"from an image", make_problem(DType::kFloat32, 2, 3, 32, k4s2, k4s2), false},
      {"dilated",
       make_problem(DType::kFloat16, 16, 32, 64, make_axis(64, 3, 5, 1, 0, 2), make_axis(128, 3, 5, 1, 0, 2)),
       true, false, false, true},
  };
  for (const auto& [name, problem, tensor_cores, thin, one_pixel, disjoint] : typical) {
    for (const Device& device : kDevices) {
      const std::string context = std::string(name) + " on " + device.name;
      const Kernel chosen = convt::make_plan(problem, device.limits, nullptr).kernel;
      const bool split = problem.dtype == DType::kFloat32;
      if (!tensor_cores || (split && !device.fast_tf32)) {
        CHECK(chosen == (thin ? Kernel::kThinSimt : Kernel::kTileSimt), context);
      } else if (one_pixel) {
        CHECK(chosen == Kernel::kPixelGemm, context);
      } else {
        const bool on_wgmma = chosen == Kernel::kTileWgmma || chosen == Kernel::kCol2im ||
                              chosen == Kernel::kImplicitGemm || chosen == Kernel::kHaloGemm;
        CHECK(!on_wgmma || device.limits.has_wgmma, context);
        CHECK((chosen == Kernel::kScatterGemm) == disjoint, context);
        if (disjoint) continue;
        const bool few = chosen == Kernel::kThin || chosen == Kernel::kThinSimt || chosen == Kernel::kCol2im;
        CHECK(thin ? few : few || on_wgmma || chosen == Kernel::kTileMma, context);
      }
      check_plan(problem, device.limits, nullptr, context);
      Problem rounded = problem;
      rounded.float32_precision = convt::Float32Precision::kTf32;
      check_plan(rounded, device.limits, nullptr, context + ", TF32");
      const bool simt = convt::make_plan(rounded, device.limits, nullptr).kernel == Kernel::kTileSimt;
      CHECK(simt != tensor_cores, context + ", TF32");
    }
  }
}

// Which groups are too small for tiles.
void test_depthwise() {
  const Axis k4s2 = make_axis(64, 4, 2, 1), k3s1 = make_axis(56, 3, 1, 1), k31s1 = make_axis(56, 31, 1, 15);
  const Axis k64s32 = make_axis(16, 64, 32, 16), row = make_axis(1, 1, 1), k1s999 = make_axis(5, 1, 999);
  const struct {
    const char* name;
    Kernel expected;
    int64_t batch, cin, cout, groups;
    Axis h, w;
  } cases[] = {
      {"depthwise", Kernel::kDepthwise, 32, 256, 256, 256, k4s2, k4s2},
      {"multiplier", Kernel::kDepthwise, 4, 32, 96, 32, k3s1, k3s1},
      {"large filter", Kernel::kDepthwise, 16, 64, 64, 64, k31s1, k31s1},
      {"bilinear", Kernel::kDepthwise, 8, 21, 21, 21, k64s32, k64s32},
      {"one row", Kernel::kDepthwise, 2, 64, 64, 64, row, make_axis(4096, 4, 2, 1)},
      {"groups of two", Kernel::kDepthwise, 16, 128, 128, 64, k4s2, k4s2},
      {"groups of three to many", Kernel::kTileSimt, 16, 24, 512, 8, k4s2, k4s2},
      {"one channel", Kernel::kDepthwise, 8, 1, 64, 1, k4s2, k4s2},
      {"an image", Kernel::kTileSimt, 8, 3, 64, 1, k4s2, k4s2},
      {"beyond the strides of the tiles", Kernel::kDepthwise, 1, 2, 2, 2, k1s999, k1s999},
      {"beyond its strides", Kernel::kGeneric, 1, 2, 2, 2, row, make_axis(3, 1, 1 << 13)},
      {"beyond its dilations", Kernel::kGeneric, 1, 1, 1, 1, row, make_axis(3, 1025, 1, 0, 0, 1 << 13)},
  };
  for (const auto& [name, expected, batch, cin, cout, groups, h, w] : cases) {
    for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
      for (const bool channels_last : {false, true}) {
        const Problem p = make_problem(dtype, batch, cin, cout, h, w, groups, channels_last);
        for (const Device& device : kDevices) {
          const std::string context = std::string(name) + " on " + device.name;
          CHECK(convt::make_plan(p, device.limits, nullptr).kernel == expected, context);
          check_plan(p, device.limits, nullptr, context);
        }
      }
    }
  }
  // float64 stays where it was.
  CHECK(convt::make_plan(make_problem(DType::kFloat64, 2, 8, 8, k4s2, k4s2, 8), kH100, nullptr).kernel ==
            Kernel::kGeneric,
        "float64");
  // Vectors of channels only where channels are neighbours, and pixels start at multiples of a vector.
  const Axis k8s4 = make_axis(64, 8, 4, 2);
  Problem p = make_problem(DType::kFloat16, 32, 256, 256, k8s4, k8s4, 256, true);
  const auto launch = [&p] { return convt::make_plan(p, kH100, "depthwise").depthwise; };
  CHECK(launch().vector == 4 && launch().mapping == convt::DepthwiseMapping::kChannels, "");
  p.input_stride.w += 1;
  CHECK(launch().vector == 1 && launch().mapping == convt::DepthwiseMapping::kChannels, "");
  // Channels of one group have the same inputs, wherever those lie.
  p = make_problem(DType::kFloat16, 4, 36, 72, k4s2, k4s2, 9, true);
  CHECK(launch().vector == 4 && launch().shares_input, "");
  p = make_problem(DType::kFloat16, 4, 36, 54, k4s2, k4s2, 9, true);
  CHECK(launch().vector == 1 && !launch().shares_input, "");
  // A filter beyond shared memory.
  p = make_problem(DType::kFloat32, 2, 8, 8, make_axis(20, 200, 1), make_axis(20, 200, 1), 8, true);
  CHECK(launch().mapping == convt::DepthwiseMapping::kColumns && launch().long_sums, "");
  check_plan(p, kH100, nullptr, "a filter beyond shared memory");
}

// Which problems have kernels that are compiled for their filter.
void test_rolling() {
  for (const convt::RollingFilter& filter : convt::kRollingFilters) {
    CHECK(filter.kernel >= filter.stride && filter.phase < filter.stride, "");
    for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
      for (int64_t padding = filter.phase; padding <= filter.phase + 3 * filter.stride;
           padding += filter.stride) {
        for (int64_t input = 1; input <= 40; ++input) {
          for (int64_t output_padding = 0; output_padding < filter.stride; ++output_padding) {
            const Axis h = make_axis(9 + input, filter.kernel, filter.stride, padding / 2, output_padding);
            const Axis w = make_axis(input, filter.kernel, filter.stride, padding, output_padding);
            if (w.output < 1) continue;
            const Problem p = make_problem(dtype, 3, 6, 12, h, w, 6);
            const bool whole = w.output * convt::element_size(dtype) % convt::kRollingVectorBytes == 0;
            const convt::DepthwiseLaunch launch = convt::make_plan(p, kH100, "depthwise").depthwise;
            CHECK((launch.mapping == convt::DepthwiseMapping::kRolling) == whole, describe(p));
            check_plan(p, kH100, "depthwise", describe(p));
            const Problem last = make_problem(dtype, 3, 8, 8, h, w, 8, true);
            CHECK((convt::make_plan(last, kH100, "depthwise").depthwise.mapping ==
                   convt::DepthwiseMapping::kRolling) == (w.output % filter.stride == 0),
                  describe(last));
            check_plan(last, kH100, "depthwise", describe(last));
          }
        }
      }
    }
  }
  const Axis k4s2 = make_axis(64, 4, 2, 1);
  const auto launch = [](const Problem& p) { return convt::make_plan(p, kH100, nullptr).depthwise; };
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    const Problem up = make_problem(dtype, 32, 256, 256, k4s2, k4s2, 256);
    CHECK(launch(up).mapping == convt::DepthwiseMapping::kRolling && launch(up).loads_vectors, describe(up));
    // Rows that begin anywhere; columns that are no neighbours.
    Problem sliced = up;
    sliced.input_stride.h += 1;
    CHECK(launch(sliced).mapping == convt::DepthwiseMapping::kRolling && !launch(sliced).loads_vectors,
          describe(sliced));
    sliced.input_stride.w = 2;
    CHECK(launch(sliced).mapping == convt::DepthwiseMapping::kColumns, describe(sliced));
    const Problem others[] = {
        make_problem(dtype, 32, 256, 256, k4s2, make_axis(63, 4, 2, 1), 256),  // 126 columns
        make_problem(dtype, 32, 256, 256, k4s2, make_axis(64, 4, 2, 2, 1, 2), 256),
        make_problem(dtype, 32, 256, 256, k4s2, make_axis(64, 4, 4), 256),
        make_problem(dtype, 32, 256, 256, make_axis(64, 3, 2, 1, 1), k4s2, 256),
        make_problem(dtype, 32, 256, 256, make_axis(64, 8, 4, 2), make_axis(64, 8, 4, 2), 256),
        make_problem(dtype, 32, 256, 128, k4s2, k4s2, 128),
        make_problem(dtype, 32, 254, 254, k4s2, k4s2, 254, true),
        make_problem(dtype, 32, 256, 512, k4s2, k4s2, 256, true),
    };
    for (const Problem& p : others) {
      CHECK(launch(p).mapping != convt::DepthwiseMapping::kRolling, describe(p));
      check_plan(p, kH100, nullptr, describe(p));
    }
  }
}

void test_generic_is_the_last_resort() {
  const Axis a = make_axis(16, 4, 2, 1);
  const Problem impossible[] = {
      make_problem(DType::kFloat64, 2, 8, 8, a, a),
      make_problem(DType::kFloat32, 2, 8, 8, make_axis(3, 65, 1), make_axis(3, 32, 1)),
      make_problem(DType::kFloat32, 2, 8, 8, make_axis(3, int64_t{1} << 40, 1), a),
      make_problem(DType::kFloat16, 1, 8, 8, make_axis(2, 1, 257), a),
      make_problem(DType::kFloat16, 1, 1, 1, make_axis(1, 1, 2147483647), a),
      make_problem(DType::kFloat16, 1, 1, 1, make_axis(1, 2, 1, 0, 0, 2147483647), a),
      make_problem(DType::kFloat16, 1, 1, 1, a, make_axis(int64_t{1} << 31, 1, 1)),
      make_problem(DType::kFloat32, 1, 3, 4, a,
                   make_axis(2000000, 2, 1, 0, 0, 1000000)),  // a halo beyond any memory
  };
  for (const Problem& p : impossible) {
    for (const Device& device : kDevices) {
      const std::string context = describe(p) + " on " + device.name;
      CHECK(convt::make_plan(p, device.limits, nullptr).kernel == Kernel::kGeneric, context);
      CHECK(convt::make_plan(p, device.limits, "generic").kernel == Kernel::kGeneric, context);
      const std::string message = refusal(p, device.limits, "tile_simt");
      CHECK(message.rfind("CONVT_KERNEL=tile_simt cannot compute this problem: ", 0) == 0,
            context + ": " + message);
    }
  }
}

void test_empty_output() {
  const Axis a = make_axis(16, 4, 2, 1);
  const Problem p = make_problem(DType::kFloat32, 0, 8, 8, a, a);
  for (const char* forced :
       {static_cast<const char*>(nullptr), "", "generic", "depthwise", "thin", "tile_simt", "tile_mma",
        "tile_wgmma", "col2im", "implicit_gemm", "halo_gemm", "pixel_gemm", "thin_simt"}) {
    CHECK(convt::make_plan(p, kH100, forced).kernel == Kernel::kNone,
          forced == nullptr ? "not forced" : forced);
  }
}

void test_forced_kernels() {
  const Axis a = make_axis(16, 4, 2, 1);
  for (const bool channels_last : {false, true}) {
    for (const int64_t groups : {int64_t{1}, int64_t{8}}) {
      const DType dtype = groups == 1 ? DType::kFloat16 : DType::kFloat32;
      const Problem p = make_problem(dtype, 2, 8, 8, a, a, groups, channels_last);
      CHECK(convt::make_plan(p, kH100, "generic").kernel == Kernel::kGeneric, describe(p));
      CHECK(convt::make_plan(p, kH100, "depthwise").kernel == Kernel::kDepthwise, describe(p));
      CHECK(convt::make_plan(p, kH100, "tile_simt").kernel == Kernel::kTileSimt, describe(p));
      check_plan(p, kH100, "depthwise", describe(p));
      CHECK(convt::make_plan(p, kH100, "thin").kernel == Kernel::kThin, describe(p));
      check_plan(p, kH100, "thin", describe(p));
      CHECK(convt::make_plan(p, kH100, "tile_mma").kernel == Kernel::kTileMma, describe(p));
      check_plan(p, kH100, "tile_simt", describe(p));
      check_plan(p, kH100, "tile_mma", describe(p));
      CHECK(convt::make_plan(p, kH100, "tile_wgmma").kernel == Kernel::kTileWgmma, describe(p));
      check_plan(p, kH100, "tile_wgmma", describe(p));
      CHECK(convt::make_plan(p, kH100, "implicit_gemm").kernel == Kernel::kImplicitGemm, describe(p));
      check_plan(p, kH100, "implicit_gemm", describe(p));
      if (dtype == DType::kFloat32 && (!channels_last || groups == 1)) {
        CHECK(convt::make_plan(p, kH100, "halo_gemm").kernel == Kernel::kHaloGemm, describe(p));
        check_plan(p, kH100, "halo_gemm", describe(p));
      }
      if (dtype != DType::kFloat16) continue;
      CHECK(convt::make_plan(p, kH100, "col2im").kernel == Kernel::kCol2im, describe(p));
      check_plan(p, kH100, "col2im", describe(p));
    }
  }
  // Launches by their estimates.
  const Problem many = make_problem(DType::kFloat16, 8, 128, 64, make_axis(256, 2, 2), make_axis(256, 2, 2));
  for (const std::string kernel : {"thin", "tile_mma", "tile_wgmma", "col2im", "implicit_gemm"}) {
    const auto line = [&](const std::string& rank) {
      return convt::describe(convt::make_plan(many, kH100, (kernel + rank).c_str()));
    };
    CHECK(line(":0") == line("") && line(":1") != line("") && line(":1") != line(":2"), line(":1"));
    check_plan(many, kH100, (kernel + ":5").c_str(), kernel);
  }
  const Problem one_pixel =
      make_problem(DType::kFloat16, 128, 100, 512, make_axis(1, 4, 1), make_axis(1, 4, 1));
  for (int rank = 0; rank < convt::kPixelGemmConfigCount; ++rank) {
    const std::string forced = "pixel_gemm:" + std::to_string(rank);
    CHECK(convt::make_plan(one_pixel, kH100, forced.c_str()).kernel == Kernel::kPixelGemm, forced);
    check_plan(one_pixel, kH100, forced.c_str(), forced);
  }
  for (const std::string bad : {"tile_mma:", "tile_mma:x", "tile_mma:-1", "tile_mma:999999", "generic:1",
                                "depthwise:1", "tile_simt:0"}) {
    CHECK(refusal(many, kH100, bad).rfind("CONVT_KERNEL=" + bad, 0) == 0, bad);
  }
  // A line of 2^32 + 24 outputs: no launch of thin may take it for one of 24.
  const Problem wide = make_problem(DType::kFloat16, 1, 8, 8, make_axis(4, 2, 1),
                                    make_axis(4, 2, 1, 0, 0, 536870911), 1, true);
  try {
    for (int rank = 0;; ++rank)
      check_plan(wide, kH100, ("thin:" + std::to_string(rank)).c_str(), describe(wide));
  } catch (const std::invalid_argument& error) {  // no launch of that rank
    CHECK(std::string(error.what()).find("launches of thin") != std::string::npos, error.what());
  }
  // Narrow and high: few columns, and many rows of them in a tile.
  const Problem tall =
      make_problem(DType::kFloat16, 1, 3, 4, make_axis(701, 3, 2, 1, 1), make_axis(3, 3, 1, 1));
  check_plan(tall, kH100, "thin", describe(tall));
  // More phases than a set has bits for.
  const Problem strided = make_problem(DType::kFloat16, 1, 8, 2, make_axis(5, 16, 48), make_axis(9, 1, 1));
  check_plan(strided, kH100, "thin", describe(strided));
  check_plan(tall, kH100, "tile_mma", describe(tall));
  check_plan(tall, kH100, "tile_wgmma", describe(tall));
  const std::string message = refusal(make_problem(DType::kFloat32, 2, 8, 8, a, a), kH100, "Generic");
  CHECK(message ==
            "CONVT_KERNEL must be generic, depthwise, thin, thin_simt, tile_simt, tile_mma, tile_wgmma, "
            "col2im, implicit_gemm, halo_gemm, pixel_gemm, scatter_gemm or phase_gemm, got "
            "Generic",
        message);
}

// A problem that a kernel cannot compute, and a part of what it says then.
struct Refusal {
  Problem problem;
  const char* reason;
};

void check_refusals(const std::string& kernel, const std::vector<Refusal>& refused) {
  for (const auto& [problem, reason] : refused) {
    const std::string message = refusal(problem, kH100, kernel);
    CHECK(message.rfind("CONVT_KERNEL=" + kernel + " cannot compute this problem: ", 0) == 0 &&
              message.find(reason) != std::string::npos,
          describe(problem) + ": " + message);
  }
}

// The filters that thin_simt is compiled for make sense.
void test_thin_simt_filters() {
  for (const convt::ThinSimtFilter& filter : convt::kThinSimtFilters) {
    const std::string context = "kernel " + std::to_string(filter.kernel) + " stride " +
                                std::to_string(filter.stride) + " couts " + std::to_string(filter.couts) +
                                " cropped " + std::to_string(filter.cropped);
    // Every tap's inputs are among those of a thread, in a row and column of each of its bases.
    for (int tap = 0; tap < filter.kernel; ++tap) {
      const int phase = filter.phase_of(tap), columns = filter.columns_to(tap);
      CHECK(phase >= 0 && phase < filter.stride, context);
      CHECK(columns * filter.stride == phase + filter.cropped - tap, context);
      CHECK(columns >= -filter.before() && columns <= filter.behind(), context);
      CHECK(tap / filter.stride < filter.taps(), context);
    }
    CHECK(filter.before() <= convt::kThinSimtColumns && filter.behind() <= 1, context);
    CHECK(filter.pitch() % 4 == 0 && filter.pitch() >= filter.weights(), context);
    CHECK(filter.channels() >= 1 && filter.channels() % filter.buffers() == 0, context);
    CHECK(filter.channels() * filter.taps() * filter.taps() <= convt::kMaxSummedProducts, context);
    CHECK(filter.sums() <= 64, context);
    // Enough room for the channels of usual layers, everywhere.
    for (const Device& device : kDevices) {
      CHECK(static_cast<int64_t>(convt::thin_simt_shared(filter, 128).bytes) <=
                device.limits.shared_bytes_per_block,
            context + " on " + device.name);
    }
  }
}

// Few output channels of float32: which problems thin_simt takes.
void test_thin_simt() {
  test_thin_simt_filters();
  for (const convt::ThinSimtFilter& filter : convt::kThinSimtFilters) {
    for (int64_t padding = 0; padding <= 2 * filter.kernel; ++padding) {
      for (int64_t input = 4; input <= 140; input += input < 20 ? 4 : 40) {
        for (int64_t output_padding = 0; output_padding < filter.stride; ++output_padding) {
          const Axis h = make_axis(input / 3, filter.kernel, filter.stride, padding / 2, output_padding);
          const Axis w = make_axis(input, filter.kernel, filter.stride, padding, output_padding);
          if (h.output < 1 || w.output < 1) continue;
          const Problem p = make_problem(DType::kFloat32, 3, 34, 2 * filter.couts, h, w, 2);
          for (const Device& device : kDevices)
            check_plan(p, device.limits, "thin_simt", describe(p) + " on " + device.name);
          CHECK(convt::make_plan(p, kH100, "thin_simt").kernel == Kernel::kThinSimt, describe(p));
        }
      }
    }
  }

  const Axis large = make_axis(128, 4, 2, 1), k9s3 = make_axis(64, 9, 3, 4, 2);
  const auto launch = [](const Problem& p) {
    check_plan(p, kH100, "thin_simt", describe(p));
    return convt::make_plan(p, kH100, "thin_simt").thin_simt;
  };
  // As much of the padding is compiled in as there is.
  for (const auto& [padding, cropped] : {std::pair{0, 0}, {1, 0}, {2, 2}, {3, 2}}) {
    const Problem p =
        make_problem(DType::kFloat32, 2, 16, 3, make_axis(30, 5, 2), make_axis(40, 5, 2, padding));
    CHECK(launch(p).shape().cropped == cropped, describe(p));
  }
  const Problem image = make_problem(DType::kFloat32, 16, 128, 3, large, large);
  CHECK(launch(image).first_row == 0 && launch(image).first_col == 0, "one of padding");
  CHECK(launch(image).row_sets == 129 && launch(image).col_sets == 32, "fours end where rows of inputs do");
  const convt::ThinSimtLaunch cropped =
      launch(make_problem(DType::kFloat32, 3, 32, 3, make_axis(30, 4, 2, 5), make_axis(40, 4, 2, 11)));
  CHECK(cropped.first_row == 2 && cropped.first_col == 4, "bases without outputs");
  CHECK(cropped.row_sets == 27 && cropped.col_sets == 8, "bases without outputs");
  CHECK(launch(make_problem(DType::kFloat32, 3, 32, 6, large, large, 2)).groups == 2, "groups");
  // Weights that lie as they are read.
  CHECK(launch(image).dense_weight, "contiguous");
  Problem laid = image;
  laid.weight_stride = {48, 1, 12, 3};
  CHECK(!launch(laid).dense_weight, "output channels side by side");
  laid.weight_stride = {96, 16, 4, 1};
  CHECK(!launch(laid).dense_weight, "every second channel");
  laid.weight_stride = {48, 16, 8, 2};
  CHECK(!launch(laid).dense_weight, "every second tap");
  laid.weight_stride = {48, 16, 4, 2};
  CHECK(!launch(laid).dense_weight, "rows of taps that overlap");

  // One launch, and the plan takes it in IEEE float32 wherever rows lie as it reads them.
  CHECK(convt::describe(convt::make_plan(image, kH100, "thin_simt:0")) ==
            convt::describe(convt::make_plan(image, kH100, "thin_simt")),
        "the only launch");
  const std::string message = refusal(image, kH100, "thin_simt:1");
  CHECK(message == "CONVT_KERNEL=thin_simt:1: the problem has 1 launches of thin_simt", message);
  for (const Device& device : kDevices) {
    const auto chosen = [&device](const Problem& p) {
      check_plan(p, device.limits, nullptr, describe(p) + " on " + device.name);
      return convt::make_plan(p, device.limits, nullptr).kernel;
    };
    CHECK(chosen(image) == Kernel::kThinSimt, device.name);
    CHECK(chosen(make_problem(DType::kFloat32, 1, 56, 1, make_axis(180, 9, 3, 4, 2),
                              make_axis(320, 9, 3, 4, 2))) == Kernel::kThinSimt,
          device.name);
    CHECK(chosen(make_problem(DType::kFloat16, 16, 128, 3, large, large)) != Kernel::kThinSimt, device.name);
    CHECK(chosen(make_problem(DType::kFloat32, 16, 128, 3, large, large, 1, true)) != Kernel::kThinSimt,
          device.name);
    CHECK(chosen(make_problem(DType::kFloat32, 16, 3, 3, large, large, 3)) == Kernel::kDepthwise,
          device.name);
    // A weight that fits in the shared memory of some.
    const Problem deep = make_problem(DType::kFloat32, 2, 512, 1, k9s3, k9s3);
    const bool fits = device.limits.shared_bytes_per_block > 200 << 10;
    CHECK(refusal(deep, device.limits, "thin_simt").empty() == fits, device.name);
    if (fits) check_plan(deep, device.limits, "thin_simt", device.name);
    CHECK(fits || chosen(deep) != Kernel::kThinSimt, device.name);
  }
  // TF32 or not, it computes the same.
  Problem rounded = image;
  rounded.float32_precision = convt::Float32Precision::kTf32;
  const std::string line = convt::describe(convt::make_plan(rounded, kH100, "thin_simt"));
  CHECK(line == convt::describe(convt::make_plan(image, kH100, "thin_simt")), line);
  CHECK(line.rfind("thin_simt filter=4s2 couts=3x1 cropped=1 ", 0) == 0, line);
  CHECK(line.find("precision=") == std::string::npos, line);

  Problem misaligned = image, strided = image, apart = image;
  misaligned.input = reinterpret_cast<const void*>(uintptr_t{8});
  strided.input_stride.h += 2;
  apart.input_stride.w = 4;
  const Axis rows = make_axis(30, 4, 2, 1);
  const std::vector<Refusal> refused = {
      {make_problem(DType::kFloat16, 16, 128, 3, large, large), "it computes float32"},
      {make_problem(DType::kFloat64, 16, 128, 3, large, large), "it computes float32"},
      {make_problem(DType::kFloat32, 16, 128, 5, large, large), "not compiled for the filter"},
      {make_problem(DType::kFloat32, 16, 128, 3, k9s3, k9s3), "not compiled for the filter"},
      {make_problem(DType::kFloat32, 16, 128, 3, large, make_axis(128, 3, 2, 1)), "not compiled"},
      {make_problem(DType::kFloat32, 16, 128, 3, make_axis(128, 4, 4, 1), large), "not compiled"},
      {make_problem(DType::kFloat32, 16, 128, 3, large, make_axis(128, 4, 2, 1, 0, 2)), "not compiled"},
      {make_problem(DType::kFloat32, 16, 128, 3, make_axis(128, 4, 2, 1, 0, 2), large), "not compiled"},
      {make_problem(DType::kFloat32, 16, 128, 3, rows, rows), "four neighbours"},
      {make_problem(DType::kFloat32, 16, 128, 3, large, large, 1, true), "four neighbours"},
      {misaligned, "four neighbours"},
      {strided, "four neighbours"},
      {apart, "four neighbours"},
      {make_problem(DType::kFloat32, 2, 2000, 3, large, large), "does not fit in shared memory"},
      {make_problem(DType::kFloat32, 2, int64_t{1} << 40, 3, large, large), "does not fit in shared memory"},
      {make_problem(DType::kFloat32, 1 << 20, 8, 3, large, large), "32 bits"},
      {make_problem(DType::kFloat32, 1 << 14, 8 << 10, 3 << 10, large, large, 1 << 10), "32 bits"},
      {make_problem(DType::kFloat32, 1, 8, 3, large, make_axis(int64_t{1} << 31, 4, 2, 1)), "32 bits"},
  };
  check_refusals("thin_simt", refused);
  // Distances of a dimension of one do not matter.
  Problem one = make_problem(DType::kFloat32, 1, 16, 3, make_axis(1, 4, 2, 1), large);
  one.input_stride.n = 5;
  one.input_stride.h = 7;
  check_plan(one, kH100, "thin_simt", "one row of one image");
}

// Filters that are not longer than the stride: which problems scatter_gemm takes.
void test_scatter_gemm() {
  const Axis rows = make_axis(30, 2, 2), cols = make_axis(40, 2, 2), holes = make_axis(64, 3, 5, 1, 0, 2);
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16, DType::kFloat32}) {
    for (const Device& device : kDevices) {
      for (const int rank : {0, 1, 2, 5}) {
        const std::string forced = "scatter_gemm:" + std::to_string(rank);
        check_plan(make_problem(dtype, 3, 32, 72, rows, cols), device.limits, forced.c_str(), device.name);
        check_plan(make_problem(dtype, 3, 32, 72, holes, holes, 2), device.limits, forced.c_str(),
                   device.name);
      }
    }
  }
  const auto launch = [](const Problem& p) {
    check_plan(p, kH100, "scatter_gemm", describe(p));
    return convt::make_plan(p, kH100, "scatter_gemm").scatter_gemm;
  };
  CHECK(launch(make_problem(DType::kFloat16, 3, 32, 72, rows, cols)).pairs, "a filter of two");
  CHECK(!launch(make_problem(DType::kFloat16, 3, 32, 72, rows, cols)).fills, "a tap for every column");
  CHECK(launch(make_problem(DType::kFloat16, 3, 32, 72, rows, make_axis(40, 2, 2, 0, 1))).fills,
        "a column behind the last pixel's");
  CHECK(launch(make_problem(DType::kFloat16, 3, 32, 72, holes, holes)).fills, "columns without a tap");
  const convt::ScatterLaunch cropped =
      launch(make_problem(DType::kFloat16, 3, 32, 72, make_axis(30, 2, 2, 5), make_axis(40, 2, 2, 11)));
  CHECK(cropped.first_row == 2 && cropped.first_col == 4, "pixels without outputs");
  // The bias is not multiplied, so one channel more than a step takes is another step.
  CHECK(launch(make_problem(DType::kFloat16, 3, 33, 72, rows, cols)).steps == 4, "33 channels");
  CHECK(launch(make_problem(DType::kFloat32, 3, 64, 72, rows, cols)).steps == 8, "64 channels");

  Problem misaligned = make_problem(DType::kFloat16, 3, 32, 72, rows, cols);
  misaligned.input = reinterpret_cast<const void*>(uintptr_t{4});
  Problem strided = make_problem(DType::kFloat16, 3, 32, 72, rows, cols);
  strided.input_stride.h += 2;
  const std::vector<Refusal> refused = {
      {make_problem(DType::kFloat16, 3, 32, 72, make_axis(30, 3, 2), cols), "longer than the stride"},
      {make_problem(DType::kFloat16, 3, 32, 72, rows, make_axis(40, 2, 2, 0, 0, 2)),
       "longer than the stride"},
      {make_problem(DType::kFloat16, 3, 32, 72, rows, make_axis(42, 2, 2)), "four neighbours"},
      {make_problem(DType::kFloat16, 3, 32, 72, rows, cols, 1, true), "NCHW"},
      {make_problem(DType::kFloat16, 3, 129, 72, rows, cols), "too many input channels"},
      {make_problem(DType::kFloat64, 3, 32, 72, rows, cols), "float64"},
      {misaligned, "four neighbours"},
      {strided, "four neighbours"},
  };
  check_refusals("scatter_gemm", refused);
}

// Groups of few channels: which problems phase_gemm takes, and how.
void test_phase_gemm() {
  const Axis rows = make_axis(128, 3, 2, 1, 0, 2), cols = make_axis(256, 5, 3, 2);
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16, DType::kFloat32}) {
    for (const Device& device : kDevices) {
      for (const bool channels_last : {false, true}) {
        // Split operands and rows of all channels are too large for some.
        if (dtype == DType::kFloat32 && channels_last && device.limits.shared_bytes_per_block < 150 << 10) {
          continue;
        }
        const Problem p = make_problem(dtype, 16, 32, 64, rows, cols, 4, channels_last);
        for (const char* const forced : {"phase_gemm", "phase_gemm:1", "phase_gemm:2"}) {
          check_plan(p, device.limits, forced, describe(p) + " on " + device.name);
        }
      }
    }
  }
  const auto launch = [](const Problem& p) {
    check_plan(p, kH100, "phase_gemm", describe(p));
    return convt::make_plan(p, kH100, "phase_gemm").phase_gemm;
  };
  // Six phases of 15 taps: of a row's three that have some, six, six and three taps of 8 channels.
  const Problem groups = make_problem(DType::kFloat16, 16, 32, 64, rows, cols, 4);
  CHECK(convt::make_plan(groups, kH100, nullptr).kernel == Kernel::kPhaseGemm, "few channels a group");
  CHECK(launch(groups).steps == 8 && !launch(groups).fills && launch(groups).load_bytes() == 8, "NCHW");
  const Problem last = make_problem(DType::kFloat16, 16, 32, 64, rows, cols, 4, true);
  CHECK(launch(last).groups == 4 && launch(last).load_bytes() == 16, "channels_last");
  const Axis holes = make_axis(40, 3, 6, 1, 0, 2);
  CHECK(launch(make_problem(DType::kFloat16, 2, 16, 16, rows, holes)).fills, "columns without a tap");
  const Problem many = make_problem(DType::kFloat32, 2, 16, 400, rows, cols);
  CHECK(launch(many).cout_tiles > 1, "more output channels than a slice holds");

  const std::vector<Refusal> refused = {
      {make_problem(DType::kFloat16, 3, 65, 16, rows, cols), "too many input channels"},
      {make_problem(DType::kFloat32, 3, 33, 16, rows, cols), "too many input channels"},
      {make_problem(DType::kFloat16, 3, 8, 16, make_axis(9, 3, 16), make_axis(9, 3, 17)), "too many phases"},
      {make_problem(DType::kFloat16, 3, 8, 4096, rows, cols, 1, true), "fits in shared memory"},
      {make_problem(DType::kFloat64, 3, 8, 16, rows, cols), "float64"},
  };
  check_refusals("phase_gemm", refused);
}

// Input images of one pixel: which problems are pixel_gemm's, and what it copies at once.
void test_pixel_gemm() {
  const Axis k4 = make_axis(1, 4, 1);
  const auto plan = [](const Problem& p, const char* forced = nullptr) {
    check_plan(p, kH100, forced, describe(p));
    return convt::make_plan(p, kH100, forced);
  };
  for (const bool channels_last : {false, true}) {
    for (const DType dtype : {DType::kFloat16, DType::kBFloat16, DType::kFloat32}) {
      for (const auto precision : {convt::Float32Precision::kIeee, convt::Float32Precision::kTf32}) {
        Problem dcgan = make_problem(dtype, 128, 100, 512, k4, k4, 1, channels_last);
        dcgan.float32_precision = precision;
        for (const Device& device : kDevices) {
          const bool precise =
              dtype != DType::kFloat32 || device.fast_tf32 || precision == convt::Float32Precision::kTf32;
          const Kernel expected = precise ? Kernel::kPixelGemm : Kernel::kTileSimt;
          const std::string context = describe(dcgan) + " on " + device.name;
          CHECK(convt::make_plan(dcgan, device.limits, nullptr).kernel == expected, context);
          check_plan(dcgan, device.limits, nullptr, context);
          check_plan(dcgan, device.limits, "pixel_gemm", context);
        }
        // A thread block for each SM, or more. Images are 200 or 400 bytes apart.
        const convt::PixelGemmLaunch launch = plan(dcgan).pixel_gemm;
        CHECK(launch.blocks() >= 128, describe(dcgan));
        CHECK(launch.input_bytes == (dtype == DType::kFloat32 ? 16 : 8), describe(dcgan));
        // A contiguous weight has the order of NCHW.
        CHECK((launch.weight_bytes == 16) == !channels_last && launch.store_bytes == 16, describe(dcgan));
        CHECK(launch.taps == 0 && launch.tap_tiles == 1, describe(dcgan));
        // Of a channels_last one, pieces of output channels go to NCHW, in a tile with half of the taps.
        lay_channels_last(dcgan);
        const convt::PixelGemmLaunch turned = plan(dcgan).pixel_gemm;
        CHECK(turned.weight_bytes == 16 && turned.store_bytes == 16, describe(dcgan));
        CHECK(turned.taps == (channels_last ? 0 : 8), describe(dcgan));
        CHECK(turned.tap_tiles == (channels_last ? 1 : 2) && turned.blocks() >= 128, describe(dcgan));
        for (int rank = 0; rank < convt::kPixelGemmConfigCount; ++rank) {
          plan(dcgan, ("pixel_gemm:" + std::to_string(rank)).c_str());
        }
      }
    }
  }
  // Pieces of a tap are as wide as all distances allow; of whole images, outputs lie side by side.
  const auto by_taps = [&](DType dtype, int64_t cout, Axis h, Axis w, int64_t groups = 1) {
    Problem p = make_problem(dtype, 9, 64 * groups, cout * groups, h, w, groups);
    lay_channels_last(p);
    const Plan chosen = plan(p, "pixel_gemm");
    const bool named = convt::describe(chosen).find(" taps=") != std::string::npos;
    CHECK(named == (chosen.pixel_gemm.taps != 0), describe(p));
    return chosen.pixel_gemm;
  };
  const struct {
    DType dtype;
    int64_t cout;
    int h, w, taps, weight_bytes, store_bytes;
  } pieces[] = {
      {DType::kFloat16, 512, 2, 2, 4, 16, 16}, {DType::kFloat16, 8, 1, 4, 4, 16, 16},
      {DType::kFloat16, 6, 4, 4, 8, 4, 16},    {DType::kFloat16, 5, 4, 4, 0, 2, 16},
      {DType::kFloat16, 12, 3, 8, 8, 8, 16},   {DType::kFloat16, 16, 3, 4, 4, 16, 8},
      {DType::kFloat32, 512, 2, 2, 4, 16, 16}, {DType::kFloat32, 6, 4, 4, 8, 8, 16},
      {DType::kFloat32, 5, 4, 4, 0, 4, 16},    {DType::kFloat32, 16, 6, 6, 4, 16, 16},
      {DType::kFloat16, 64, 3, 3, 0, 2, 16},   {DType::kFloat16, 64, 1, 2, 0, 2, 16},
      {DType::kFloat16, 1, 4, 4, 0, 16, 16},
  };
  for (const auto& [dtype, cout, h, w, taps, weight_bytes, store_bytes] : pieces) {
    for (const int64_t groups : {1, 3}) {
      const auto launch = by_taps(dtype, cout, make_axis(1, h, 1), make_axis(1, w, 2), groups);
      const std::string context = std::to_string(cout) + " channels of " + std::to_string(h) + "x" +
                                  std::to_string(w) + " in " + std::to_string(groups) + " groups";
      CHECK(launch.taps == taps && launch.weight_bytes == weight_bytes, context);
      CHECK(launch.store_bytes == store_bytes, context);
    }
  }
  for (const Axis& axis : {make_axis(1, 4, 2, 1), make_axis(1, 4, 4, 0, 3), make_axis(1, 4, 1, 0, 0, 2),
                           make_axis(1, 4, 3, 0, 1)}) {
    CHECK(by_taps(DType::kFloat16, 64, axis, k4).taps == 0, "taps out of order");
  }
  // Outputs that taps do not reach one after the other, and odd sizes.
  for (const Axis& axis : {make_axis(1, 4, 2, 1), make_axis(1, 3, 4, 0, 3), make_axis(1, 3, 1, 0, 0, 2),
                           make_axis(1, 5, 3, 2)}) {
    const Plan other = plan(make_problem(DType::kFloat16, 64, 64, 32, axis, k4));
    CHECK(other.kernel == Kernel::kPixelGemm && other.pixel_gemm.weight_bytes == 2, describe(other));
  }
  const Axis k3 = make_axis(1, 3, 1), k1 = make_axis(1, 1, 1, 0, 0, 7);
  const convt::PixelGemmLaunch odd = plan(make_problem(DType::kFloat16, 3, 33, 5, k3, k3)).pixel_gemm;
  CHECK(odd.input_bytes == 2 && odd.weight_bytes == 2 && odd.store_bytes == 2, "odd sizes");
  const convt::PixelGemmLaunch single = plan(make_problem(DType::kFloat32, 1, 33, 5, k3, k3)).pixel_gemm;
  CHECK(single.input_bytes == 16 && single.weight_bytes == 4 && single.store_bytes == 4, "one odd image");
  CHECK(plan(make_problem(DType::kFloat16, 64, 64, 64, k1, k1)).pixel_gemm.weight_bytes == 16,
        "a dilated tap");
  Problem strided = make_problem(DType::kFloat16, 64, 64, 64, k4, k4);
  strided.input_stride = {128, 2, 1, 1};
  CHECK(plan(strided).pixel_gemm.input_bytes == 2, "every second channel");
  // Groups: outputs of one pixel and group lie side by side, in channels_last no more than those.
  const convt::PixelGemmLaunch groups =
      plan(make_problem(DType::kFloat16, 64, 64, 24, k4, k4, 2, true), "pixel_gemm").pixel_gemm;
  CHECK(groups.groups == 2 && groups.columns == 12 * 16 && groups.store_bytes == 8, "groups");
  CHECK(plan(make_problem(DType::kFloat16, 64, 64, 64, k4, k4, 32)).kernel != Kernel::kPixelGemm,
        "groups of two channels");
  // What it cannot do, and what is not for one product.
  const std::vector<Refusal> refused = {
      {make_problem(DType::kFloat16, 8, 64, 64, make_axis(2, 4, 1), k4), "one pixel"},
      {make_problem(DType::kFloat16, 8, 64, 64, k4, make_axis(2, 4, 1)), "one pixel"},
      {make_problem(DType::kFloat64, 8, 64, 64, k4, k4), "float64"},
      {make_problem(DType::kFloat16, 1, 8, 1 << 12, make_axis(1, 1, 1, 0, (1 << 20) - 1, 1 << 20), k4),
       "32 bits"},
  };
  check_refusals("pixel_gemm", refused);
}

// Outputs of implicit_gemm leave in boxes where all phases are rows of one product, a box's rows suit copies
// and an output channel's phases are rows of one warp.
void test_output_boxes() {
  const auto boxes = [](const Axis& h, const Axis& w, int64_t cin, int64_t cout, int64_t groups = 1) {
    const Problem p = make_problem(DType::kFloat16, 512, cin, cout, h, w, groups);
    check_plan(p, kH100, "implicit_gemm", describe(p));
    return convt::make_plan(p, kH100, "implicit_gemm").implicit_gemm.box;
  };
  const Axis mask = make_axis(14, 2, 2);  // of Mask R-CNN: rows of 56 bytes
  CHECK(boxes(mask, mask, 256, 256).count == 1 && boxes(mask, mask, 256, 256).whole_rows, "whole images");
  CHECK(boxes(mask, mask, 512, 256, 2).count == 1, "groups of whole warps");
  CHECK(boxes(mask, mask, 512, 258, 2).count == 0, "a warp has rows of two groups");
  CHECK(boxes(make_axis(9, 8, 8), make_axis(8, 8, 8), 256, 64).count == 0, "64 phases");
  CHECK(boxes(make_axis(14, 4, 2, 1), make_axis(14, 4, 2, 1), 256, 256).count == 0, "two products");
  CHECK(boxes(make_axis(7, 2, 2), make_axis(7, 2, 2), 256, 256).count == 0, "an odd number of columns");
}

// All launches of halo_gemm, with every kind of halo among them; and what it refuses.
void test_halo_gemm() {
  const Axis up = make_axis(16, 4, 2, 1), same = make_axis(60, 3, 1, 1), odd = make_axis(14, 2, 2);
  int rows = 0, long_rows = 0, parts = 0, flat = 0, pairs = 0, folds = 0, singles = 0, lines = 0, runs = 0;
  for (const auto precision : {convt::Float32Precision::kIeee, convt::Float32Precision::kTf32}) {
    for (const Axis& axis : {up, same, odd, make_axis(8, 5, 3, 2, 1), make_axis(12, 3, 1, 2, 0, 3)}) {
      for (const int64_t couts : {3, 4, 40, 41, 200}) {
        Problem p = make_problem(DType::kFloat32, 7, 72, couts, axis, axis, 1, couts % 10 > 0);
        p.float32_precision = precision;
        try {
          for (int rank = 0;; ++rank) {
            const std::string forced = "halo_gemm:" + std::to_string(rank);
            check_plan(p, kH100, forced.c_str(), forced + " " + describe(p));
            const convt::ImplicitGemmLaunch launch = convt::make_plan(p, kH100, forced.c_str()).halo_gemm;
            ++(launch.halo_lines ? lines : launch.flat ? flat : launch.halo_pitch > 0 ? long_rows : rows);
            parts += !launch.flat && launch.halo_pitch > 0 && launch.halo_rows < launch.rows;
            pairs += launch.phases_together == 2;
            folds += launch.fold() > 1;
            singles += launch.sizes().single;
            runs += launch.halo_runs;
          }
        } catch (const std::invalid_argument& error) {  // no launch of that rank
          CHECK(std::string(error.what()).find("launches of halo_gemm") != std::string::npos, error.what());
        }
      }
    }
  }
  for (const int count : {rows, long_rows, parts, flat, pairs, folds, singles, lines, runs})
    CHECK(count > 0, std::to_string(rows) + " " + std::to_string(long_rows) + " " + std::to_string(parts) +
                         " " + std::to_string(flat) + " " + std::to_string(pairs) + " " +
                         std::to_string(folds) + " " + std::to_string(singles) + " " + std::to_string(runs));
  // Rows of 56 bytes: images are at multiples of 16, which only taps that are not shifted can use.
  const char* const unaligned = "it reads rows, or images of unshifted taps, at multiples of 16 bytes";
  const Axis shifted = make_axis(14, 3, 2, 1, 1);
  Problem misplaced = make_problem(DType::kFloat32, 2, 16, 16, up, up);
  misplaced.input = reinterpret_cast<const void*>(uintptr_t{4});
  check_refusals("halo_gemm", {{make_problem(DType::kFloat32, 2, 16, 16, shifted, shifted), unaligned},
                               {misplaced, unaligned},
                               {make_problem(DType::kFloat16, 2, 16, 16, up, up), "it computes in float32"},
                               {make_problem(DType::kFloat32, 2, 18, 16, up, up, 1, true),
                                "it reads channels that lie side by side, at multiples of 16 bytes"}});
}

// Blocks of implicit_gemm divide channels where tiles leave multiprocessors over, and only there.
void test_divided_channels() {
  const Axis deep = make_axis(4, 4, 2, 1);
  for (const DType dtype : {DType::kFloat16, DType::kFloat32}) {
    for (const auto& [batch, divides] : {std::pair{1, true}, {128, false}}) {
      const Problem p = make_problem(dtype, batch, 512, 256, deep, deep, 1, true);
      CHECK((convt::make_plan(p, kH100, "implicit_gemm").implicit_gemm.splits > 1) == divides, describe(p));
      check_plan(p, kH100, "implicit_gemm", describe(p));
    }
  }
  // Few pixels of many output channels are not for thin then.
  const Problem p = make_problem(DType::kFloat32, 8, 512, 256, deep, deep, 1, true);
  CHECK(convt::make_plan(p, kH100, nullptr).kernel == Kernel::kImplicitGemm, describe(p));
}

void test_turned_operands() {
  const Axis a = make_axis(16, 4, 2, 1);
  Problem p = make_problem(DType::kFloat16, 2, 64, 64, a, a, 1, true);
  CHECK(!convt::make_plan(p, kH100, "implicit_gemm").implicit_gemm.turns_input, describe(p));
  p.input_stride.w = 8;  // windows that overlap
  CHECK(convt::make_plan(p, kH100, "implicit_gemm").implicit_gemm.turns_input, describe(p));
  check_plan(p, kH100, "implicit_gemm", describe(p));
  // More pixels of an image, or more groups of all images, than 32 bits count.
  const Axis large = make_axis(46341, 1, 1), row = make_axis(46341, 3, 1), pair = make_axis(2, 3, 1);
  constexpr int64_t kImages = 1 << 20, kGroups = 1 << 11;
  for (const Problem& many :
       {make_problem(DType::kFloat16, 1, 8, 1, large, row),
        make_problem(DType::kFloat16, kImages, 8 * kGroups, kGroups, pair, pair, kGroups)}) {
    CHECK(!refusal(many, kH100, "implicit_gemm").empty(), describe(many));
  }
}

void test_random_problems() {
  std::mt19937_64 random(7);
  const auto draw = [&](int64_t low, int64_t high) {
    return low + static_cast<int64_t>(random() % static_cast<uint64_t>(high - low + 1));
  };
  const auto draw_axis = [&](bool one_pixel) {
    const int64_t stride = draw(1, 8), dilation = draw(1, 4), kernel = draw(1, 7);
    // Sizes over several decades.
    const double size = std::pow(10.0, static_cast<double>(draw(0, 350)) / 100.0);
    const int64_t input = one_pixel ? 1 : static_cast<int64_t>(size);
    const int64_t full = (input - 1) * stride + dilation * (kernel - 1) + 1;
    return make_axis(input, kernel, stride, draw(0, (full - 1) / 2), draw(0, std::max(stride, dilation) - 1),
                     dilation);
  };
  int tiled = 0;
  constexpr int kProblems = 1500;
  for (int trial = 0; trial < kProblems; ++trial) {
    const bool one_pixel = trial % 8 == 0;
    const int64_t groups = draw(0, 3) == 0 ? draw(2, 40) : 1;
    const DType dtype = draw(0, 1) == 0 ? DType::kFloat32 : DType::kBFloat16;
    Problem p = make_problem(dtype, draw(1, 200), groups * draw(1, 300), groups * draw(1, 300),
                             draw_axis(one_pixel), draw_axis(one_pixel), groups, draw(0, 1) == 0);
    if (draw(0, 1) == 0) p.float32_precision = convt::Float32Precision::kTf32;
    if (draw(0, 3) == 0) {
      // Neighbours of no dimension lie side by side.
      for (int64_t* const stride :
           {&p.input_stride.n, &p.input_stride.c, &p.input_stride.h, &p.input_stride.w})
        *stride *= 8;
    }
    const Device& device = kDevices[draw(0, std::size(kDevices) - 1)];
    const std::string context = describe(p) + " on " + device.name;
    const Plan plan = convt::make_plan(p, device.limits, nullptr);
    tiled += plan.kernel != Kernel::kNone && plan.kernel != Kernel::kGeneric;
    check_plan(p, device.limits, nullptr, context);
    // Where the fastest is another kernel, too.
    for (const char* const forced : {"depthwise",        "thin",
                                     "thin_simt",        "tile_mma",
                                     "tile_wgmma",       "col2im",
                                     "col2im:1",         "col2im:9",
                                     "implicit_gemm",    "implicit_gemm:1",
                                     "implicit_gemm:13", "implicit_gemm:40",
                                     "halo_gemm",        "halo_gemm:1",
                                     "halo_gemm:13",     "halo_gemm:40",
                                     "pixel_gemm",       "scatter_gemm",
                                     "scatter_gemm:1",   "scatter_gemm:7",
                                     "phase_gemm",       "phase_gemm:1",
                                     "phase_gemm:9"}) {
      try {
        check_plan(p, kH100, forced, context);
      } catch (const std::invalid_argument&) {
      }
    }
    // The same problem has the same plan.
    CHECK(convt::describe(plan) == convt::describe(convt::make_plan(p, device.limits, nullptr)), context);
  }
  CHECK(tiled > kProblems / 2, std::to_string(tiled));
}

void test_description() {
  const Axis a = make_axis(16, 4, 2, 1);
  const Problem p = make_problem(DType::kFloat32, 2, 8, 8, a, a);
  CHECK(convt::describe(convt::make_plan(p, kH100, "generic")) == "generic", "");
  const std::string depthwise = convt::describe(convt::make_plan(p, kH100, "depthwise"));
  CHECK(depthwise.rfind("depthwise mapping=columns ", 0) == 0, depthwise);
  const Problem up = make_problem(DType::kFloat16, 2, 8, 8, a, a, 8);
  const std::string rolling = convt::describe(convt::make_plan(up, kH100, "depthwise"));
  CHECK(rolling.rfind("depthwise mapping=rolling ", 0) == 0, rolling);
  CHECK(rolling.find(" filter=4,2,1 loads_vectors=1 ") != std::string::npos, rolling);
  const std::string line = convt::describe(convt::make_plan(p, kH100, "tile_simt"));
  CHECK(line.rfind("tile_simt ", 0) == 0, line);
  CHECK(line.find('\n') == std::string::npos, line);
  CHECK(line.find(" shared=") != std::string::npos && line.find(" blocks=") != std::string::npos, line);
  for (const auto precision : {convt::Float32Precision::kIeee, convt::Float32Precision::kTf32}) {
    Problem rounded = p;
    rounded.float32_precision = precision;
    const char* const expected =
        precision == convt::Float32Precision::kIeee ? " precision=ieee" : " precision=tf32";
    for (const char* const kernel : {"thin", "tile_mma", "tile_wgmma", "implicit_gemm"}) {
      const std::string text = convt::describe(convt::make_plan(rounded, kH100, kernel));
      CHECK(text.find(expected) != std::string::npos, text);
    }
  }
}

void test_architectures() {
  const std::string wheel = "8.0 8.6 9.0a 10.0+PTX 12.0";
  const struct {
    const char* archs;
    int compute_capability;
    bool expected;
  } cases[] = {
      {wheel.c_str(), 75, false}, {wheel.c_str(), 80, true},  {wheel.c_str(), 86, true},
      {wheel.c_str(), 87, true},  {wheel.c_str(), 89, true},  {wheel.c_str(), 90, true},
      {wheel.c_str(), 100, true}, {wheel.c_str(), 103, true}, {wheel.c_str(), 110, true},
      {wheel.c_str(), 120, true}, {wheel.c_str(), 121, true}, {wheel.c_str(), 130, true},
      {"8.6", 80, false},         {"8.6", 89, true},          {"8.6", 90, false},
      {"9.0a", 90, true},         {"9.0a", 91, false},        {"9.0a", 100, false},
      {"9.0a", 89, false},        {"8.0+PTX", 90, true},      {"8.0+PTX", 75, false},
      {"10.0", 103, true},        {"10.0", 110, false},       {"", 90, false},
  };
  for (const auto& [archs, compute_capability, expected] : cases) {
    CHECK(convt::has_code_for(archs, compute_capability) == expected,
          std::string(archs) + " for " + std::to_string(compute_capability));
  }
  CHECK(convt::names_arch(wheel, "9.0a") && convt::names_arch(wheel, "12.0"), wheel);
  CHECK(!convt::names_arch(wheel, "9.0") && !convt::names_arch("9.0 9.0+PTX", "9.0a"), wheel);
}

}  // namespace

int main() {
  test_configurations();
  test_typical_problems();
  test_depthwise();
  test_rolling();
  test_generic_is_the_last_resort();
  test_empty_output();
  test_forced_kernels();
  test_pixel_gemm();
  test_thin_simt();
  test_scatter_gemm();
  test_phase_gemm();
  test_halo_gemm();
  test_divided_channels();
  test_turned_operands();
  test_random_problems();
  test_description();
  test_output_boxes();
  test_architectures();
  return check::result();
}
