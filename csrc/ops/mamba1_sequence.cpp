// mamba1_sequence: the ops it is made of one after the other, and its CUDA half.
#include "ops/mamba1_sequence.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>

namespace mamba_aot {
namespace {

using torch::stable::narrow;
using torch::stable::transpose;

// Channels and time change places.
Tensor turned(const Tensor& t) { return transpose(t, 1, 2); }

// Part of the last dimension.
Tensor part_of(const Tensor& t, int64_t begin, int64_t count) {
  Tensor whole = t;
  return narrow(whole, 2, begin, count);
}

Tensor multiply(const Tensor& x, const Tensor& weight) {
  return torch::stable::matmul(x, transpose(weight, 0, 1));
}

// Moves the steps of x [batch, channels, length] into those that are kept, which are as many as before.
void keep_last_steps(Tensor kept, const Tensor& x) {
  const int64_t count = kept.size(2), length = x.size(2), added = std::min(count, length);
  if (added < count) {
    const Tensor before = torch::stable::clone(kept);
    Tensor older = part_of(kept, 0, count - added);
    torch::stable::copy_(older, part_of(before, added, count - added));
  }
  Tensor newer = part_of(kept, count - added, added);
  torch::stable::copy_(newer, part_of(x, length - added, added));
}

}  // namespace

Tensor mamba1_sequence_by(const Mamba1SequenceTensors& t, const Mamba1SequenceSizes& s,
                          decltype(&cpu::causal_conv1d_fwd) convolve,
                          decltype(&cpu::selective_scan_fwd) scan) {
  const Tensor x = turned(part_of(t.xz, 0, s.inner)), z = turned(part_of(t.xz, s.inner, s.inner));
  OptionalTensor kept;
  if (t.conv_state) kept = part_of(*t.conv_state, t.conv_state->size(2) - (s.taps - 1), s.taps - 1);
  const Tensor u = convolve(x, t.conv_weight, t.conv_bias, kept, std::nullopt, true);
  const Tensor low = multiply(turned(u), t.x_proj);
  const Tensor delta = turned(multiply(part_of(low, 0, s.rank), t.dt_proj));
  const auto weight = [&](int64_t begin) {
    return torch::stable::unsqueeze(turned(part_of(low, begin, s.state)), 1);
  };
  const auto [y, last_state, saved] =
      scan(u, delta, t.A, weight(s.rank), weight(s.rank + s.state), t.D, z, t.dt_bias, std::nullopt,
           to_state_dtype(t.ssm_state, state_dtype(type_of(t.xz))), std::nullopt, std::nullopt, true, false,
           false);
  // States are written last: what fails before leaves them as they were.
  if (kept) {
    keep_last_steps(*kept, x);
    Tensor ssm_state = *t.ssm_state;
    torch::stable::copy_(ssm_state, last_state);
  }
  return turned(y);
}

namespace cuda {

Tensor mamba1_sequence(Tensor xz, Tensor conv_weight, OptionalTensor conv_bias, Tensor x_proj, Tensor dt_proj,
                       OptionalTensor dt_bias, Tensor A, Tensor D, OptionalTensor conv_state,
                       OptionalTensor ssm_state) {
  const Mamba1SequenceTensors t{xz,      conv_weight, conv_bias, x_proj,     dt_proj,
                                dt_bias, A,           D,         conv_state, ssm_state};
  return mamba1_sequence_by(t, check_mamba1_sequence(t), &causal_conv1d_fwd, &selective_scan_fwd);
}

}  // namespace cuda
}  // namespace mamba_aot
