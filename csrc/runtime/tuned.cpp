#include "runtime/tuned.h"

#include <cstring>

#include "runtime/launch.h"

namespace mamba_aot::runtime {

TunedNumber* TunedNumber::newest_ = nullptr;

TunedNumber::TunedNumber(const char* name, std::initializer_list<Value> values)
    : name_(name), next_(newest_) {
  for (const Value& value : values) {
    if (count_ < kMostValues) values_[count_++] = value;
  }
  newest_ = this;
}

int64_t TunedNumber::on(int32_t device) {
  const int64_t chosen = set_.load(std::memory_order_relaxed);
  if (chosen >= 0) return chosen;
  const int32_t arch = arch_of(device);
  int64_t value = values_[0].value;
  for (int32_t i = 0; i < count_; ++i) {
    if (values_[i].arch <= arch) value = values_[i].value;
  }
  return value;
}

bool TunedNumber::set(const char* name, int64_t value) {
  for (TunedNumber* number = newest_; number != nullptr; number = number->next_) {
    if (std::strcmp(number->name_, name) != 0) continue;
    number->set_.store(value < 0 ? -1 : value, std::memory_order_relaxed);
    return true;
  }
  return false;
}

}  // namespace mamba_aot::runtime
