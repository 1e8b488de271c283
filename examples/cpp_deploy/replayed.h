// Work on a GPU as a CUDA graph: one launch from the host. The driver's functions are found when they are
// needed, so that compiling this takes no CUDA toolkit, and running on a CPU no driver.
#pragma once

#include <dlfcn.h>

#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>

class Replayed {
 public:
  // `work` runs on `stream`, torch's current one but not the default one, always with the same tensors;
  // without a stream it is called as it is.
  Replayed(const std::function<void()>& work, void* stream) : work_(work), stream_(stream) {}

  void operator()() {
    // The first call loads kernels and lets libraries set themselves up, which a capture does not allow.
    if (stream_ != nullptr && calls_++ == 1) {
      void* graph = nullptr;
      call("cuStreamBeginCapture_v2", stream_, 2);  // 2: torch's allocator may do what it likes meanwhile
      work_();
      call("cuStreamEndCapture", stream_, &graph);
      call("cuGraphInstantiateWithFlags", &graph_, graph, 0ull);
    }
    if (graph_ == nullptr) return work_();
    call("cuGraphLaunch", graph_, stream_);
  }

 private:
  template <class... Arguments>
  void call(const char* name, Arguments... arguments) {
    static void* const driver = dlopen("libcuda.so.1", RTLD_NOW);
    const auto function = reinterpret_cast<int (*)(Arguments...)>(driver ? dlsym(driver, name) : nullptr);
    const int status = function == nullptr ? -1 : function(arguments...);
    if (status == 0) return;
    throw std::runtime_error(std::string("making a CUDA graph: ") + name + " failed with error " +
                             std::to_string(status) + "; update NVIDIA's driver");
  }

  std::function<void()> work_;
  void* stream_;
  void* graph_ = nullptr;  // lives as long as the process
  int64_t calls_ = 0;
};
