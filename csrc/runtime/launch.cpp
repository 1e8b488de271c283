#include "runtime/launch.h"

#include <limits>
#include <map>
#include <mutex>
#include <stdexcept>
#include <vector>

#include "runtime/driver.h"

namespace mamba_aot::runtime {

struct Loaded {
  Handle function;
  Handle context;
  unsigned threads;
  unsigned shared_bytes;
  bool overlaps;
};

namespace {

constexpr int kMultiprocessors = 16;
constexpr int kComputeCapabilityMajor = 75;
constexpr int kComputeCapabilityMinor = 76;
constexpr int kMaxDynamicSharedBytes = 8;
// Programs that want more than this must ask the driver for it.
constexpr int kSharedBytesWithoutAsking = 48 * 1024;
constexpr int kJitErrorLogBuffer = 5;
constexpr int kJitErrorLogBufferBytes = 6;

constexpr unsigned kProgrammaticStreamSerialization = 6;
// From here on graphs take such launches, too.
constexpr int kOverlapDriver = 12030;

std::mutex& loading() {
  static auto* mutex = new std::mutex;
  return *mutex;
}

void require_index(const char* what, int32_t device) {
  if (device >= 0 && device < kMaxDevices) return;
  throw std::runtime_error(std::string(what) + ": the device index must lie in [0, " +
                           std::to_string(kMaxDevices) + "), got " + std::to_string(device));
}

std::string list_of(const Family& family) {
  std::string text;
  for (int32_t i = 0; i < family.set_count; ++i) {
    const ImageSet& set = family.sets[i];
    text += (i ? ", " : "") + std::string(set.ptx ? "PTX for sm_" : "sm_") + std::to_string(set.arch) +
            (set.ptx ? " and newer" : "");
  }
  return text.empty() ? "no GPU images at all" : text;
}

// The exact architecture; else on 8.x the nearest lower one, whose code runs there too; else PTX.
const ImageSet* choose(const Family& family, int32_t arch) {
  const ImageSet* best = nullptr;
  for (int32_t i = 0; i < family.set_count; ++i) {
    const ImageSet& set = family.sets[i];
    if (set.ptx) continue;
    if (set.arch == arch) return &set;
    const bool runs = arch / 10 == 8 && set.arch / 10 == 8 && set.arch < arch;
    if (runs && (best == nullptr || best->arch < set.arch)) best = &set;
  }
  for (int32_t i = 0; best == nullptr && i < family.set_count; ++i) {
    if (family.sets[i].ptx && family.sets[i].arch <= arch) best = &family.sets[i];
  }
  return best;
}

// What `variant` has for an architecture: its set and image, or nulls.
struct Found {
  const ImageSet* set = nullptr;
  const Image* image = nullptr;
};

Found find(const Variant& variant, int32_t arch) {
  const ImageSet* set = choose(*variant.family, arch);
  if (set == nullptr || set->images[variant.index].data == nullptr) return {};
  return {set, &set->images[variant.index]};
}

std::string device_text(const Driver& api, int32_t device, int32_t arch) {
  char name[128] = "unknown";
  api.device_name(name, sizeof(name), device);
  return "CUDA device " + std::to_string(device) + " (" + name + ", compute capability " +
         std::to_string(arch / 10) + "." + std::to_string(arch % 10) + ")";
}

Handle load_kernel(const Driver& api, const Image& image, bool ptx, const std::string& where) {
  // One library serves every device, so two GPUs of a kind share it.
  static auto* kernels = new std::map<const Image*, Handle>;
  if (auto found = kernels->find(&image); found != kernels->end()) return found->second;
  std::vector<char> log(4096, '\0');
  const int options[] = {kJitErrorLogBuffer, kJitErrorLogBufferBytes};
  void* values[] = {log.data(), reinterpret_cast<void*>(log.size())};
  Handle library = nullptr;
  Handle kernel = nullptr;
  Status status = api.library_load(&library, image.data, options, values, ptx ? 2 : 0, nullptr, nullptr, 0);
  if (status == 0) status = api.library_kernel(&kernel, library, image.entry);
  if (status != 0) {
    int version = 0;
    api.driver_version(&version);
    throw std::runtime_error(std::string(image.id) + ": the driver (CUDA " + std::to_string(version / 1000) +
                             "." + std::to_string(version % 1000 / 10) + ") cannot load this " +
                             (ptx ? "PTX" : "image") + " for " + where + ": " + describe(api, status) +
                             (log[0] ? "; it says: " + std::string(log.data()) : std::string()) +
                             "; update the driver, or rebuild with MAMBA_AOT_ARCHS naming this GPU");
  }
  (*kernels)[&image] = kernel;
  return kernel;
}

const Loaded* load(const Driver& api, Variant& variant, int32_t device) {
  const std::lock_guard<std::mutex> lock(loading());
  if (const Loaded* other = variant.loaded[device].load(std::memory_order_acquire)) return other;
  const Handle context = primary_context(api, device);
  const int32_t arch = arch_of(device);
  const std::string where = device_text(api, device, arch);
  const Found found = find(variant, arch);
  if (found.image == nullptr) {
    throw std::runtime_error(std::string(variant.name) + ": no image for " + where + "; this library has " +
                             list_of(*variant.family) + "; rebuild with MAMBA_AOT_ARCHS=" +
                             (arch < 80 ? "... on a GPU of compute capability 8.0 or newer"
                                        : std::string(arch == 80 ? "80" : "80;" + std::to_string(arch))) +
                             ", or move the tensors to the CPU");
  }
  const Image& image = *found.image;
  const ContextScope scope(api, context, device);
  const Handle kernel = load_kernel(api, image, found.set->ptx, where);
  if (image.shared_bytes > kSharedBytesWithoutAsking) {
    int ordinal = 0;
    Status status = api.device_get(&ordinal, device);
    if (status == 0) {
      status = api.kernel_attribute(kMaxDynamicSharedBytes, image.shared_bytes, kernel, ordinal);
    }
    if (status != 0) {
      fail(api, status,
           std::string(image.id) + ": asking for " + std::to_string(image.shared_bytes) +
               " bytes of shared memory",
           device);
    }
  }
  // Materialises the code now: PTX is compiled here, and no first use falls into a graph capture.
  Handle function = nullptr;
  const Status status = api.kernel_function(&function, kernel);
  if (status != 0) fail(api, status, std::string(image.id) + ": preparing the kernel", device);
  int version = 0;
  api.driver_version(&version);
  auto* loaded =
      new Loaded{function, context, static_cast<unsigned>(32 * image.num_warps),
                 static_cast<unsigned>(image.shared_bytes), image.overlaps && version >= kOverlapDriver};
  variant.loaded[device].store(loaded, std::memory_order_release);
  return loaded;
}

const Loaded* ready(const Driver& api, Variant& variant, int32_t device) {
  require_index(variant.name, device);
  const Loaded* loaded = variant.loaded[device].load(std::memory_order_acquire);
  return loaded != nullptr ? loaded : load(api, variant, device);
}

// A positive number of a device that never changes, as `read` finds it.
template <class Read>
int32_t remembered(std::atomic<int32_t> (&known)[kMaxDevices], int32_t device, Read read) {
  require_index("mamba_aot", device);
  if (const int32_t value = known[device].load(std::memory_order_relaxed)) return value;
  const Driver& api = driver();
  int ordinal = 0, value = 0;
  Status status = api.device_get(&ordinal, device);
  if (status == 0) status = read(api, ordinal, value);
  if (status != 0) fail(api, status, "mamba_aot: reading what the device is", device);
  known[device].store(value, std::memory_order_relaxed);
  return value;
}

[[noreturn]] void refuse_grid(const Variant& variant, uint64_t grid_x) {
  throw std::runtime_error(std::string(variant.name) + ": a launch has at most 2147483647 programs, got " +
                           std::to_string(grid_x) + "; split the batch");
}

}  // namespace

void launch(Variant& variant, int32_t device, uint64_t grid_x, void** parameters) {
  if (grid_x == 0) return;
  if (grid_x > static_cast<uint64_t>(std::numeric_limits<int32_t>::max())) refuse_grid(variant, grid_x);
  const Driver& api = driver();
  const Loaded* loaded = ready(api, variant, device);
  Handle stream = nullptr;
  if (api.torch_stream(device, &stream) != 0) {
    throw std::runtime_error(std::string(variant.name) + ": torch gives no current stream for CUDA device " +
                             std::to_string(device));
  }
  const ContextScope scope(api, loaded->context, device);
  LaunchAttribute overlap{};
  overlap.id = kProgrammaticStreamSerialization;
  overlap.number = 1;
  const LaunchConfig config{{static_cast<unsigned>(grid_x), 1, 1},
                            {loaded->threads, 1, 1},
                            loaded->shared_bytes,
                            stream,
                            &overlap,
                            loaded->overlaps ? 1u : 0u};
  const Status status = api.launch(&config, loaded->function, parameters, nullptr);
  if (status != 0) {
    fail(api, status, std::string(variant.name) + ": launching " + std::to_string(grid_x) + " programs",
         device);
  }
}

int32_t arch_of(int32_t device) {
  static std::atomic<int32_t> known[kMaxDevices];
  return remembered(known, device, [](const Driver& api, int ordinal, int& value) {
    int minor = 0;
    Status status = api.device_attribute(&value, kComputeCapabilityMajor, ordinal);
    if (status == 0) status = api.device_attribute(&minor, kComputeCapabilityMinor, ordinal);
    value = 10 * value + minor;
    return status;
  });
}

int32_t multiprocessors_of(int32_t device) {
  static std::atomic<int32_t> known[kMaxDevices];
  return remembered(known, device, [](const Driver& api, int ordinal, int& value) {
    return api.device_attribute(&value, kMultiprocessors, ordinal);
  });
}

void preload(Variant& variant, int32_t device) {
  const Driver& api = driver();
  // A kernel for another architecture is never launched here; with no images at all, nothing can be.
  const bool is_for_others =
      choose(*variant.family, arch_of(device)) != nullptr && !has_image(variant, device);
  if (!is_for_others) ready(api, variant, device);
}

bool has_image(const Variant& variant, int32_t device) {
  return find(variant, arch_of(device)).image != nullptr;
}

void refuse(const char* stem, const char* op, const std::string& key, const char* config) {
  throw std::runtime_error(std::string(op) + ": no kernel was built for " + key + " with config " + config +
                           "; the table at the end of csrc/kernels/" + stem + ".py says what is built");
}

}  // namespace mamba_aot::runtime
