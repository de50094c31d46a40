// The operator: schema, argument checks, allocation, dispatch. The only file that includes torch.
//
// It uses nothing but LibTorch's stable ABI (and, for one flag, a symbol looked up at run time), so one build
// serves every torch from 2.10 on, with or without CUDA, and every Python.

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <mutex>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#include "convt/activation.h"
#include "convt/alignment.h"
#include "convt/kernels.h"
#include "convt/plan.h"
#include "convt/problem.h"

// Absent from CPU builds of torch, which must be able to load the library all the same.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index,
                                                                                   void** ret_stream);

namespace convt {
namespace {

using torch::headeronly::IntHeaderOnlyArrayRef;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// ---------------------------------------------------------------- messages

template <typename... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  std::ostringstream message;
  message << "convt::conv_transpose2d: ";
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

template <typename T>
std::string to_string(const T* values, size_t count) {
  std::ostringstream text;
  text << '[';
  for (size_t i = 0; i < count; ++i) text << (i == 0 ? "" : ", ") << values[i];
  text << ']';
  return text.str();
}

using Pair = std::array<int64_t, 2>;  // along H and W

std::string to_string(const Pair& pair) { return to_string(pair.data(), pair.size()); }
std::string to_string(IntHeaderOnlyArrayRef values) { return to_string(values.data(), values.size()); }

std::string dtype_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Bool:
      return "bool";
    case ScalarType::ComplexHalf:
      return "complex32";
    case ScalarType::ComplexFloat:
      return "complex64";
    case ScalarType::ComplexDouble:
      return "complex128";
    default:
      return torch::headeronly::toString(dtype);
  }
}

std::string device_name(const Tensor& tensor) {
  if (tensor.is_cpu()) return "cpu";
  if (tensor.is_cuda()) return "cuda:" + std::to_string(tensor.get_device_index());
  int32_t type = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &type));
  return type == aoti_torch_device_type_meta() ? "meta" : "device type " + std::to_string(type);
}

// ---------------------------------------------------------------- arguments

struct Arguments {
  const Tensor& input;
  const Tensor& weight;
  const std::optional<Tensor>& bias;
  IntHeaderOnlyArrayRef stride, padding, output_padding;
  int64_t groups;
  IntHeaderOnlyArrayRef dilation;
  Activation activation;  // of the output
};

Pair expand(const char* name, IntHeaderOnlyArrayRef values) {
  if (values.size() == 1) return {values[0], values[0]};
  if (values.size() != 2) refuse(name, " must hold 1 or 2 ints, got ", to_string(values));
  return {values[0], values[1]};
}

void check_range(const char* name, const Pair& values, int64_t least) {
  // Sums and products of two such numbers and a tensor's side cannot wrap.
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  for (const int64_t value : values) {
    if (value < least) {
      refuse(name, least == 0 ? " must be non-negative, got " : " must be positive, got ", to_string(values));
    }
    if (value > kMost) refuse(name, " must be at most ", kMost, ", got ", to_string(values));
  }
}

void check_like_input(const char* name, const Tensor& tensor, const Tensor& input) {
  if (tensor.scalar_type() != input.scalar_type()) {
    refuse(name, " must have the dtype of input (", dtype_name(input.scalar_type()), "), got ",
           dtype_name(tensor.scalar_type()));
  }
  const bool same_kind = tensor.is_cuda() == input.is_cuda() && tensor.is_cpu() == input.is_cpu();
  if (!same_kind || tensor.get_device_index() != input.get_device_index()) {
    refuse(name, " must be on the device of input (", device_name(input), "), got ", device_name(tensor));
  }
}

// torch's rule for a 4-D tensor (c10/core/MemoryFormat.h, is_channels_last_strides_2d): strides grow in the
// order C, W, H, N; a tensor that could be either (all of N, H, W are 1, say) is contiguous.
bool is_channels_last(const Tensor& tensor) {
  if (tensor.dim() != 4) return false;
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  if (strides[1] == 0) return false;
  int64_t least = 0;
  for (const size_t d : {1, 3, 2, 0}) {
    if (sizes[d] == 0 || strides[d] < least) return false;
    if (d == 0 && least == strides[1]) return false;
    least = strides[d];
    if (sizes[d] > 1) least *= sizes[d];
  }
  return true;
}

