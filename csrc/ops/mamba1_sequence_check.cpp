// What mamba1_sequence checks of its arguments, on every device.
#include <algorithm>

#include "ops/mamba1_sequence.h"

namespace mamba_aot {

Mamba1SequenceSizes check_mamba1_sequence(const Mamba1SequenceTensors& t) {
  const char* fn = "mamba1_sequence";
  Arg{fn, "xz", t.xz}.has_rank("[batch, length, 2 channels]", 3).is_data_dtype();
  Arg{fn, "A", t.A}.has_rank("[channels, state]", 2);
  Arg{fn, "dt_proj", t.dt_proj}.has_rank("[channels, rank]", 2);
  Arg{fn, "conv_weight", t.conv_weight}.has_rank("[channels, taps]", 2);
  const Mamba1SequenceSizes s{t.xz.size(0), t.xz.size(1),      t.A.size(0),
                              t.A.size(1),  t.dt_proj.size(1), t.conv_weight.size(1)};
  check(s.taps >= 1, fn, ": conv_weight must have at least 1 tap, got ", s.taps);
  const ScalarType type = type_of(t.xz), wide = state_dtype(type);
  Arg{fn, "xz", t.xz}.has_shape("[batch, length, 2 channels]", {s.batch, s.length, 2 * s.inner});
  const auto projection = [&](const char* name, const Tensor& weight, const char* dims, Dims want) {
    Arg{fn, name, weight}.on_device_of(t.xz, "xz").has_shape(dims, want).has_dtype(type, "like xz");
  };
  projection("x_proj", t.x_proj, "[rank + 2 state, channels]", {s.rank + 2 * s.state, s.inner});
  projection("dt_proj", t.dt_proj, "[channels, rank]", {s.inner, s.rank});
  check(t.conv_state.has_value() == t.ssm_state.has_value(), fn,
        ": conv_state and ssm_state must be given together, or neither; got only ",
        t.conv_state ? "conv_state" : "ssm_state");
  if (t.conv_state) {
    const int64_t kept = t.conv_state->dim() == 3 ? t.conv_state->size(2) : 0;
    Arg{fn, "conv_state", *t.conv_state}
        .on_device_of(t.xz, "xz")
        .has_shape("[batch, channels, taps - 1 or more]", {s.batch, s.inner, std::max(kept, s.taps - 1)})
        .has_dtype(type, "like xz");
    const ScalarType held = type_of(*t.ssm_state) == type ? type : wide;
    Arg{fn, "ssm_state", *t.ssm_state}
        .on_device_of(t.xz, "xz")
        .has_shape("[batch, channels, state]", {s.batch, s.inner, s.state})
        .has_dtype(held, "(the arithmetic of xz) or like xz");
  }
  return s;
}

}  // namespace mamba_aot
