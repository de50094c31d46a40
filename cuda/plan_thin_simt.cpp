// Which launch of thin_simt computes a problem, and what it should cost.

#include <algorithm>
#include <cmath>

#include "plan_common.h"

namespace convt {
namespace {

// The filter's place in kThinSimtFilters, or their number.
int find_filter(const Problem& p) {
  const Axis &h = p.h, &w = p.w;
  const auto is = [&](const ThinSimtFilter& filter) {
    return h.kernel == filter.kernel && w.kernel == filter.kernel && h.stride == filter.stride &&
           w.stride == filter.stride && h.dilation == 1 && w.dilation == 1 &&
           p.cout_per_group == filter.couts && w.padding >= filter.cropped;
  };
  return static_cast<int>(std::find_if(std::begin(kThinSimtFilters), std::end(kThinSimtFilters), is) -
                          std::begin(kThinSimtFilters));
}

ThinSimtLaunch launch_of(const Problem& problem, const DeviceLimits& device) {
  ThinSimtLaunch launch;
  launch.filter = find_filter(problem);
  const ThinSimtFilter& shape = launch.shape();
  Axis cropped = problem.w;
  cropped.padding -= shape.cropped;
  const Bases rows = bases_of(problem.h), cols = bases_of(cropped);
  launch.first_row = rows.first;
  launch.first_col = static_cast<int>(cols.first / kRowVector * kRowVector);
  launch.row_sets = static_cast<int>(ceil_div(rows.count, shape.rows()));
  launch.col_sets = static_cast<int>(ceil_div(cols.first + cols.count - launch.first_col, kRowVector));
  launch.tiles = ceil_div(problem.batch * launch.row_sets * launch.col_sets, kThinSimtQuads);
  launch.groups = problem.groups;
  const WeightStrides& w = problem.weight_stride;
  launch.dense_weight = w.kw == 1 && w.kh == shape.kernel &&
                        (shape.couts == 1 || w.cout == shape.kernel * shape.kernel) &&
                        (problem.cin() == 1 || w.cin == shape.weights());
  launch.shared_bytes = thin_simt_shared(shape, problem.cin_per_group).bytes;
  launch.shared_limit = static_cast<size_t>(device.shared_bytes_per_block);
  return launch;
}

// Counts of what the kernel's loops do, with weights fitted to 29 timed launches of 11 filters on an H100,
// which it finds to 10%.
double cycles(const Problem& problem, const DeviceLimits& device, const ThinSimtLaunch& t) {
  const ThinSimtFilter& shape = t.shape();
  const double channels = static_cast<double>(problem.cin_per_group) / kThinSimtWarps;  // of a warp
  const int loads = (shape.before() > 0) + 1 + (shape.behind() > 0);                    // of a row
  const int products = shape.weights() * kThinSimtColumns * shape.rows();
  const int of_channel = products + shape.pitch() / 4 + 2 * loads * (shape.rows() + shape.taps() - 1) + 14;
  const double copies = shape.pitch() > shape.weights() ? 1.4 * channels * shape.weights() : 0;
  const double of_warp = std::ceil(channels) * of_channel + copies + 14.0 * shape.sums();
  // The last thread blocks have a multiprocessor to themselves, and so have all where there are few.
  const double blocks = static_cast<double>(t.blocks()) / device.sm_count;
  const double issue = std::max(of_warp * (blocks / 0.75 + 1), 2 * of_warp + 1800);
  const double input = static_cast<double>(problem.batch) * static_cast<double>(problem.cin()) *
                       static_cast<double>(problem.h.input * problem.w.input);
  const double memory = 0.00057 * 4 * (input + static_cast<double>(problem.output_elements()));
  return 2600 + std::max(issue, memory);
}

}  // namespace

const char* thin_simt_obstacle(const Problem& p, const DeviceLimits& device) {
  if (p.dtype != DType::kFloat32) return "it computes float32";
  if (!fits_32_bits(p.h) || !fits_32_bits(p.w)) return "its coordinates have 32 bits";
  const int filter = find_filter(p);
  if (filter == kThinSimtFilterCount) return "it is not compiled for the filter";
  const char* const obstacle = row_vectors_obstacle(p);
  if (obstacle != nullptr) return obstacle;
  const ThinSimtFilter& shape = kThinSimtFilters[filter];
  if (static_cast<double>(p.cin_per_group) * shape.pitch() >= static_cast<double>(kMaxCoordinate) ||
      thin_simt_shared(shape, p.cin_per_group).bytes > static_cast<size_t>(device.shared_bytes_per_block))
    return "the weight does not fit in shared memory";
  const double quads = static_cast<double>(p.batch) * static_cast<double>(bases_of(p.h).count) *
                       (static_cast<double>(bases_of(p.w).count) / kRowVector + 2);
  if (quads * static_cast<double>(p.groups) >= static_cast<double>(kMaxCoordinate))
    return "its coordinates have 32 bits";
  return nullptr;
}

void visit_thin_simt(const Problem& problem, const DeviceLimits& device, const ThinSimtVisitor& visit) {
  const ThinSimtLaunch launch = launch_of(problem, device);
  visit(launch, cycles(problem, device, launch));
}

}  // namespace convt
