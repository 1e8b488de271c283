// The forward of selective_scan in warps of two kinds: which scans it takes, and in which layout.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <optional>

#include "generated/selective_scan.gen.h"
#include "ops/selective_scan_operands.h"
#include "ops/selective_scan_spans.h"

namespace mamba_aot::cuda {
namespace specialized {

using Kernel = generated::SelectiveScanSpecializedFwd;

inline constexpr int64_t kMostStates = 16;
// In fewer steps its warps have not yet come into step.
inline constexpr int64_t kLeastSteps = 256;
// Offsets in a tile have 32 bits.
inline constexpr int64_t kMostStride = int64_t{1} << 25;

// How a scan is launched.
struct Plan {
  Kernel::Key key;
  const Kernel::Config* config;
};

// Nothing if another kernel has to do it, or is faster: of few channels and many steps one that splits time.
inline std::optional<Plan> plan_of(const SelectiveScanSizes& s, const SelectiveScanInputs& in,
                                   const Strides& out, int32_t flags) {
  if (s.complex || s.packed() || type_of(in.u) == ScalarType::Float || is_general(s, in, flags)) {
    return std::nullopt;
  }
  if (s.state <= kFewStates || s.state > kMostStates || s.length < kLeastSteps) return std::nullopt;
  const int32_t device = in.u.get_device_index();
  const int64_t rows = rows_to_choose_by(s);
  if (rows * s.channels < Kernel::LEAST(device)) return std::nullopt;
  const std::initializer_list<Strides> all = {Strides(in.u), Strides(in.delta), Strides(in.z), out};
  Kernel::Key key{storage_of(in.u), Kernel::Layout::seq};
  if (in_rows(s, all)) {
    if (std::any_of(all.begin(), all.end(), [](const Strides& t) { return t.channel >= kMostStride; })) {
      return std::nullopt;
    }
  } else if (s.channels / s.groups % 2 == 0 && std::all_of(all.begin(), all.end(), [](const Strides& t) {
               return t.columns() && t.time < kMostStride;
             })) {
    key.LAYOUT = Kernel::Layout::last;
  } else {
    return std::nullopt;
  }
  const auto& config = Kernel::pick(key, {rows, s.channels, device});
  const bool pairs = type_of(in.B) == ScalarType::BFloat16 && type_of(in.C) == ScalarType::BFloat16;
  if ((config.PAIRED && !pairs) || !Kernel::is_for(key, config, device)) return std::nullopt;
  return Plan{key, &config};
}

}  // namespace specialized
}  // namespace mamba_aot::cuda