DType problem_dtype(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Double:
      return DType::kFloat64;
    case ScalarType::Half:
      return DType::kFloat16;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    default:
      refuse("input must be float16, bfloat16, float32 or float64, got ", dtype_name(tensor.scalar_type()));
  }
}

Axis make_axis(int64_t input, int64_t kernel, int d, const Pair& stride, const Pair& padding,
               const Pair& output_padding, const Pair& dilation) {
  Axis axis;
  axis.input = input;
  axis.kernel = kernel;
  axis.stride = stride[d];
  axis.padding = padding[d];
  axis.output_padding = output_padding[d];
  axis.dilation = dilation[d];
  // Wraps only if kernel or input exceed 2^31 as well, that is for tensors far beyond any memory but expanded
  // ones.
  int64_t span = 0, reach = 0;
  if (__builtin_mul_overflow(input - 1, axis.stride, &span) ||
      __builtin_mul_overflow(kernel - 1, axis.dilation, &reach) ||
      __builtin_add_overflow(span, reach, &span) || span > std::numeric_limits<int64_t>::max() / 4) {
    refuse("output size must fit in 64 bits, got an input side of ", input, " with stride ", axis.stride,
           " and a kernel side of ", kernel, " with dilation ", axis.dilation);
  }
  axis.output = axis.full_output();
  return axis;
}

// Checks everything that can be checked without a device, and returns the problem without pointers.
Problem check_arguments(const Arguments& a) {
  const auto input_sizes = a.input.sizes(), weight_sizes = a.weight.sizes();
  const int64_t rank = a.input.dim();
  if (rank != 3 && rank != 4) {
    refuse("input must be 3-D [Cin, H, W] or 4-D [N, Cin, H, W], got shape ", to_string(input_sizes));
  }
  if (a.weight.dim() != 4) {
    refuse("weight must be 4-D [Cin, Cout/groups, KH, KW], got shape ", to_string(weight_sizes));
  }
  Problem p;
  p.dtype = problem_dtype(a.input);
  check_like_input("weight", a.weight, a.input);

  const Pair stride = expand("stride", a.stride);
  const Pair padding = expand("padding", a.padding);
  const Pair output_padding = expand("output_padding", a.output_padding);
  const Pair dilation = expand("dilation", a.dilation);
  check_range("stride", stride, 1);
  check_range("padding", padding, 0);
  check_range("output_padding", output_padding, 0);
  check_range("dilation", dilation, 1);
  if (a.groups < 1) refuse("groups must be positive, got ", a.groups);

  for (const int64_t side : weight_sizes) {
    if (side < 1)
      refuse("weight must have at least one element on every side, got shape ", to_string(weight_sizes));
  }
  const size_t channel_dim = static_cast<size_t>(rank - 3);
  const int64_t cin = input_sizes[channel_dim];
  if (weight_sizes[0] != cin) {
    refuse("weight must have input's channels first (", cin, "), got shape ", to_string(weight_sizes));
  }
  if (cin % a.groups != 0) refuse("groups must divide input's channels (", cin, "), got ", a.groups);
  const int64_t cout = weight_sizes[1] * a.groups;
  if (a.bias.has_value()) {
    if (a.bias->dim() != 1 || a.bias->size(0) != cout) {
      refuse("bias must be 1-D with one element per output channel (", cout, "), got shape ",
             to_string(a.bias->sizes()));
    }
    check_like_input("bias", *a.bias, a.input);
  }
  for (int d = 0; d < 2; ++d) {
    if (output_padding[d] >= stride[d] && output_padding[d] >= dilation[d]) {
      refuse("output_padding must be smaller than stride or dilation, got output_padding ",
             to_string(output_padding), " with stride ", to_string(stride), " and dilation ",
             to_string(dilation));
    }
  }
  for (size_t d = channel_dim; d < static_cast<size_t>(rank); ++d) {
    if (input_sizes[d] < 1) {
      refuse("input must have non-empty channels, height and width, got shape ", to_string(input_sizes));
    }
  }

  p.h =
      make_axis(input_sizes[channel_dim + 1], weight_sizes[2], 0, stride, padding, output_padding, dilation);
  p.w =
      make_axis(input_sizes[channel_dim + 2], weight_sizes[3], 1, stride, padding, output_padding, dilation);
  if (p.h.output < 1 || p.w.output < 1) {
    refuse("output size must be positive, got ", to_string(Pair{p.h.output, p.w.output}), " for input size ",
           to_string(Pair{p.h.input, p.w.input}), ", kernel ", to_string(Pair{p.h.kernel, p.w.kernel}),
           ", stride ", to_string(stride), ", padding ", to_string(padding), ", output_padding ",
           to_string(output_padding), ", dilation ", to_string(dilation));
  }
  p.batch = rank == 4 ? input_sizes[0] : 1;
  p.groups = a.groups;
  p.cin_per_group = cin / a.groups;
  p.cout_per_group = weight_sizes[1];
  p.output_channels_last = is_channels_last(a.input);
  return p;
}

