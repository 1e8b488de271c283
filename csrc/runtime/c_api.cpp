#include "runtime/c_api.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <vector>

#include "runtime/driver.h"
#include "runtime/launch.h"
#include "runtime/tuned.h"
#include "runtime/variant.h"

using mamba_aot::runtime::Family;
using mamba_aot::runtime::Image;
using mamba_aot::runtime::ImageSet;
using mamba_aot::runtime::kFamilies;
using mamba_aot::runtime::kFamilyCount;

namespace {

// Where an image lies: place of its variant in a set of a family.
struct Place {
  const Family* family;
  const ImageSet* set;
  int32_t variant;
};

const std::vector<Place>& places() {
  static const auto* all = [] {
    auto* found = new std::vector<Place>;
    for (int32_t i = 0; i < kFamilyCount; ++i) {
      const Family& family = *kFamilies[i];
      for (int32_t j = 0; j < family.set_count; ++j) {
        for (int32_t k = 0; k < family.variant_count; ++k) {
          if (family.sets[j].images[k].data != nullptr) found->push_back({&family, &family.sets[j], k});
        }
      }
    }
    return found;
  }();
  return *all;
}

}  // namespace

int32_t mamba_aot_api_version(void) { return 2; }

int32_t mamba_aot_image_count(void) { return static_cast<int32_t>(places().size()); }

int32_t mamba_aot_get_image(int32_t index, mamba_aot_image* image) {
  if (index < 0 || index >= mamba_aot_image_count()) return 1;
  const auto& [family, set, variant] = places()[index];
  const Image& source = set->images[variant];
  *image = {source.id,
            family->variants[variant].name,
            family->stem,
            source.entry,
            source.sha256,
            source.data,
            source.size,
            set->arch,
            set->ptx,
            source.num_warps,
            source.shared_bytes,
            source.registers,
            source.spill_bytes};
  return 0;
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
