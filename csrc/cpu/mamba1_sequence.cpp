// The CPU half of mamba1_sequence.
#include "ops/mamba1_sequence.h"

namespace mamba_aot::cpu {

Tensor mamba1_sequence(Tensor xz, Tensor conv_weight, OptionalTensor conv_bias, Tensor x_proj, Tensor dt_proj,
                       OptionalTensor dt_bias, Tensor A, Tensor D, OptionalTensor conv_state,
                       OptionalTensor ssm_state) {
  const Mamba1SequenceTensors t{xz,      conv_weight, conv_bias, x_proj,     dt_proj,
                                dt_bias, A,           D,         conv_state, ssm_state};
  return mamba1_sequence_by(t, check_mamba1_sequence(t), &causal_conv1d_fwd, &selective_scan_fwd);
}

}  // namespace mamba_aot::cpu
