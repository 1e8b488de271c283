// What the build knows about every compiled kernel; the generated tables are made of these.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <initializer_list>

namespace mamba_aot {

// Element types of kernels' tensors; `half` is f16 or bf16, which the kernel is told by a flag.
enum class DType : int8_t { f32, f16, bf16, f64, half };

inline const char* name_of(DType dtype) {
  constexpr const char* kNames[] = {"f32", "f16", "bf16", "f64", "half"};
  return kNames[static_cast<int>(dtype)];
}

namespace runtime {

// One compiled kernel for one architecture, embedded in this library; all null where the kernel is not for
// it.
struct Image {
  const char* id;     // selective_scan_fwd-sm90-bf16-complex-seq-few
  const char* entry;  // the kernel's symbol inside the image
  const unsigned char* data;
  uint64_t size;         // bytes; PTX counts its closing zero
  int32_t num_warps;     // 32 threads each
  int32_t shared_bytes;  // dynamic shared memory of one program
  int32_t registers;     // a thread; 0 for PTX
  int32_t spill_bytes;   // local memory a thread: spills and stack; 0 for PTX
  bool overlaps;         // may be launched before the kernel before it has ended: it waits by itself
  const char* sha256;
};

// The images of one kernel file for one architecture, in the order of its variants.
struct ImageSet {
  int32_t arch;  // 10 * major + minor
  bool ptx;      // text that the driver compiles, for architectures that came after the build
  const Image* images;
};

struct Variant;

// Everything that one kernel file gave.
struct Family {
  const char* stem;
  const ImageSet* sets;
  int32_t set_count;
  Variant* variants;
  int32_t variant_count;
};

// What a device needs in order to launch a variant; made once by launch.cpp.
struct Loaded;

constexpr int32_t kMaxDevices = 64;

// A kernel with every compile-time choice made, except the architecture.
struct Variant {
  const char* name;  // selective_scan_fwd-bf16-complex-seq-few
  const Family* family;
  int32_t index;                       // of its image in every set of the family
  std::atomic<const Loaded*>* loaded;  // [kMaxDevices]; null until the first launch there
};

// Position of a combination of axis values in a table; -1 when some axis has no such value.
struct Row {
  int32_t index = 0;

  template <class Value>
  void add(Value value, std::initializer_list<Value> values) {
    int32_t position = 0;
    for (Value candidate : values) {
      if (candidate == value) {
        index = index < 0 ? index : index * static_cast<int32_t>(values.size()) + position;
        return;
      }
      ++position;
    }
    index = -1;
  }
};

// Written by tools.aot: the whole library's content.
extern const Family* const kFamilies[];
extern const int32_t kFamilyCount;
extern const char kBuildInfo[];  // JSON

}  // namespace runtime
}  // namespace mamba_aot
