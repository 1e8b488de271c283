// What both halves of selective_scan do around their kernels: states of sequences that none visits, and the
// gradient of a delta that channels share.
#pragma once

#include "ops/selective_scan.h"

namespace mamba_aot {

// The gradient of a delta per head from that of one per channel.
inline Tensor gradient_of_heads(const Tensor& by_channel, const Tensor& delta, const SelectiveScanSizes& s) {
  if (s.heads == s.channels) return by_channel;
  const int64_t over[] = {2};
  Tensor split = torch::stable::view(by_channel, {s.batch, s.heads, s.channels / s.heads, s.length});
  return sequence_like(delta, torch::stable::sum(split, over));
}

// The state after no step: what sequences of no steps end with, and what rows of padding do.
inline void fill_state(Tensor& state, const OptionalTensor& given, const SelectiveScanSizes& s) {
  if (given && s.packing != Packing::by_index) {
    torch::stable::copy_(state, *given);
  } else {
    torch::stable::zero_(state);
  }
}

// A [rows, channels, state(, 2)] state with its numbers in one dimension.
inline Tensor by_channel(const Tensor& state, const SelectiveScanSizes& s) {
  return s.complex ? torch::stable::view(state, {s.rows, s.channels, s.state * 2}) : state;
}

// The states that sequences begin with which begin inside a chunk, behind those of the chunks; and zeros
// where a chunk begins with padding, which no kernel visits.
inline void fill_begun_states(Tensor& chunk_states, const OptionalTensor& initial_state,
                              const SelectiveScanSizes& s) {
  if (!s.packed() || chunk_states.numel() == 0) return;
  if (s.packing == Packing::by_ends && initial_state) {
    Tensor begun = torch::stable::narrow(chunk_states, 1, s.chunks(), s.rows);
    const Tensor states = torch::stable::contiguous(*initial_state);
    Tensor sequences = torch::stable::select(begun, 0, 0);
    Tensor flat = by_channel(states, s);
    torch::stable::copy_(sequences, torch::stable::transpose(flat, 1, 2));
  } else {
    torch::stable::zero_(chunk_states);
  }
}

}  // namespace mamba_aot