// ---------------------------------------------------------------- activation

struct ActivationEntry {
  const char* name;
  ActivationKind kind;
  size_t count;         // how many numbers it has itself, before scale and shift
  const char* numbers;  // their names
  bool has_defaults;
  double a, b;  // the defaults
};

// The same table as in src/convt_ext/_activation.py; tests/test_refusals.py holds the two together.
constexpr ActivationEntry kActivations[] = {
    {"none", ActivationKind::kNone, 0, "", true, 0, 0},
    {"relu", ActivationKind::kRelu, 0, "", true, 0, 0},
    {"leaky_relu", ActivationKind::kLeakyRelu, 1, "negative_slope", true, 0.01, 0},
    {"elu", ActivationKind::kElu, 1, "alpha", true, 1, 0},
    {"silu", ActivationKind::kSilu, 0, "", true, 0, 0},
    {"gelu", ActivationKind::kGelu, 0, "", true, 0, 0},
    {"gelu_tanh", ActivationKind::kGeluTanh, 0, "", true, 0, 0},
    {"mish", ActivationKind::kMish, 0, "", true, 0, 0},
    {"sigmoid", ActivationKind::kSigmoid, 0, "", true, 0, 0},
    {"tanh", ActivationKind::kTanh, 0, "", true, 0, 0},
    {"hardtanh", ActivationKind::kHardtanh, 2, "min_val, max_val", true, -1, 1},
    {"clamp", ActivationKind::kHardtanh, 2, "min_val, max_val", false, 0, 0},
    {"hardswish", ActivationKind::kHardswish, 0, "", true, 0, 0},
};

[[noreturn]] void refuse_activation(const std::string& name) {
  std::string names;
  for (const ActivationEntry& entry : kActivations)
    names += (names.empty() ? "" : ", ") + std::string(entry.name);
  refuse("activation must be one of ", names, ", got '", name, "'");
}

[[noreturn]] void refuse_count(const ActivationEntry& entry, const std::vector<double>& params) {
  std::ostringstream expected;
  if (entry.has_defaults) expected << (entry.count == 0 ? "0 or " : "0, ");
  if (entry.count != 0) expected << entry.count << " or ";
  expected << entry.count + 2 << " numbers (";
  if (entry.count != 0) expected << entry.numbers << ", then ";
  refuse("params of ", entry.name, " must hold ", expected.str(), "scale and shift), got ",
         to_string(params.data(), params.size()));
}

Activation parse_activation(const std::string& name, const std::vector<double>& params) {
  const ActivationEntry* found = nullptr;
  for (const ActivationEntry& entry : kActivations) {
    if (name == entry.name) found = &entry;
  }
  if (found == nullptr) refuse_activation(name);
  const size_t count = found->count, given = params.size();
  if (given != count && given != count + 2 && !(given == 0 && found->has_defaults))
    refuse_count(*found, params);
  for (const double number : params) {
    if (std::isnan(number)) {
      refuse("params of ", found->name, " must not be NaN, got ", to_string(params.data(), given));
    }
  }
  Activation activation{found->kind, found->a, found->b};
  if (count >= 1 && given != 0) activation.a = params[0];
  if (count >= 2 && given != 0) activation.b = params[1];
  if (given == count + 2) {
    activation.scale = params[count];
    activation.shift = params[count + 1];
  }
  if (activation.kind == ActivationKind::kHardtanh && activation.a > activation.b) {
    refuse("params of ", found->name, " must hold a min_val that is at most max_val, got ",
           to_string(params.data(), given));
  }
  return activation;
}

// ---------------------------------------------------------------- output

struct Layout {
  int64_t dim;
  std::array<int64_t, 4> sizes, strides;  // the first `dim` of each
};

