// Continues a prompt byte by byte with a package that `mamba-aot export` wrote. No Python runs here:
//     printf 'The statement' | mamba_continue libmamba_aot.so model.pt2 100
#include <ATen/ATen.h>
#include <c10/core/StreamGuard.h>
#include <dlfcn.h>
#include <elf.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

#include "replayed.h"

using Loader = torch::inductor::AOTIModelPackageLoader;
// Of csrc/runtime/c_api.h: loads every kernel for a GPU, or writes into `message` why it can't.
using Preload = int32_t (*)(int32_t device, char* message, uint64_t size);

// Loading the library registers the ops that the package calls; it has to come before the package.
static Preload load_ops(const std::string& path) {
  // dlopen crashes on a file that was cut short; the table of sections stands last in it.
  Elf64_Ehdr header{};
  std::ifstream(path, std::ios::binary).read(reinterpret_cast<char*>(&header), sizeof(header));
  const uint64_t end = header.e_shoff + uint64_t{header.e_shnum} * header.e_shentsize;
  std::error_code missing;
  const bool whole = std::filesystem::file_size(path, missing) >= end;
  void* const library = whole ? dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL) : nullptr;
  void* const preload = library == nullptr ? nullptr : dlsym(library, "mamba_aot_preload");
  if (preload != nullptr) return reinterpret_cast<Preload>(preload);
  throw std::runtime_error("the op library must be a libmamba_aot.so, but " + path + " cannot be loaded: " +
                           (whole ? dlerror() : "it is cut short") + "; `mamba-aot info` prints where it is");
}

static int64_t read_count(const std::string& text) {
  const bool digits = !text.empty() && text.size() < 19 && text.find_first_not_of("0123456789") == text.npos;
  if (!digits) throw std::runtime_error("COUNT must be a number of bytes of at least 0, got " + text);
  return std::stoll(text);
}

static std::vector<int64_t> read_prompt() {
  std::vector<int64_t> bytes;
  for (char byte; std::cin.get(byte);) bytes.push_back(static_cast<unsigned char>(byte));
  if (bytes.empty()) throw std::runtime_error("standard input must hold a prompt of at least one byte");
  return bytes;
}

static void run(const std::string& library, const std::string& package, int64_t count) {
  const Preload preload = load_ops(library);
  if (!std::ifstream(package)) throw std::runtime_error("there is no package " + package);
  const auto facts = Loader::load_metadata_from_package(package, "prefill");
  if (facts.count("vocab_size") == 0 || facts.at("vocab_size") != "256") {
    throw std::runtime_error(package + " must hold a model whose tokens are bytes (vocab_size 256)");
  }
  const std::vector<int64_t> prompt = read_prompt();
  // A model with attention has a place for so many tokens; the last byte printed is not read again.
  if (facts.count("max_length") != 0 &&
      static_cast<int64_t>(prompt.size()) + count - 1 > std::stoll(facts.at("max_length"))) {
    throw std::runtime_error(package + " was exported for at most " + facts.at("max_length") +
                             " bytes of prompt and continuation; export it with a larger --max-length");
  }
  const at::Device device(facts.at("device"));
  void* stream = nullptr;
  c10::OptionalStreamGuard guard;
  if (device.is_cuda()) {
    // A missing driver, or image for this GPU, is said before anything else is tried.
    std::string message(4096, '\0');
    if (preload(0, message.data(), message.size()) != 0) throw std::runtime_error(message.c_str());
    guard.reset_stream(c10::impl::VirtualGuardImpl(at::kCUDA).getNewStream(at::Device(at::kCUDA, 0)));
    using Current = int32_t (*)(int32_t device, void** stream);
    reinterpret_cast<Current>(dlsym(RTLD_DEFAULT, "aoti_torch_get_current_cuda_stream"))(0, &stream);
  }
  Loader prefill(package, "prefill");
  Loader step(package, "step", /*run_single_threaded=*/true);

  // Logits and state come out of the prompt; a step takes a token and the state, and moves both on.
  std::vector<at::Tensor> inputs = prefill.run({at::tensor(prompt).unsqueeze(0).to(device)});
  inputs[0] = inputs[0].argmax(-1);
  Replayed advance([&] { inputs[0].copy_(step.run(inputs)[0].argmax(-1)); }, stream);
  for (int64_t i = 0; i < count; ++i) {
    if (i > 0) advance();
    std::cout.put(static_cast<char>(inputs[0].item<int64_t>())).flush();
  }
}

int main(int argc, char** argv) {
  if (argc != 4) {
    std::cerr << "usage: mamba_continue LIBRARY PACKAGE COUNT < PROMPT\n";
    return 2;
  }
  // A package checks the shapes and dtypes of its inputs only when it is asked to.
  setenv("AOTI_RUNTIME_CHECK_INPUTS", "1", 0);
  try {
    run(argv[1], argv[2], read_count(argv[3]));
  } catch (const std::exception& error) {
    const auto* of_torch = dynamic_cast<const c10::Error*>(&error);
    std::cerr << "mamba_continue: " << (of_torch ? of_torch->what_without_backtrace() : error.what()) << "\n";
    return 1;
  }
}
