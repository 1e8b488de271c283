// Numbers that a GPU chose, by architecture: the build reads them from csrc/kernels/tuned. They can be set
// for the rest of the process, so that `python -m tools.aot tune` can time what they lead to.
#pragma once

#include <atomic>
#include <cstdint>
#include <initializer_list>

namespace mamba_aot::runtime {

class TunedNumber {
 public:
  struct Value {
    int32_t arch;
    int64_t value;
  };

  // One for each number in the library, made while that is loaded.
  TunedNumber(const char* name, std::initializer_list<Value> values);
  TunedNumber(const TunedNumber&) = delete;
  TunedNumber& operator=(const TunedNumber&) = delete;

  // On a CUDA device: the value of its architecture, else of the nearest older one, else of the oldest.
  // Throws std::runtime_error where there is no driver or no such device.
  int64_t on(int32_t device);

  // Sets the number of this name on every device; a negative one gives the measured values back. False when
  // there is no number of this name.
  static bool set(const char* name, int64_t value);

 private:
  static constexpr int32_t kMostValues = 8;

  const char* name_;
  Value values_[kMostValues];
  int32_t count_ = 0;
  std::atomic<int64_t> set_{-1};
  TunedNumber* next_;

  // The last one made, and through `next_` all others.
  static TunedNumber* newest_;
};

}  // namespace mamba_aot::runtime
