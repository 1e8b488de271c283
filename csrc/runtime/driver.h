// The CUDA driver and torch's CUDA library, found when first needed: neither is linked, so that one file
// serves machines without a GPU.
#pragma once

#include <cstdint>
#include <string>

namespace mamba_aot::runtime {

using Handle = void*;
using Status = int;

// CUlaunchAttribute of cuda.h: a number that says which, and a value of up to 64 bytes.
struct LaunchAttribute {
  unsigned id;
  unsigned reserved;
  union {
    int number;
    char bytes[64];
  };
};

// CUlaunchConfig of cuda.h.
struct LaunchConfig {
  unsigned grid[3];
  unsigned block[3];
  unsigned shared_bytes;
  Handle stream;
  LaunchAttribute* attributes;
  unsigned attribute_count;
};

struct Driver {
  Status (*init)(unsigned flags);
  Status (*driver_version)(int* version);
  Status (*error_name)(Status, const char** name);
  Status (*error_text)(Status, const char** text);
  Status (*device_get)(int* device, int ordinal);
  Status (*device_attribute)(int* value, int attribute, int device);
  Status (*device_name)(char* name, int size, int device);
  Status (*context_current)(Handle* context);
  Status (*context_set)(Handle context);
  Status (*context_retain)(Handle* context, int device);
  Status (*library_load)(Handle* library, const void* image, const int* jit_options, void** jit_values,
                         unsigned jit_count, const int* options, void** values, unsigned count);
  Status (*library_kernel)(Handle* kernel, Handle library, const char* name);
  Status (*kernel_attribute)(int attribute, int value, Handle kernel, int device);
  Status (*kernel_function)(Handle* function, Handle kernel);
  Status (*launch)(const LaunchConfig* config, Handle function, void** parameters, void** extra);
  // torch's shim: the current stream of a device, 0 on success.
  int32_t (*torch_stream)(int32_t device, void** stream);
};

// Throws std::runtime_error with a sentence where the driver, or torch's CUDA half, is missing.
const Driver& driver();

// "CUDA_ERROR_INVALID_VALUE (invalid argument)".
std::string describe(const Driver& api, Status status);

// Throws std::runtime_error "<what> failed on CUDA device <device>: <error>".
[[noreturn]] void fail(const Driver& api, Status status, const std::string& what, int32_t device);

// The primary context of a device (the one torch works in); retained once and kept for good.
Handle primary_context(const Driver& api, int32_t device);

// Makes a context current in this thread for a scope: threads that torch did not start have none.
class ContextScope {
 public:
  ContextScope(const Driver& api, Handle context, int32_t device);
  ~ContextScope();
  ContextScope(const ContextScope&) = delete;
  ContextScope& operator=(const ContextScope&) = delete;

 private:
  const Driver& api_;
  Handle previous_ = nullptr;
  bool changed_ = false;
};

}  // namespace mamba_aot::runtime
