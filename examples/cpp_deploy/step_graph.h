// A step of decoding as a CUDA graph: one launch from the host for every token. The driver's functions are
// found when they are needed, so that compiling this takes no CUDA toolkit, and running on a CPU no driver.
#pragma once

#include <ATen/ATen.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <stdexcept>
#include <string>
#include <vector>

class StepGraph {
 public:
  // `inputs` are the token and the state; the graph reads and writes these very tensors.
  StepGraph(torch::inductor::AOTIModelPackageLoader& step, const std::vector<at::Tensor>& inputs) {
    std::vector<at::Tensor> before;
    for (const at::Tensor& tensor : inputs) before.push_back(tensor.clone());
    call("cuStreamCreate", &stream_, 1u);  // 1: not ordered with the default stream
    inputs[0].cpu();                       // waits for the default stream
    // A first run loads kernels and lets libraries set themselves up, which a capture does not allow.
    step.run(inputs, stream_);
    void* graph = nullptr;
    call("cuStreamBeginCapture_v2", stream_, 2);  // 2: torch's allocator may do what it likes meanwhile
    logits_ = step.run(inputs, stream_)[0];
    call("cuStreamEndCapture", stream_, &graph);
    call("cuGraphInstantiateWithFlags", &graph_, graph, 0ull);
    call("cuStreamSynchronize", stream_);
    for (std::size_t i = 0; i < inputs.size(); ++i) inputs[i].copy_(before[i]);
  }

  // The logits after the token in the inputs, which has to be there already: the graph does not wait for the
  // default stream. The next call overwrites them.
  at::Tensor operator()() {
    call("cuGraphLaunch", graph_, stream_);
    call("cuStreamSynchronize", stream_);
    return logits_;
  }

 private:
  template <class... Arguments>
  void call(const char* name, Arguments... arguments) {
    static void* const driver = dlopen("libcuda.so.1", RTLD_NOW);
    void* const function = driver == nullptr ? nullptr : dlsym(driver, name);
    const int status =
        function == nullptr ? -1 : reinterpret_cast<int (*)(Arguments...)>(function)(arguments...);
    if (status != 0) {
      throw std::runtime_error(std::string("making a CUDA graph: ") + name + " failed with error " +
                               std::to_string(status) + "; update NVIDIA's driver");
    }
  }

  // Both live as long as the process.
  void* stream_ = nullptr;
  void* graph_ = nullptr;
  at::Tensor logits_;
};
