// implicit_gemm and turn_operands on the CPU (tests/cpp/emulator): launches of the plan's search, of problems
// of every kind, against sums in double precision.
//
//   test_emulated_implicit_gemm [--all] [--case TEXT] [--launch TEXT] [--precision TEXT] [--random N]
//                               [--seeds N] [--schedule N] [--part I/N] [--list] [--times]
//
// By default a sample of the launches runs, with each kind of launch at least once. --all runs one of each
// kind of each problem; --case and --launch do so of those whose name or plan has the text. --random has so
// many problems drawn instead of those that are listed. --seeds runs each under so many schedules, --schedule
// under that one, which a failure names. --part runs every N-th launch, from number I on.
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "../../cuda/plan_common.h"
#include "check.h"
#include "convt/activate.h"
#include "convt/device/scalar.cuh"
#include "convt/kernels.h"
#include "convt/plan.h"
#include "emulator.h"

CONVT_EMULATED_SHARED(convt::implicit_gemm)

namespace {

using convt::Axis;
using convt::DType;
using convt::ImplicitGemmLaunch;
using convt::Problem;

// ---- problems

struct Case {
  const char* name;
  int64_t batch, groups, cin, cout;  // channels of a group
  Axis h, w;
  bool channels_last = false, bias = true;
  convt::Activation activation = {};
  int input_offset = 0, output_offset = 0;  // elements from an aligned address
};

Axis axis(int64_t input, int64_t kernel, int64_t stride, int64_t padding = 0, int64_t output_padding = 0,
          int64_t dilation = 1) {
  Axis a = {input, 0, kernel, stride, padding, output_padding, dilation};
  a.output = a.full_output();
  return a;
}

Case square(const char* name, int64_t batch, int64_t groups, int64_t cin, int64_t cout, const Axis& side,
            bool channels_last = false) {
  return {name, batch, groups, cin, cout, side, side, channels_last};
}

std::vector<Case> make_cases() {
  const Axis up4 = axis(8, 4, 2, 1), odd3 = axis(7, 3, 2, 1, 1), same3 = axis(9, 3, 1, 1);
  std::vector<Case> cases = {
      // NCHW whose phases fold, with outputs in boxes, whole rows and parts of rows.
      square("dcgan", 2, 1, 40, 24, up4),
      {"dcgan_wide", 1, 1, 36, 17, axis(5, 4, 2, 1), axis(20, 4, 2, 1)},
      square("non_overlapping", 3, 1, 40, 20, axis(8, 2, 2)),
      square("stride_4", 1, 1, 33, 10, axis(6, 4, 4)),
      {"patches_4x2", 2, 1, 40, 9, axis(5, 4, 4), axis(8, 2, 2)},
      // Phases together, or one after the other.
      square("unet", 1, 1, 64, 130, odd3),
      {"odd_width", 2, 1, 40, 70, axis(6, 3, 2, 1, 1), axis(7, 3, 2, 1, 0)},
      {"odd_rows", 1, 1, 35, 33, axis(5, 5, 2, 2), axis(9, 5, 2, 2, 1)},
      {"stride_3", 1, 1, 40, 20, axis(5, 5, 3, 1, 2), axis(6, 4, 3, 2)},
      {"tapless", 1, 1, 40, 20, axis(5, 1, 2), axis(6, 2, 3)},
      {"dilated", 1, 1, 40, 30, axis(7, 3, 2, 2, 1, 3), axis(8, 3, 2, 1, 0, 2)},
      {"dilated_by_stride", 1, 1, 40, 20, axis(7, 3, 2, 1, 0, 2), axis(6, 3, 4, 2, 1, 2)},
      // Stride 1.
      square("same", 2, 1, 48, 40, same3),
      square("pointwise", 2, 1, 72, 140, axis(9, 1, 1)),
      {"one_dimension", 3, 1, 40, 50, axis(1, 1, 1), axis(37, 4, 2, 1)},
      square("one_pixel", 9, 1, 96, 30, axis(1, 4, 1)),
      square("deep", 1, 1, 300, 40, axis(4, 3, 2, 1, 1)),
      // Rows of whole pieces of 16 bytes, whose halos are read as they lie: rows by themselves and together,
      // taps of two phases, of distances of several columns, of none; columns beside the image on one side or
      // both, or cropped; several tiles along each axis.
      {"halos_same", 2, 1, 40, 70, axis(10, 3, 1, 1), axis(12, 3, 1, 1)},
      {"halos_wide", 1, 1, 33, 30, axis(3, 3, 1, 2), axis(300, 7, 1, 3)},
      {"halos_full", 2, 1, 40, 40, axis(5, 3, 1, 0), axis(20, 5, 1, 0)},
      {"halos_cropped", 1, 1, 40, 40, axis(9, 3, 1, 3), axis(24, 3, 1, 4)},
      {"halos_k5s2", 3, 1, 40, 130, axis(6, 5, 2, 2, 1), axis(16, 5, 2, 2, 1)},
      {"halos_k3s2", 1, 1, 72, 50, axis(9, 3, 2, 0), axis(32, 3, 2, 0)},
      {"halos_k4s2", 2, 1, 64, 64, axis(16, 4, 2, 1), axis(16, 4, 2, 1)},
      {"halos_k3s3", 2, 1, 40, 20, axis(5, 5, 3, 1, 2), axis(16, 5, 3, 2)},
      {"halos_k1s2", 2, 1, 40, 20, axis(5, 1, 2), axis(12, 1, 2)},
      {"halos_dilated", 1, 1, 40, 30, axis(8, 3, 1, 2, 0, 2), axis(16, 3, 1, 0, 0, 5)},
      {"halos_dilated_s2", 2, 1, 40, 30, axis(7, 3, 2, 2, 1, 3), axis(12, 4, 2, 1, 0, 3)},
      {"halos_row", 5, 1, 40, 50, axis(1, 1, 1), axis(100, 4, 2, 1)},
      {"halos_k1x8s8", 5, 1, 40, 24, axis(1, 1, 1), axis(92, 8, 8)},
      // Rows whose taps are taken together, of several tiles, with a weight that stays or, of groups, of many
      // channels or of phases, does not.
      {"halos_row_taps", 3, 1, 40, 70, axis(7, 3, 1, 1), axis(132, 3, 1, 1)},
      {"halos_row_taps_wide", 1, 1, 33, 60, axis(4, 2, 1), axis(120, 3, 1, 2)},
      {"halos_row_taps_groups", 3, 2, 40, 24, axis(1, 1, 1), axis(68, 3, 1)},
      {"halos_row_taps_deep", 1, 1, 300, 40, axis(3, 3, 1, 2), axis(64, 3, 1)},
      {"halos_row_taps_phases", 1, 1, 40, 30, axis(4, 3, 2, 1), axis(72, 3, 1, 0)},
      {"halos_row_taps_folds", 2, 1, 40, 33, axis(4, 2, 2), axis(64, 3, 1, 1)},
      {"halos_row_taps_nhwc", 2, 1, 40, 66, axis(5, 3, 1, 1), axis(70, 3, 1, 1), true},
      {"halos_row_taps_lines", 1, 1, 36, 92, axis(8, 4, 1, 1), axis(64, 3, 1, 0), true},
      {"halos_groups", 2, 3, 24, 20, axis(6, 4, 2, 1), axis(8, 4, 2, 1)},
      {"halos_nhwc", 2, 1, 72, 70, axis(6, 5, 2, 2, 1), axis(70, 5, 1, 2), true},
      {"halos_nhwc_images", 13, 2, 36, 33, axis(4, 4, 2, 1), axis(5, 3, 1, 2, 0, 2), true},
      {"halos_planes", 9, 1, 40, 36, axis(14, 2, 2), axis(14, 2, 2)},
      // Outputs in runs: of parts of rows, of several rows and parts, of whole images of any width, of
      // groups.
      {"halos_runs_wide", 2, 1, 33, 36, axis(3, 2, 2), axis(300, 2, 2)},
      {"halos_runs_parts", 3, 1, 40, 13, axis(7, 4, 4), axis(52, 4, 4)},
      {"halos_runs_images", 25, 1, 40, 33, axis(4, 2, 2), axis(5, 2, 2)},
      {"halos_runs_groups", 2, 2, 36, 20, axis(9, 4, 4), axis(36, 2, 2)},
      // Groups, channels that fill no line, batches.
      square("groups", 2, 3, 20, 24, odd3),
      square("groups_of_16", 2, 2, 16, 16, axis(6, 4, 2, 1)),
      square("few_channels", 5, 1, 5, 3, axis(6, 3, 2, 1)),
      square("batch", 21, 1, 32, 20, axis(4, 4, 2, 1)),
      square("many_couts", 1, 1, 40, 300, axis(5, 3, 1, 1)),
      // NHWC.
      square("dcgan_nhwc", 2, 1, 40, 24, up4, true),
      square("unet_nhwc", 1, 1, 64, 130, odd3, true),
      square("stride_3_nhwc", 2, 1, 36, 35, axis(5, 5, 3, 1, 2), true),
      square("pointwise_nhwc", 2, 1, 72, 140, axis(9, 1, 1), true),
      square("groups_nhwc", 2, 3, 20, 24, odd3, true),
      square("odd_channels_nhwc", 2, 1, 37, 33, odd3, true),
      {"dilated_nhwc", 1, 1, 40, 30, axis(7, 3, 2, 2, 1, 3), axis(8, 3, 1, 1, 0, 2), true},
      square("non_overlapping_nhwc", 3, 1, 40, 20, axis(8, 2, 2), true),
  };
  const auto with = [&cases](const char* name, const char* like, const std::function<void(Case&)>& change) {
    for (const Case& known : cases) {
      if (std::string(known.name) != like) continue;
      Case c = known;
      c.name = name;
      change(c);
      cases.push_back(c);
      return;
    }
    std::abort();
  };
  const convt::Activation leaky = {convt::ActivationKind::kLeakyRelu, 0.25, 0, 0.5, 1};
  const convt::Activation gelu = {convt::ActivationKind::kGelu};
  with("dcgan_leaky", "dcgan", [&](Case& c) { c.activation = leaky; });
  with("unet_gelu", "unet", [&](Case& c) { c.activation = gelu; });
  with("unet_nhwc_leaky", "unet_nhwc", [&](Case& c) { c.activation = leaky; });
  with("halos_leaky", "halos_k4s2", [&](Case& c) { c.activation = leaky; });
  with("halos_row_taps_gelu", "halos_row_taps_phases", [&](Case& c) { c.activation = gelu; });
  with("halos_folded_gelu", "halos_planes", [&](Case& c) { c.activation = gelu; });
  with("halos_misplaced", "halos_k4s2", [](Case& c) { c.output_offset = 2; });
  with("halos_output_odd", "halos_planes", [](Case& c) { c.output_offset = 1; });
  with("halos_runs_leaky", "halos_runs_parts", [&](Case& c) { c.activation = leaky; });
  with("halos_runs_no_bias", "halos_runs_wide", [](Case& c) { c.bias = false; });
  with("unet_no_bias", "unet", [](Case& c) { c.bias = false; });
  with("dcgan_misplaced", "dcgan", [](Case& c) { c.input_offset = 1, c.output_offset = 1; });
  with("unet_misplaced", "unet", [](Case& c) { c.input_offset = 3, c.output_offset = 2; });
  with("unet_nhwc_misplaced", "unet_nhwc", [](Case& c) { c.input_offset = 1, c.output_offset = 3; });
  return cases;
}

// Problem `number`, random_<number> by name.
Case random_case(int number) {
  std::mt19937 random(static_cast<unsigned>(number));
  const auto below = [&random](int64_t n) {
    return static_cast<int64_t>(random() % static_cast<uint64_t>(n));
  };
  static std::set<std::string> names;
  Case c = {};
  c.name = names.insert("random_" + std::to_string(number)).first->c_str();
  c.groups = std::max<int64_t>(below(5) - 1, 1);
  c.batch = 1 + below(below(4) == 0 ? 20 : 3);
  c.cin = 1 + below(below(4) == 0 ? 200 : 70);
  c.cout = 1 + below(below(4) == 0 ? 200 : 70);
  const auto draw = [&](bool in_fours) {
    for (;;) {
      const int64_t side = 1 + below(below(4) == 0 ? 40 : 12), kernel = 1 + below(5), stride = 1 + below(4);
      const int64_t dilation = below(3) == 0 ? 1 + below(4) : 1, span = dilation * (kernel - 1);
      const int64_t padding = below(3) == 0 ? below(span + 3) : span / 2;
      const Axis a = axis(in_fours ? (side + 3) / 4 * 4 : side, kernel, stride, padding,
                          below(std::max(stride, dilation)), dilation);
      if (a.output > 0) return a;
    }
  };
  c.h = draw(false);
  c.w = draw(below(4) > 0);
  c.channels_last = below(4) == 0;
  c.bias = below(4) > 0;
  if (below(8) == 0) c.output_offset = static_cast<int>(below(4));
  if (below(8) == 0) c.activation = {convt::ActivationKind::kLeakyRelu, 0.25, 0, 0.5, 1};
  return c;
}

using Launcher = cudaError_t (*)(const Problem&, const ImplicitGemmLaunch&, const void*, cudaStream_t);

struct Precision {
  const char *name, *code;  // which others share
  DType dtype;
  convt::Float32Precision of_float32;
  double eps;  // of the output's rounding
  Launcher launch, launch_halos = nullptr;
};

constexpr auto kTf32 = convt::Float32Precision::kTf32, kIeee = convt::Float32Precision::kIeee;
const Precision kPrecisions[] = {
    {"tf32", "tf32", DType::kFloat32, kTf32, 0x1p-23, convt::launch_implicit_gemm_tf32,
     convt::launch_halo_gemm_tf32},
    {"ieee", "ieee", DType::kFloat32, kIeee, 0x1p-23, convt::launch_implicit_gemm_ieee,
     convt::launch_halo_gemm_ieee},
    {"fp16", "16 bits", DType::kFloat16, kIeee, 0x1p-10, convt::launch_implicit_gemm_fp16},
    {"bf16", "16 bits", DType::kBFloat16, kIeee, 0x1p-7, convt::launch_implicit_gemm_bf16},
};

// ---- memory

// Bytes between pages that cannot be accessed; they end where those after them begin, or a little before.
class Guarded {
 public:
  Guarded(size_t bytes, size_t offset = 0) {
    constexpr size_t kPage = 4096, kAlignment = 256;
    const size_t all = (bytes + offset + kAlignment - 1) / kAlignment * kAlignment;
    pages_ = (all + kPage - 1) / kPage * kPage + 2 * kPage;
    base_ = static_cast<unsigned char*>(
        mmap(nullptr, pages_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED) std::abort();
    mprotect(base_, kPage, PROT_NONE);
    mprotect(base_ + pages_ - kPage, kPage, PROT_NONE);
    begin_ = base_ + pages_ - kPage - all + offset;
    std::memset(base_ + kPage, 0xff, pages_ - 2 * kPage);
  }
  ~Guarded() { munmap(base_, pages_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  unsigned char* begin() const { return begin_; }

 private:
  unsigned char *base_, *begin_;
  size_t pages_;
};

double load(DType dtype, const unsigned char* from) {
  if (dtype == DType::kFloat32) return *reinterpret_cast<const float*>(from);
  if (dtype == DType::kFloat16) return convt::widen(*reinterpret_cast<const __half*>(from));
  return convt::widen(*reinterpret_cast<const __nv_bfloat16*>(from));
}

void store(DType dtype, unsigned char* to, double x) {
  const float rounded = static_cast<float>(x);
  if (dtype == DType::kFloat32) *reinterpret_cast<float*>(to) = rounded;
  if (dtype == DType::kFloat16) *reinterpret_cast<__half*>(to) = convt::narrow<__half>(rounded);
  if (dtype == DType::kBFloat16)
    *reinterpret_cast<__nv_bfloat16*>(to) = convt::narrow<__nv_bfloat16>(rounded);
}

// ---- a problem with its values, and what is to come out

constexpr size_t kMargin = 256;  // bytes before and after the output that must stay

class Operands {
 public:
  // Small integers, whose sums are exact, or numbers that are rounded.
  Operands(const Case& c, const Precision& precision, bool integers)
      : case_(c),
        precision_(precision),
        integers_(integers),
        size_(static_cast<size_t>(convt::element_size(precision.dtype))),
        input_(static_cast<size_t>(c.batch * c.groups * c.cin * c.h.input * c.w.input) * size_,
               static_cast<size_t>(c.input_offset) * size_),
        weight_(static_cast<size_t>(c.groups * c.cin * c.cout * c.h.kernel * c.w.kernel) * size_),
        bias_(static_cast<size_t>(c.groups * c.cout) * size_) {
    problem.dtype = precision.dtype;
    problem.float32_precision = precision.of_float32;
    problem.batch = c.batch;
    problem.groups = c.groups;
    problem.cin_per_group = c.cin;
    problem.cout_per_group = c.cout;
    problem.h = c.h;
    problem.w = c.w;
    problem.input = input_.begin();
    problem.weight = weight_.begin();
    problem.bias = c.bias ? bias_.begin() : nullptr;
    const int64_t cin = problem.cin(), taps = c.h.kernel * c.w.kernel;
    problem.input_stride =
        c.channels_last
            ? convt::ActivationStrides{cin * c.h.input * c.w.input, 1, cin * c.w.input, cin}
            : convt::ActivationStrides{cin * c.h.input * c.w.input, c.h.input * c.w.input, c.w.input, 1};
    problem.weight_stride = {c.cout * taps, taps, c.w.kernel, 1};
    problem.output_channels_last = c.channels_last;
    problem.activation = c.activation;
    std::mt19937 random(12345);
    fill(random, input_, c.batch * cin * c.h.input * c.w.input);
    fill(random, weight_, cin * c.cout * taps);
    fill(random, bias_, c.groups * c.cout);
    compute();
  }

  Problem problem;

  size_t output_bytes() const { return static_cast<size_t>(problem.output_elements()) * size_; }
  size_t input_bytes() const {
    return static_cast<size_t>(problem.batch * problem.cin() * problem.h.input * problem.w.input) * size_;
  }
  size_t weight_bytes() const {
    return static_cast<size_t>(problem.cin() * problem.cout_per_group * problem.h.kernel * problem.w.kernel) *
           size_;
  }

  // What is wrong with an output, or an empty string.
  std::string compare(const unsigned char* output) const {
    const convt::ActivationStrides at = dense_output_strides(problem);
    int64_t wrong = 0, number = 0;
    std::string first;
    for (int64_t n = 0; n < problem.batch; ++n)
      for (int64_t c = 0; c < problem.cout(); ++c)
        for (int64_t h = 0; h < problem.h.output; ++h)
          for (int64_t w = 0; w < problem.w.output; ++w, ++number) {
            const double got =
                load(precision_.dtype,
                     output + static_cast<size_t>(n * at.n + c * at.c + h * at.h + w * at.w) * size_);
            const double want = expected_[static_cast<size_t>(number)],
                         bound = bound_[static_cast<size_t>(number)];
            if (std::fabs(got - want) <= bound) continue;
            if (wrong++ > 0) continue;
            char text[200];
            std::snprintf(text, sizeof(text),
                          "image %d channel %d row %d column %d is %.9g, not %.9g +- %.3g",
                          static_cast<int>(n), static_cast<int>(c), static_cast<int>(h), static_cast<int>(w),
                          got, want, bound);
            first = text;
          }
    if (wrong == 0) return {};
    return std::to_string(wrong) + " of " + std::to_string(number) + " outputs are wrong: " + first;
  }

 private:
  const Case& case_;
  const Precision& precision_;
  bool integers_;
  size_t size_;
  Guarded input_, weight_, bias_;
  std::vector<double> expected_, bound_;  // of the output in NCHW

  void fill(std::mt19937& random, const Guarded& memory, int64_t count) const {
    for (int64_t i = 0; i < count; ++i) {
      const double unit = static_cast<double>(random()) / 0x1p32;
      const double x = integers_ ? std::floor(unit * 7) - 3 : 4 * unit - 2;
      store(precision_.dtype, memory.begin() + static_cast<size_t>(i) * size_, x);
    }
  }

  void compute() {
    const Problem& p = problem;
    const auto values = [this](const Guarded& memory, int64_t count) {
      std::vector<double> all(static_cast<size_t>(count));
      for (size_t i = 0; i < all.size(); ++i) all[i] = load(precision_.dtype, memory.begin() + i * size_);
      return all;
    };
    const int64_t cin = p.cin_per_group, cout = p.cout_per_group, taps = p.h.kernel * p.w.kernel;
    const std::vector<double> x = values(input_, p.batch * p.cin() * p.h.input * p.w.input);
    const std::vector<double> w = values(weight_, p.cin() * cout * taps), b = values(bias_, p.cout());
    const int64_t plane = p.h.output * p.w.output;
    std::vector<double> magnitude(static_cast<size_t>(p.output_elements()));
    expected_.resize(magnitude.size());
    bound_.resize(magnitude.size());
    for (int64_t n = 0; n < p.batch; ++n)
      for (int64_t c = 0; c < p.cout(); ++c) {
        double* const to = &expected_[static_cast<size_t>((n * p.cout() + c) * plane)];
        double* const sizes = &magnitude[static_cast<size_t>((n * p.cout() + c) * plane)];
        const double bias = p.bias == nullptr ? 0 : b[static_cast<size_t>(c)];
        for (int64_t i = 0; i < plane; ++i) to[i] = bias, sizes[i] = std::fabs(bias);
        const int64_t group = c / cout;
        for (int64_t k = group * cin; k < (group + 1) * cin; ++k)
          for (int64_t ih = 0; ih < p.h.input; ++ih)
            for (int64_t iw = 0; iw < p.w.input; ++iw) {
              const double value = x[static_cast<size_t>(n * p.input_stride.n + k * p.input_stride.c +
                                                         ih * p.input_stride.h + iw * p.input_stride.w)];
              for (int64_t kh = 0; kh < p.h.kernel; ++kh) {
                const int64_t oh = ih * p.h.stride + kh * p.h.dilation - p.h.padding;
                if (oh < 0 || oh >= p.h.output) continue;
                for (int64_t kw = 0; kw < p.w.kernel; ++kw) {
                  const int64_t ow = iw * p.w.stride + kw * p.w.dilation - p.w.padding;
                  if (ow < 0 || ow >= p.w.output) continue;
                  const double term =
                      value *
                      w[static_cast<size_t>(((k * cout + c % cout) * p.h.kernel + kh) * p.w.kernel + kw)];
                  to[oh * p.w.output + ow] += term;
                  sizes[oh * p.w.output + ow] += std::fabs(term);
                }
              }
            }
      }
    // As tests/reference.py has it: the rounding of operands to TF32, or what sums of float32 lose; then of
    // the output. Sums of small integers are exact.
    const double share = integers_ ? 0 : precision_.of_float32 == kTf32 ? 0x1p-10 : 1e-6;
    const convt::ActivationParams<double> activation = convt::activation_params<double>(p.activation);
    for (size_t i = 0; i < magnitude.size(); ++i) {
      const double rounding = p.dtype == DType::kFloat32 ? 0 : precision_.eps / 2 * 1.01;
      bound_[i] = share * magnitude[i] + rounding * std::fabs(expected_[i]);
      if (activation.is_identity()) continue;
      // Slopes of the activations here are less than 1.2, and their own errors 1e-6 of what they are of.
      const double own = 1e-6 * (std::fabs(expected_[i]) + 1);
      expected_[i] = activate(activation, expected_[i]);
      bound_[i] =
          std::fabs(activation.scale) * (1.2 * bound_[i] + own) + precision_.eps * std::fabs(expected_[i]);
    }
  }
};

// ---- launches

struct Candidate {
  ImplicitGemmLaunch launch;
  std::string kind, plan;
  double cost;  // products of 64 x 256 x 8, about
};

// What tells kinds of launches apart: other code, or another way through it.
std::string kind_of(const ImplicitGemmLaunch& t) {
  char text[200];
  std::snprintf(text, sizeof(text),
                "%d f%d b%d fold%dx%d t%d c%dx%d s%d box%d%d%d n%d i%dw%d r%d h%d%d%dk%dr%d", t.config,
                t.flat, t.blocks, t.fold_h, t.fold_w, t.phases_together, t.cluster_rows, t.cluster_pixels,
                t.splits, t.box.count, t.box.halves, t.box.whole_rows, t.columns() < t.sizes().columns(),
                t.turns_input, t.turns_weight, t.works() * t.cluster() > t.grid, t.halos,
                t.halo_lines ? 2 : t.halo_pitch > 0, t.halo_rows > 1, t.keeps_weight, t.halo_runs);
  return text;
}

std::string describe(const ImplicitGemmLaunch& launch) {
  convt::Plan plan;
  plan.kernel = launch.halos ? convt::Kernel::kHaloGemm : convt::Kernel::kImplicitGemm;
  (launch.halos ? plan.halo_gemm : plan.implicit_gemm) = launch;
  return convt::describe(plan);
}

uint64_t hash(const std::string& text) {  // FNV-1a
  uint64_t h = 0xcbf29ce484222325;
  for (const char c : text) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return h;
}

// One launch of each kind, on devices of few multiprocessors, which do several pieces of work each, and of
// more.
std::vector<Candidate> candidates(const Problem& problem, const std::string& name) {
  std::map<std::string, std::vector<ImplicitGemmLaunch>> by_kind;
  for (const int sms : {2, 5, 24}) {
    convt::DeviceLimits device;
    device.compute_capability = 90;
    device.sm_count = sms;
    device.shared_bytes_per_block = emulator::kSharedBytes;
    device.shared_bytes_per_sm = emulator::kSharedBytes + 1024;
    device.has_wgmma = true;
    if (convt::implicit_gemm_obstacle(problem, device) != nullptr) continue;
    const auto add = [&](const ImplicitGemmLaunch& launch, double) {
      by_kind[kind_of(launch)].push_back(launch);
    };
    convt::visit_implicit_gemm(problem, device, add);
    if (convt::halo_gemm_obstacle(problem, device) == nullptr) convt::visit_halo_gemm(problem, device, add);
  }
  std::vector<Candidate> chosen;
  for (const auto& [kind, launches] : by_kind) {
    Candidate c;
    c.launch = launches[hash(name + kind) % launches.size()];
    c.kind = kind;
    c.plan = describe(c.launch);
    const ImplicitGemmLaunch& t = c.launch;
    c.cost = static_cast<double>(t.works() * t.cluster_rows * t.cluster_pixels) /
             static_cast<double>(t.phases() * t.phases_together) *
             static_cast<double>(t.phases_h.kernel * t.phases_w.kernel) * t.chunks * t.parts * t.parts * 4 *
             (t.sizes().rows / 64.0) * (t.sizes().pixels / 256.0);
    chosen.push_back(c);
  }
  return chosen;
}

void run(const Case& c, const Precision& precision, const Operands& operands, const Candidate& candidate,
         uint64_t schedule) {
  Problem problem = operands.problem;
  const size_t offset = static_cast<size_t>(c.output_offset * convt::element_size(precision.dtype));
  const Guarded output(operands.output_bytes() + 2 * kMargin, offset);
  const Guarded workspace(candidate.launch.workspace_bytes);
  problem.output = output.begin() + kMargin;
  emulator::forget_memory();
  emulator::add_memory(problem.input, operands.input_bytes(), "input");
  emulator::add_memory(problem.weight, operands.weight_bytes(), "weight");
  emulator::add_memory(problem.output, operands.output_bytes(), "output");
  emulator::add_memory(workspace.begin(), candidate.launch.workspace_bytes, "workspace");
  const std::string context = std::string(c.name) + " " + precision.name + " schedule " +
                              std::to_string(schedule) + "\n    " + candidate.plan;
  emulator::set_context(context);
  emulator::Options options = emulator::options_of(schedule);
  options.resident_blocks = candidate.launch.sizes().single ? 2 : 1;
  emulator::set_options(options);
  cudaError_t error = convt::launch_turn_operands(problem, candidate.launch, workspace.begin(), nullptr);
  const Launcher launch = candidate.launch.halos ? precision.launch_halos : precision.launch;
  if (error == cudaSuccess) error = launch(problem, candidate.launch, workspace.begin(), nullptr);
  std::string wrong = emulator::take_failure();
  if (wrong.empty() && error != cudaSuccess) wrong = "the launch returns error " + std::to_string(error);
  if (wrong.empty()) wrong = operands.compare(output.begin() + kMargin);
  for (size_t i = 0; i < 2 * kMargin && wrong.empty(); ++i) {
    const size_t at = i < kMargin ? i : i + operands.output_bytes();
    if (output.begin()[at] != 0xff) wrong = "something was written beside the output";
  }
  CHECK(wrong.empty(), context + "\n    " + wrong);
}

}  // namespace

int main(int count, char** arguments) {
  bool all = false, lists = false, times = false;
  std::string of_case, of_launch, of_precision, schedule, part = "0/1";
  uint64_t seeds = 1;
  int drawn = 0;
  for (int i = 1; i < count; ++i) {
    const std::string option = arguments[i];
    const std::map<std::string, bool*> flags = {{"--all", &all}, {"--list", &lists}, {"--times", &times}};
    const std::map<std::string, std::string*> texts = {{"--case", &of_case},
                                                       {"--launch", &of_launch},
                                                       {"--precision", &of_precision},
                                                       {"--schedule", &schedule},
                                                       {"--part", &part}};
    if (const auto flag = flags.find(option); flag != flags.end()) {
      *flag->second = true;
    } else if (const auto text = texts.find(option); text != texts.end() && i + 1 < count) {
      *text->second = arguments[++i];
    } else if (option == "--seeds" && i + 1 < count) {
      seeds = std::stoull(arguments[++i]);
    } else if (option == "--random" && i + 1 < count) {
      drawn = std::stoi(arguments[++i]);
    } else {
      std::fprintf(stderr, "unknown option %s\n", option.c_str());
      return 2;
    }
  }
  all = all || !of_case.empty() || !of_launch.empty();
  int launches = 0, left_out = 0, chosen = -1, of_part = 0, parts = 1;
  if (std::sscanf(part.c_str(), "%d/%d", &of_part, &parts) != 2 || parts < 1) return 2;
  std::vector<Case> cases;
  for (int i = 0; i < drawn; ++i) cases.push_back(random_case(i));
  if (drawn == 0) cases = make_cases();
  std::set<std::string> seen;
  for (const Precision& precision : kPrecisions) {
    if (std::string(precision.name).find(of_precision) == std::string::npos) continue;
    for (const Case& c : cases) {
      if (std::string(c.name).find(of_case) == std::string::npos) continue;
      const auto began = std::chrono::steady_clock::now();
      const Operands integers(c, precision, true), numbers(c, precision, false);
      int of_this_case = 0;
      for (const Candidate& candidate : candidates(integers.problem, c.name)) {
        if (candidate.plan.find(of_launch) == std::string::npos) continue;
        // Folded phases are stored in words, at whose multiples outputs are allocated.
        const int64_t offset = c.output_offset * convt::element_size(precision.dtype);
        if (candidate.launch.fold() > 1 && offset % 4 != 0) continue;
        const uint64_t number = hash(c.name + candidate.kind + precision.name);
        // Beside those of a new kind, some.
        const bool is_new = seen.insert(precision.code + candidate.kind).second;
        if (!all && !is_new && number % 16 != 0) {
          ++left_out;
          continue;
        }
        if (++chosen % parts != of_part) continue;
        ++launches;
        ++of_this_case;
        if (lists) {
          std::printf("%s %s cost %.0f\n    %s\n", c.name, precision.name, candidate.cost,
                      candidate.plan.c_str());
          continue;
        }
        const uint64_t first = schedule.empty() ? number % 1000 : std::stoull(schedule);
        for (uint64_t seed = 0; seed < seeds; ++seed)
          run(c, precision, (number >> 8) % 4 == 0 ? numbers : integers, candidate, first + seed);
      }
      if (of_this_case > 0 && times)
        std::printf("%s %s: %d launches, %.2f s\n", c.name, precision.name, of_this_case,
                    std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count());
    }
  }
  std::printf("%d launches, %d left out\n", launches, left_out);
  return check::result();
}