Layout output_layout(const Problem& p, int64_t rank) {
  const int64_t c = p.cout(), h = p.h.output, w = p.w.output;
  if (rank == 3) return {3, {c, h, w, 0}, {h * w, w, 1, 0}};
  if (p.output_channels_last) return {4, {p.batch, c, h, w}, {h * w * c, 1, w * c, c}};
  return {4, {p.batch, c, h, w}, {c * h * w, h * w, w, 1}};
}

Tensor allocate(const Layout& layout, int32_t dtype, const Tensor& like) {
  int32_t device_type = 0, device_index = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(layout.dim, layout.sizes.data(), layout.strides.data(),
                                                  dtype, device_type, device_index, &handle));
  return Tensor(handle);
}

Tensor allocate(const Layout& layout, const Tensor& like) {
  int32_t dtype = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  return allocate(layout, dtype, like);
}

// ---------------------------------------------------------------- CPU

// aten's own operators, reached through the dispatcher: not what this library is for.
template <typename... Inputs>
Tensor call_aten(const char* name, const char* overload, const Inputs&... inputs) {
  StableIValue stack[] = {torch::stable::detail::from(inputs)...};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, overload, stack, TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// A number as an operand. The stable ABI cannot pass a Scalar; a tensor without dimensions does not change
// the other's dtype either.
Tensor constant(double value, const Tensor& like) {
  Tensor tensor = allocate({0, {}, {}}, aoti_torch_dtype_float64(), like);
  *static_cast<double*>(tensor.mutable_data_ptr()) = value;
  return tensor;
}

Tensor times(const Tensor& x, double factor) {
  return call_aten("aten::mul", "Tensor", x, constant(factor, x));
}

Tensor where_positive(const Tensor& x, const Tensor& otherwise) {
  return call_aten("aten::where", "self", call_aten("aten::gt", "Tensor", x, constant(0, x)), x, otherwise);
}

Tensor activate(const Activation& activation, const Tensor& x) {
  switch (activation.kind) {
    case ActivationKind::kNone:
      return x;
    case ActivationKind::kRelu:
      return call_aten("aten::relu", "", x);
    case ActivationKind::kLeakyRelu:
      return where_positive(x, times(x, activation.a));
    case ActivationKind::kElu:
      return where_positive(x, times(call_aten("aten::expm1", "", x), activation.a));
    case ActivationKind::kSilu:
      return call_aten("aten::silu", "", x);
    case ActivationKind::kGelu:
      return call_aten("aten::gelu", "", x, std::string("none"));
    case ActivationKind::kGeluTanh:
      return call_aten("aten::gelu", "", x, std::string("tanh"));
    case ActivationKind::kMish:
      return call_aten("aten::mish", "", x);
    case ActivationKind::kSigmoid:
      return call_aten("aten::sigmoid", "", x);
    case ActivationKind::kTanh:
      return call_aten("aten::tanh", "", x);
    case ActivationKind::kHardtanh:
      return call_aten("aten::clamp", "Tensor", x, std::optional<Tensor>(constant(activation.a, x)),
                       std::optional<Tensor>(constant(activation.b, x)));
    case ActivationKind::kHardswish:
      return call_aten("aten::hardswish", "", x);
  }
  refuse("activation has no code for the CPU");
}

// The tensor itself if it has the dtype and the layout, else a copy.
Tensor conform(const Tensor& tensor, const Layout& layout, int32_t dtype) {
  int32_t own_dtype = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &own_dtype));
  const auto strides = tensor.strides();
  bool conforms = own_dtype == dtype;
  for (size_t d = 0; d < static_cast<size_t>(layout.dim); ++d) conforms &= strides[d] == layout.strides[d];
  if (conforms) return tensor;
  Tensor copy = allocate(layout, dtype, tensor);
  torch::stable::copy_(copy, tensor);
  return copy;
}

Tensor conv_transpose2d_cpu(const Arguments& a) {
  const Problem problem = check_arguments(a);
  const Layout layout = output_layout(problem, a.input.dim());
  if (problem.batch == 0) return allocate(layout, a.input);
  int32_t dtype = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(a.input.get(), &dtype));
  Tensor result = call_aten("aten::conv_transpose2d", "input", a.input, a.weight, a.bias, a.stride, a.padding,
                            a.output_padding, a.groups, a.dilation);
  if (!a.activation.is_identity()) {
    result = activate(
        a.activation,
        conform(result, layout, problem.dtype == DType::kFloat64 ? dtype : aoti_torch_dtype_float32()));
    if (a.activation.scale != 1) result = times(result, a.activation.scale);
    if (a.activation.shift != 0)
      result = torch::stable::subtract(result, constant(-a.activation.shift, result));
  }
  // aten's layout depends on the weight's too, and on the library it picks.
  return conform(result, layout, dtype);
}

