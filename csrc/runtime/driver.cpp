#include "runtime/driver.h"

#include <dlfcn.h>

#include <atomic>
#include <mutex>
#include <stdexcept>

#include "runtime/variant.h"

namespace mamba_aot::runtime {
namespace {

template <class Function>
void find(Handle library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (function == nullptr) {
    throw std::runtime_error(std::string("mamba_aot: NVIDIA's driver (libcuda.so.1) has no ") + name +
                             ", so it is older than CUDA 12.0; install a newer driver");
  }
}

const Driver* load() {
  Handle cuda = dlopen("libcuda.so.1", RTLD_NOW);
  if (cuda == nullptr) {
    throw std::runtime_error(
        std::string("mamba_aot: CUDA ops need NVIDIA's driver, but libcuda.so.1 could not "
                    "be loaded (") +
        dlerror() + "); install the driver, or move the tensors to the CPU");
  }
  auto* api = new Driver{};  // never deleted: kernels may run until the process ends
  find(cuda, "cuInit", api->init);
  find(cuda, "cuDriverGetVersion", api->driver_version);
  find(cuda, "cuGetErrorName", api->error_name);
  find(cuda, "cuGetErrorString", api->error_text);
  find(cuda, "cuDeviceGet", api->device_get);
  find(cuda, "cuDeviceGetAttribute", api->device_attribute);
  find(cuda, "cuDeviceGetName", api->device_name);
  find(cuda, "cuCtxGetCurrent", api->context_current);
  find(cuda, "cuCtxSetCurrent", api->context_set);
  find(cuda, "cuDevicePrimaryCtxRetain", api->context_retain);
  find(cuda, "cuLibraryLoadData", api->library_load);
  find(cuda, "cuLibraryGetKernel", api->library_kernel);
  find(cuda, "cuKernelSetAttribute", api->kernel_attribute);
  find(cuda, "cuKernelGetFunction", api->kernel_function);
  find(cuda, "cuLaunchKernelEx", api->launch);
  // Only a process that has loaded torch's CUDA library can hold CUDA tensors, so it is never loaded from
  // here.
  Handle torch_cuda = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
  if (torch_cuda != nullptr) {
    api->torch_stream = reinterpret_cast<decltype(api->torch_stream)>(
        dlsym(torch_cuda, "aoti_torch_get_current_cuda_stream"));
  }
  if (api->torch_stream == nullptr) {
    throw std::runtime_error(
        "mamba_aot: CUDA ops need a CUDA build of torch >= 2.10, but this process has torch without CUDA; "
        "install a CUDA build of torch, or move the tensors to the CPU");
  }
  const Status status = api->init(0);
  if (status != 0) {
    throw std::runtime_error("mamba_aot: the CUDA driver does not start: " + describe(*api, status) +
                             "; check the driver with nvidia-smi, or move the tensors to the CPU");
  }
  return api;
}

std::atomic<Handle> contexts[kMaxDevices];

}  // namespace

const Driver& driver() {
  static const Driver* const api = load();
  return *api;
}

std::string describe(const Driver& api, Status status) {
  const char* name = nullptr;
  const char* text = nullptr;
  api.error_name(status, &name);
  api.error_text(status, &text);
  return std::string(name ? name : "CUDA error " + std::to_string(status)) + " (" +
         (text ? text : "unknown") + ")";
}

void fail(const Driver& api, Status status, const std::string& what, int32_t device) {
  throw std::runtime_error(what + " failed on CUDA device " + std::to_string(device) + ": " +
                           describe(api, status));
}

Handle primary_context(const Driver& api, int32_t device) {
  Handle context = contexts[device].load(std::memory_order_acquire);
  if (context != nullptr) return context;
  // Two threads may both retain it: one count too many on a context that is kept anyway.
  int ordinal = 0;
  Status status = api.device_get(&ordinal, device);
  if (status == 0) status = api.context_retain(&context, ordinal);
  if (status != 0) fail(api, status, "mamba_aot: taking the device's context", device);
  contexts[device].store(context, std::memory_order_release);
  return context;
}

ContextScope::ContextScope(const Driver& api, Handle context, int32_t device) : api_(api) {
  Status status = api.context_current(&previous_);
  if (status == 0 && previous_ != context) {
    status = api.context_set(context);
    changed_ = status == 0;
  }
  if (status != 0) fail(api, status, "mamba_aot: entering the device's context", device);
}

ContextScope::~ContextScope() {
  if (changed_) api_.context_set(previous_);
}

}  // namespace mamba_aot::runtime
