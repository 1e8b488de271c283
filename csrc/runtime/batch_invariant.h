// Whether what a forward kernel does with a sequence may depend on how many there are beside it.
#pragma once

#include <cstdlib>
#include <string_view>

namespace mamba_aot {

// Set by MAMBA_AOT_BATCH_INVARIANT, read once: kernels are then chosen as for one sequence alone, so that a
// batch gives bit for bit what its sequences give one by one.
inline bool batch_invariant() {
  static const bool asked = [] {
    const char* setting = std::getenv("MAMBA_AOT_BATCH_INVARIANT");
    return setting != nullptr && std::string_view(setting) != "" && std::string_view(setting) != "0";
  }();
  return asked;
}

}  // namespace mamba_aot