// ---------------------------------------------------------------- precision

// Whether torch allows TF32 for convolutions. The stable ABI has no accessor, so its C++ functions are looked
// up by their mangled names, which carry the signatures: a changed one is not found, and then the answer is
// unknown.
std::optional<bool> tf32_allowed() {
  using GlobalContext = void* (*)();
  // at::Float32Op is an enum class over int; CONV is its second value in every version that has this
  // signature.
  using AllowTf32 = bool (*)(const void*, std::optional<int>);
  static const auto global_context =
      reinterpret_cast<GlobalContext>(dlsym(RTLD_DEFAULT, "_ZN2at13globalContextEv"));
  static const auto allow_tf32 = reinterpret_cast<AllowTf32>(
      dlsym(RTLD_DEFAULT, "_ZNK2at7Context14allowTF32CuDNNESt8optionalINS_9Float32OpEE"));
  if (global_context == nullptr || allow_tf32 == nullptr) return std::nullopt;
  constexpr int kConv = 1;
  try {
    return allow_tf32(global_context(), kConv);
  } catch (
      const std::exception&) {  // torch refuses to answer when its old and new settings contradict each other
    return std::nullopt;
  }
}

// Precision is never lowered silently: where torch does not tell, it is not lowered at all.
Float32Precision float32_precision() {
  return tf32_allowed().value_or(false) ? Float32Precision::kTf32 : Float32Precision::kIeee;
}

// ---------------------------------------------------------------- CUDA

void check_cuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess)
    refuse(what, " failed: ", cudaGetErrorString(error), " (", cudaGetErrorName(error), ")");
}

int device_attribute(cudaDeviceAttr attribute, int device) {
  int value = 0;
  check_cuda(cudaDeviceGetAttribute(&value, attribute, device), "reading a device attribute");
  return value;
}

DeviceLimits read_device_limits(int device) {
  DeviceLimits limits;
  limits.compute_capability = 10 * device_attribute(cudaDevAttrComputeCapabilityMajor, device) +
                              device_attribute(cudaDevAttrComputeCapabilityMinor, device);
  limits.sm_count = device_attribute(cudaDevAttrMultiProcessorCount, device);
  limits.shared_bytes_per_block = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  limits.shared_bytes_per_sm = device_attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  if (!has_code_for(CONVT_ARCHS, limits.compute_capability)) {
    cudaDeviceProp properties;
    check_cuda(cudaGetDeviceProperties(&properties, device), "reading the device's properties");
    refuse("no kernel for GPU ", properties.name, " (compute capability ", limits.compute_capability / 10,
           '.', limits.compute_capability % 10, "): this build holds code for ", CONVT_ARCHS);
  }
  limits.has_wgmma = limits.compute_capability == 90 && names_arch(CONVT_ARCHS, "9.0a");
  return limits;
}

// Read once per device; throws each time for a device without code.
const DeviceLimits& device_limits(int device) {
  static std::mutex mutex;
  static std::unordered_map<int, DeviceLimits> known;  // references to its elements stay valid
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(device);
  if (found != known.end()) return found->second;
  return known.emplace(device, read_device_limits(device)).first->second;
}

bool is_set(const char* value) { return value != nullptr && *value != '\0' && std::strcmp(value, "0") != 0; }

