// selective_scan in warps of two kinds: which scans its kernels take, and in which layout.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <optional>

#include "generated/selective_scan.gen.h"
#include "ops/selective_scan_operands.h"
#include "ops/selective_scan_spans.h"

namespace mamba_aot::cuda {
namespace specialized {

using Forward = generated::SelectiveScanSpecializedFwd;
using Backward = generated::SelectiveScanSpecializedBwd;

inline constexpr int64_t kMostStates = 16;
// In fewer steps the forward's warps have not yet come into step; for the backward a chunk is enough.
inline constexpr int64_t kLeastForward = 256;
inline constexpr int64_t kLeastBackward = kChunk;
// Offsets in a tile have 32 bits.
inline constexpr int64_t kMostStride = int64_t{1} << 25;

// Whether they are sixteen-bit sequences and real states, as many as there are registers for, without
// options.
inline bool fits(const SelectiveScanSizes& s, const SelectiveScanInputs& in, int64_t least_steps) {
  return !s.complex && !s.packed() && type_of(in.u) != ScalarType::Float && s.state > kFewStates &&
         s.state <= kMostStates && s.length >= least_steps;
}

// How sequences lie in memory, if kernels of two kinds of warps can take them so. `channels` of a group that
// are neighbours in memory have to be whole.
template <class Layout>
std::optional<Layout> layout_of(const SelectiveScanSizes& s, std::initializer_list<Strides> all,
                                int64_t channels) {
  const auto near = [](const Strides& t) { return t.channel < kMostStride; };
  const auto in_columns = [](const Strides& t) { return t.columns() && t.time < kMostStride; };
  if (in_rows(s, all)) {
    return std::all_of(all.begin(), all.end(), near) ? std::optional(Layout::seq) : std::nullopt;
  }
  if (s.channels / s.groups % channels != 0 || !std::all_of(all.begin(), all.end(), in_columns)) {
    return std::nullopt;
  }
  return Layout::last;
}

// How a forward is launched.
struct Plan {
  Forward::Key key;
  const Forward::Config* config;
};

// Nothing if another kernel has to do it, or is faster: of few channels and many steps one that splits time.
inline std::optional<Plan> plan_of(const SelectiveScanSizes& s, const SelectiveScanInputs& in,
                                   const Strides& out, int32_t flags) {
  if (!fits(s, in, kLeastForward) || is_general(s, in, flags)) return std::nullopt;
  const int32_t device = in.u.get_device_index();
  const int64_t rows = rows_to_choose_by(s);
  if (rows * s.channels < Forward::LEAST(device)) return std::nullopt;
  const auto layout =
      layout_of<Forward::Layout>(s, {Strides(in.u), Strides(in.delta), Strides(in.z), out}, 2);
  if (!layout) return std::nullopt;
  const Forward::Key key{storage_of(in.u), *layout};
  const auto& config = Forward::pick(key, {rows, s.channels, device});
  const bool pairs = type_of(in.B) == ScalarType::BFloat16 && type_of(in.C) == ScalarType::BFloat16;
  if ((config.PAIRED && !pairs) || !Forward::is_for(key, config, device)) return std::nullopt;
  return Plan{key, &config};
}

// The variant of a backward that the plain kernel could take, too. `all` are its sequences.
inline std::optional<Backward::Key> backward_key_of(const SelectiveScanSizes& s,
                                                    const SelectiveScanInputs& in,
                                                    std::initializer_list<Strides> all) {
  if (!fits(s, in, kLeastBackward)) return std::nullopt;
  const auto layout = layout_of<Backward::Layout>(s, all, 8);
  if (!layout) return std::nullopt;
  const Backward::Key key{storage_of(in.u), *layout};
  if (!Backward::is_for(key, Backward::pick(key, {}), in.u.get_device_index())) return std::nullopt;
  return key;
}

}  // namespace specialized
}  // namespace mamba_aot::cuda
