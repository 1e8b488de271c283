#include "runtime/c_api.h"

#include <algorithm>
#include <cstring>
#include <exception>

#include "runtime/driver.h"
#include "runtime/launch.h"
#include "runtime/tuned.h"
#include "runtime/variant.h"

using mamba_aot::runtime::Family;
using mamba_aot::runtime::Image;
using mamba_aot::runtime::ImageSet;
using mamba_aot::runtime::kFamilies;
using mamba_aot::runtime::kFamilyCount;

int32_t mamba_aot_api_version(void) { return 2; }

int32_t mamba_aot_image_count(void) {
  int32_t count = 0;
  for (int32_t i = 0; i < kFamilyCount; ++i) count += kFamilies[i]->set_count * kFamilies[i]->variant_count;
  return count;
}

int32_t mamba_aot_get_image(int32_t index, mamba_aot_image* image) {
  if (index < 0) return 1;
  for (int32_t i = 0; i < kFamilyCount; ++i) {
    const Family& family = *kFamilies[i];
    const int32_t here = family.set_count * family.variant_count;
    if (index >= here) {
      index -= here;
      continue;
    }
    const ImageSet& set = family.sets[index / family.variant_count];
    const int32_t variant = index % family.variant_count;
    const Image& source = set.images[variant];
    *image = {source.id,
              family.variants[variant].name,
              family.stem,
              source.entry,
              source.sha256,
              source.data,
              source.size,
              set.arch,
              set.ptx,
              source.num_warps,
              source.shared_bytes,
              source.registers,
              source.spill_bytes};
    return 0;
  }
  return 1;
}

const char* mamba_aot_build_info(void) { return mamba_aot::runtime::kBuildInfo; }

int32_t mamba_aot_set_tuned(const char* name, int64_t value) {
  return mamba_aot::runtime::TunedNumber::set(name, value) ? 0 : 1;
}

int32_t mamba_aot_preload(int32_t device, char* message, uint64_t size) {
  try {
    mamba_aot::runtime::driver();
    for (int32_t i = 0; i < kFamilyCount; ++i) {
      for (int32_t j = 0; j < kFamilies[i]->variant_count; ++j) {
        mamba_aot::runtime::preload(kFamilies[i]->variants[j], device);
      }
    }
    return 0;
  } catch (const std::exception& error) {
    if (message != nullptr && size > 0) {
      const uint64_t length = std::min<uint64_t>(std::strlen(error.what()), size - 1);
      std::memcpy(message, error.what(), length);
      message[length] = '\0';
    }
    return 1;
  }
}