// The plan of a problem. Making one takes up to a few milliseconds, so each thread remembers the ones it has
// made.
Plan plan_for(const Problem& p, int device, const char* forced) {
  const DeviceLimits& limits = device_limits(device);
  // All that make_plan reads. An entry is some 5 KB; a model has tens of layers, a thread a few
  // models.
  using Key = std::array<int64_t, 30>;
  struct Hash {
    size_t operator()(const Key& key) const {
      uint64_t hash = 0xcbf29ce484222325;  // FNV-1a over 64-bit words
      for (const int64_t word : key) hash = (hash ^ static_cast<uint64_t>(word)) * 0x100000001b3;
      return static_cast<size_t>(hash ^ (hash >> 32));
    }
  };
  constexpr size_t kMostPlans = 1024;
  thread_local std::unordered_map<Key, Plan, Hash> plans;
  if (is_set(forced)) return make_plan(p, limits, forced);
  const Key key = {device,
                   static_cast<int64_t>(p.dtype),
                   static_cast<int64_t>(p.float32_precision),
                   p.batch,
                   p.groups,
                   p.cin_per_group,
                   p.cout_per_group,
                   p.h.input,
                   p.h.kernel,
                   p.h.stride,
                   p.h.padding,
                   p.h.output_padding,
                   p.h.dilation,
                   p.w.input,
                   p.w.kernel,
                   p.w.stride,
                   p.w.padding,
                   p.w.output_padding,
                   p.w.dilation,
                   p.input_stride.n,
                   p.input_stride.c,
                   p.input_stride.h,
                   p.input_stride.w,
                   p.weight_stride.cin,
                   p.weight_stride.cout,
                   p.weight_stride.kh,
                   p.weight_stride.kw,
                   p.output_channels_last,
                   is_aligned(p.input, 16),
                   is_aligned(p.weight, 16)};
  const auto found = plans.find(key);
  if (found != plans.end()) return found->second;
  if (plans.size() >= kMostPlans) plans.clear();
  return plans.emplace(key, make_plan(p, limits, nullptr)).first->second;
}

Plan plan_cuda(const Problem& problem, int device) {
  try {
    return plan_for(problem, device, std::getenv("CONVT_KERNEL"));
  } catch (const std::invalid_argument& error) {
    refuse(error.what());
  }
}

// Sets what check_arguments, which CPU tensors pass too, leaves open.
void complete_for_cuda(const Arguments& a, Problem& p) {
  if (p.dtype == DType::kFloat32) p.float32_precision = float32_precision();
  const auto in = a.input.strides(), w = a.weight.strides();
  p.input_stride = a.input.dim() == 4 ? ActivationStrides{in[0], in[1], in[2], in[3]}
                                      : ActivationStrides{0, in[0], in[1], in[2]};
  p.weight_stride = {w[0], w[1], w[2], w[3]};
  p.input = a.input.const_data_ptr();
  p.weight = a.weight.const_data_ptr();
  if (a.bias.has_value()) {
    p.bias = a.bias->const_data_ptr();
    p.bias_stride = a.bias->stride(0);
  }
  p.activation = a.activation;
}

// The paths of a tensor-core kernel.
template <typename Launcher>
struct TensorCorePaths {
  Launcher fp16, bf16, tf32, ieee;

  Launcher of(const Problem& problem) const {
    switch (problem.dtype) {
      case DType::kFloat16:
        return fp16;
      case DType::kBFloat16:
        return bf16;
      default:
        return problem.float32_precision == Float32Precision::kTf32 ? tf32 : ieee;
    }
  }
};

constexpr TensorCorePaths kThinPaths = {launch_thin_fp16, launch_thin_bf16, launch_thin_tf32,
                                        launch_thin_ieee};
constexpr TensorCorePaths kTileMmaPaths = {launch_tile_mma_fp16, launch_tile_mma_bf16, launch_tile_mma_tf32,
                                           launch_tile_mma_ieee};
constexpr TensorCorePaths kTileWgmmaPaths = {launch_tile_wgmma_fp16, launch_tile_wgmma_bf16,
                                             launch_tile_wgmma_tf32, launch_tile_wgmma_ieee};
constexpr TensorCorePaths kImplicitGemmPaths = {launch_implicit_gemm_fp16, launch_implicit_gemm_bf16,
                                                launch_implicit_gemm_tf32, launch_implicit_gemm_ieee};
constexpr TensorCorePaths kPixelGemmPaths = {launch_pixel_gemm_fp16, launch_pixel_gemm_bf16,
                                             launch_pixel_gemm_tf32, launch_pixel_gemm_ieee};
constexpr TensorCorePaths kScatterGemmPaths = {launch_scatter_gemm_fp16, launch_scatter_gemm_bf16,
                                               launch_scatter_gemm_tf32, launch_scatter_gemm_ieee};
constexpr TensorCorePaths kPhaseGemmPaths = {launch_phase_gemm_fp16, launch_phase_gemm_bf16,
                                             launch_phase_gemm_tf32, launch_phase_gemm_ieee};

// Packs the weight, then multiplies.
template <typename Launch, typename Launcher>
cudaError_t launch_tensor_cores(const Problem& problem, const Launch& launch,
                                const TensorCorePaths<Launcher>& paths, void* workspace,
                                cudaStream_t stream) {
  const cudaError_t error = launch_pack_fragments(problem, launch, workspace, stream);
  return error != cudaSuccess ? error : paths.of(problem)(problem, launch, workspace, stream);
}

