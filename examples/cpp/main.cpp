// Runs a TorchScript model or an AOTInductor package that uses torch.ops.convt.conv_transpose2d, without
// Python.
//
//   convt_run LIBRARY MODEL INPUT OUTPUT [DEVICE]
//
// LIBRARY is convt_ext/_C.so of the installed wheel (convt_ext.library_path() tells where), MODEL a file that
// torch.jit.save wrote, or a .pt2 file of torch._inductor.aoti_compile_and_package (examples/deploy.py writes
// both), INPUT and OUTPUT tensors as torch.save and torch.load have them, DEVICE "cpu" or "cuda"; a package
// runs on the device that it was compiled for. INPUT may also be a shape such as 1x3x64x64: then it is
// random, with a fixed seed.
//
// build.sh compiles this file: a plain g++ call against the installed torch.
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/script.h>

#include <fstream>
#include <iostream>
#include <iterator>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

torch::Tensor read_tensor(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  return torch::jit::pickle_load(bytes).toTensor();
}

void write_tensor(const torch::Tensor& tensor, const std::string& path) {
  const std::vector<char> bytes = torch::jit::pickle_save(tensor);
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  if (!file) throw std::runtime_error("cannot write " + path);
}

torch::Tensor make_input(const std::string& text) {
  if (text.find_first_not_of("0123456789x") != std::string::npos) return read_tensor(text);
  std::vector<int64_t> shape;
  std::istringstream sides(text);
  for (std::string side; std::getline(sides, side, 'x');) shape.push_back(std::stoll(side));
  torch::manual_seed(0);
  return torch::randn(shape);
}

torch::Tensor run_module(const std::string& path, const torch::Tensor& input) {
  torch::jit::Module model = torch::jit::load(path, input.device());
  model.eval();
  return model.forward({input}).toTensor();
}

torch::Tensor run_package(const std::string& path, const torch::Tensor& input) {
  torch::inductor::AOTIModelPackageLoader model(path);
  const std::string compiled_for = model.get_metadata()["AOTI_DEVICE_KEY"];
  if (compiled_for != c10::DeviceTypeName(input.device().type(), /*lower_case=*/true)) {
    throw std::runtime_error(path + " was compiled for " + compiled_for + ", got DEVICE " +
                             input.device().str());
  }
  return model.run({input}).at(0);
}

void run(const std::vector<std::string>& arguments) {
  // Loading the library registers the operator; it must stay loaded for as long as a model uses it.
  if (dlopen(arguments[0].c_str(), RTLD_NOW) == nullptr) throw std::runtime_error(dlerror());
  const torch::Device device(arguments.size() > 4 ? arguments[4] : "cpu");
  const torch::InferenceMode inference;
  const torch::Tensor input = make_input(arguments[2]).to(device);
  const std::string& model = arguments[1];
  const bool package = model.size() > 4 && model.compare(model.size() - 4, 4, ".pt2") == 0;
  const torch::Tensor output = (package ? run_package(model, input) : run_module(model, input)).cpu();
  write_tensor(output, arguments[3]);
  std::cout << "output " << output.sizes() << ", sum " << output.to(torch::kFloat64).sum().item<double>()
            << '\n';
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 5 || argc > 6) {
    std::cerr << "usage: convt_run LIBRARY MODEL INPUT OUTPUT [DEVICE]\n";
    return 2;
  }
  try {
    run({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