cudaError_t launch(const Plan& plan, const Problem& problem, void* workspace, cudaStream_t stream) {
  switch (plan.kernel) {
    case Kernel::kNone:
      return cudaSuccess;
    case Kernel::kGeneric:
      return launch_generic(problem, stream);
    case Kernel::kDepthwise:
      return launch_depthwise(problem, plan.depthwise, stream);
    case Kernel::kTileSimt:
      if (plan.tile_simt.packs_weights) {
        const cudaError_t error = launch_pack_weights(problem, plan.tile_simt, workspace, stream);
        if (error != cudaSuccess) return error;
      }
      return problem.dtype == DType::kFloat32
                 ? launch_tile_simt_fp32(problem, plan.tile_simt, workspace, stream)
                 : launch_tile_simt_fp16(problem, plan.tile_simt, workspace, stream);
    case Kernel::kThin:
      return kThinPaths.of(problem)(problem, plan.thin, stream);
    case Kernel::kThinSimt:
      return launch_thin_simt(problem, plan.thin_simt, stream);
    case Kernel::kTileMma:
      return launch_tensor_cores(problem, plan.tile_mma, kTileMmaPaths, workspace, stream);
    case Kernel::kTileWgmma: {
      const cudaError_t error =
          launch_tensor_cores(problem, plan.tile_wgmma, kTileWgmmaPaths, workspace, stream);
      return error != cudaSuccess || !plan.tile_wgmma.repairs
                 ? error
                 : launch_generic_repair(problem, repair_word(plan.tile_wgmma, workspace), stream);
    }
    case Kernel::kCol2im:
      return problem.dtype == DType::kFloat16 ? launch_col2im_fp16(problem, plan.col2im, stream)
                                              : launch_col2im_bf16(problem, plan.col2im, stream);
    case Kernel::kImplicitGemm: {
      const cudaError_t error = launch_turn_operands(problem, plan.implicit_gemm, workspace, stream);
      return error != cudaSuccess
                 ? error
                 : kImplicitGemmPaths.of(problem)(problem, plan.implicit_gemm, workspace, stream);
    }
    case Kernel::kHaloGemm: {
      const cudaError_t error = launch_turn_operands(problem, plan.halo_gemm, workspace, stream);
      if (error != cudaSuccess) return error;
      return problem.float32_precision == Float32Precision::kTf32
                 ? launch_halo_gemm_tf32(problem, plan.halo_gemm, workspace, stream)
                 : launch_halo_gemm_ieee(problem, plan.halo_gemm, workspace, stream);
    }
    case Kernel::kPixelGemm:
      return kPixelGemmPaths.of(problem)(problem, plan.pixel_gemm, stream);
    case Kernel::kScatterGemm:
      return kScatterGemmPaths.of(problem)(problem, plan.scatter_gemm, stream);
    case Kernel::kPhaseGemm:
      return kPhaseGemmPaths.of(problem)(problem, plan.phase_gemm, stream);
  }
  return cudaErrorInvalidValue;
}

std::optional<Tensor> allocate_workspace(const Plan& plan, const Tensor& like) {
  const size_t bytes = plan.kernel == Kernel::kTileSimt       ? plan.tile_simt.workspace_bytes
                       : plan.kernel == Kernel::kTileMma      ? plan.tile_mma.workspace_bytes
                       : plan.kernel == Kernel::kTileWgmma    ? plan.tile_wgmma.workspace_bytes
                       : plan.kernel == Kernel::kImplicitGemm ? plan.implicit_gemm.workspace_bytes
                       : plan.kernel == Kernel::kHaloGemm     ? plan.halo_gemm.workspace_bytes
                                                              : 0;
  if (bytes == 0) return std::nullopt;
  return allocate({1, {static_cast<int64_t>(bytes)}, {1}}, aoti_torch_dtype_uint8(), like);
}

Tensor conv_transpose2d_cuda(const Arguments& a) {
  Problem problem = check_arguments(a);
  const int32_t device = a.input.get_device_index();
  complete_for_cuda(a, problem);
  const Plan plan = plan_cuda(problem, device);
  if (is_set(std::getenv("CONVT_PRINT_PLAN"))) std::fprintf(stderr, "convt: %s\n", describe(plan).c_str());

  const torch::stable::accelerator::DeviceGuard guard(device);
  Tensor output = allocate(output_layout(problem, a.input.dim()), a.input);
  problem.output = output.mutable_data_ptr();
  // From the caching allocator, on the current stream: it may be reused once what is launched here has run.
  const std::optional<Tensor> workspace = allocate_workspace(plan, a.input);
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  check_cuda(launch(plan, problem, workspace.has_value() ? workspace->mutable_data_ptr() : nullptr,
                    static_cast<cudaStream_t>(stream)),
             kernel_name(plan.kernel));
  return output;
}

// ---------------------------------------------------------------- information

std::string info() {
  const std::optional<bool> tf32 = tf32_allowed();
  std::ostringstream json;
  json << "{\"version\": \"" << CONVT_VERSION << "\", \"archs\": \"" << CONVT_ARCHS << "\", \"nvcc\": \""
       << CUDART_VERSION / 1000 << '.' << CUDART_VERSION % 1000 / 10 << "\", \"torch_abi_target\": \"2.10\", "
       << "\"tf32_flag\": \""
       << (!tf32.has_value() ? "unreadable"
           : *tf32           ? "allowed"
                             : "disallowed")
       << "\", \"fp32\": \"" << (float32_precision() == Float32Precision::kTf32 ? "tf32" : "ieee") << "\"}";
  return json.str();
}

std::string plan_text_cpu(const Arguments& a) {
  check_arguments(a);
  return "aten";
}

std::string plan_text_cuda(const Arguments& a) {
  Problem problem = check_arguments(a);
  complete_for_cuda(a, problem);
  return describe(plan_cuda(problem, a.input.get_device_index()));
}

// ---------------------------------------------------------------- registration

// The function that the dispatcher calls, from the one that takes Arguments.
template <auto kFunction>
auto unpacked(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
              IntHeaderOnlyArrayRef stride, IntHeaderOnlyArrayRef padding,
              IntHeaderOnlyArrayRef output_padding, int64_t groups, IntHeaderOnlyArrayRef dilation) {
  return kFunction(Arguments{input, weight, bias, stride, padding, output_padding, groups, dilation, {}});
}

template <auto kFunction>
auto unpacked_with_activation(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                              IntHeaderOnlyArrayRef stride, IntHeaderOnlyArrayRef padding,
                              IntHeaderOnlyArrayRef output_padding, int64_t groups,
                              IntHeaderOnlyArrayRef dilation, const std::string& activation,
                              const std::vector<double>& params) {
  return kFunction(Arguments{input, weight, bias, stride, padding, output_padding, groups, dilation,
                             parse_activation(activation, params)});
}

#define CONVT_PARAMETERS                                                                       \
  "Tensor input, Tensor weight, Tensor? bias=None, int[2] stride=1, int[2] padding=0, int[2] " \
  "output_padding=0, "                                                                         \
  "int groups=1, int[2] dilation=1"

}  // namespace

STABLE_TORCH_LIBRARY(convt, library) {
  // Frozen: saved models name it.
  library.def("conv_transpose2d(" CONVT_PARAMETERS ") -> Tensor");
  library.def("conv_transpose2d_act(" CONVT_PARAMETERS
              ", *, str activation=\"none\", float[] params=[]) -> Tensor");
  // For the Python package and for debugging; may change.
  library.def("_plan(" CONVT_PARAMETERS ") -> str");
  library.def("_info() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(convt, CPU, library) {
  library.impl("conv_transpose2d", TORCH_BOX(&unpacked<conv_transpose2d_cpu>));
  library.impl("conv_transpose2d_act", TORCH_BOX(&unpacked_with_activation<conv_transpose2d_cpu>));
  library.impl("_plan", TORCH_BOX(&unpacked<plan_text_cpu>));
}

STABLE_TORCH_LIBRARY_IMPL(convt, CUDA, library) {
  library.impl("conv_transpose2d", TORCH_BOX(&unpacked<conv_transpose2d_cuda>));
  library.impl("conv_transpose2d_act", TORCH_BOX(&unpacked_with_activation<conv_transpose2d_cuda>));
  library.impl("_plan", TORCH_BOX(&unpacked<plan_text_cuda>));
}

STABLE_TORCH_LIBRARY_IMPL(convt, CompositeExplicitAutograd, library) {
  library.impl("_info", TORCH_BOX(&info));
}

}  // namespace convt
