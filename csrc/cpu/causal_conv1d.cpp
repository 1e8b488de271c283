// The CPU half of causal_conv1d: checks, allocates, cuts the work into items and hands them to the kernels.
#include "ops/causal_conv1d.h"

#include "cpu/causal_conv1d_plan.h"
#include "cpu/dispatch.h"
#include "cpu/sum_partials.h"

namespace mamba_aot::cpu {

static_assert(kMostTaps == kMaxWidth);

MAMBA_AOT_PER_ISA(int64_t, causal_conv1d_forward,
                  (const ConvPlan& plan, int64_t begin, int64_t end, void* scratch))
MAMBA_AOT_PER_ISA(int64_t, causal_conv1d_backward,
                  (const ConvPlan& plan, int64_t begin, int64_t end, void* scratch))
MAMBA_AOT_PER_ISA(int64_t, causal_conv1d_step,
                  (const ConvUpdatePlan& plan, int64_t begin, int64_t end, void* scratch))

namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

ConvPlan make_plan(const CausalConv1dSizes& s, const Tensor& x, const Tensor& weight,
                   const OptionalTensor& bias, const OptionalTensor& initial_states,
                   const OptionalTensor& sequences, bool silu) {
  ConvPlan plan{};
  plan.batch = s.batch;
  plan.channels = s.channels;
  plan.length = s.length;
  plan.width = s.width;
  plan.segment_length = 1024;
  plan.segments = s.length > 0 ? ceil_div(s.length, plan.segment_length) : 1;
  plan.split_channels = kSplitChannels;
  plan.splits = ceil_div(s.channels, plan.split_channels);
  plan.silu = silu;
  plan.float64 = type_of(x) == ScalarType::Double;
  plan.x = view(x);
  if (s.width > 1) plan.initial_states = view(initial_states);
  if (sequences && !s.empty()) {
    plan.starts = static_cast<const int32_t*>(sequences->data_ptr());
    plan.rows = plan.starts + s.batch * s.length;
    const int64_t rows = plan.initial_states.data ? s.rows : 0;
    for (int64_t i = 0; rows > 0 && i < s.batch * s.length; ++i) {
      check(plan.rows[i] < rows, "causal_conv1d_fn: sequences must name rows of initial_states below ", rows,
            ", got ", plan.rows[i]);
    }
  }
  plan.weight = view(weight);
  plan.bias = view(bias);
  return plan;
}

// Throws unless cu_seqlens starts at 0, does not decrease and ends at the length.
void check_ends(const Tensor& cu_seqlens, int64_t length) {
  const char* name = "causal_conv1d_fn: cu_seqlens must ";
  const int32_t* end = static_cast<const int32_t*>(cu_seqlens.data_ptr());
  const int64_t stride = cu_seqlens.stride(0), last = cu_seqlens.size(0) - 1;
  check(end[0] == 0, name, "start at 0, got ", end[0]);
  for (int64_t i = 1; i <= last; ++i) {
    check(end[i * stride] >= end[(i - 1) * stride], name, "not decrease, got ", end[i * stride], " after ",
          end[(i - 1) * stride], " at position ", i);
  }
  check(end[last * stride] == length, name, "end at the length of x, which is ", length, ", got ",
        end[last * stride]);
}

// Single steps of an item's channels that are worth a thread: some 20 microseconds of work.
constexpr int64_t kStepGrain = 8;

// Items worth a thread of their own.
int64_t item_grain(int64_t steps) { return steps > 0 && steps < 256 ? 256 / steps : 1; }

}  // namespace

Tensor causal_conv1d_sequences(Tensor x, Tensor weight, OptionalTensor seq_idx, OptionalTensor cu_seqlens,
                               OptionalTensor initial_states) {
  const CausalConv1dSizes s = check_causal_conv1d_sequences(x, weight, seq_idx, cu_seqlens, initial_states);
  check(s.length < INT32_MAX, "causal_conv1d_fn: packed sequences must be shorter than 2^31 steps together, ",
        "got ", s.length);
  if (cu_seqlens) check_ends(*cu_seqlens, s.length);
  Tensor sequences = empty_on(x, {2, s.batch, s.length}, ScalarType::Int);
  int32_t* starts = static_cast<int32_t*>(sequences.data_ptr());
  int32_t* rows = starts + s.batch * s.length;
  if (cu_seqlens) {
    const int32_t* end = static_cast<const int32_t*>(cu_seqlens->data_ptr());
    const int64_t stride = cu_seqlens->stride(0);
    for (int64_t row = 0; row < s.rows; ++row) {
      for (int64_t t = end[row * stride]; t < end[(row + 1) * stride]; ++t) {
        starts[t] = end[row * stride];
        rows[t] = static_cast<int32_t>(row);
      }
    }
    return sequences;
  }
  const int32_t* index = static_cast<const int32_t*>(seq_idx->data_ptr());
  for (int64_t b = 0; b < s.batch; ++b) {
    const int32_t* of_row = index + b * seq_idx->stride(0);
    int32_t start = 0;
    for (int64_t t = 0; t < s.length; ++t) {
      const int32_t own = of_row[t * seq_idx->stride(1)];
      if (t > 0 && own != of_row[(t - 1) * seq_idx->stride(1)]) start = static_cast<int32_t>(t);
      starts[b * s.length + t] = own < 0 ? kPaddingStart : start;
      rows[b * s.length + t] = own < 0 || start > 0 ? kNoRow : static_cast<int32_t>(b);
    }
  }
  return sequences;
}

Tensor causal_conv1d_fwd(Tensor x, Tensor weight, OptionalTensor bias, OptionalTensor initial_states,
                         OptionalTensor sequences, bool silu) {
  const CausalConv1dSizes s = check_causal_conv1d(x, weight, bias, initial_states, sequences);
  ConvPlan plan = make_plan(s, x, weight, bias, initial_states, sequences, silu);
  Tensor out = layout_like(x);
  plan.out = view(out);
  run_items(plan, s.batch * plan.segments * plan.splits, item_grain(s.length),
            pick_causal_conv1d_forward(plan.float64));
  return out;
}

CausalConv1dGradients causal_conv1d_bwd(Tensor dout, Tensor x, Tensor weight, OptionalTensor bias,
                                        OptionalTensor initial_states, OptionalTensor sequences, bool silu) {
  const CausalConv1dSizes s = check_causal_conv1d_backward(dout, x, weight, bias, initial_states, sequences);
  const ScalarType type = state_dtype(type_of(x));
  ConvPlan plan = make_plan(s, x, weight, bias, initial_states, sequences, silu);
  Tensor dx = layout_like(x);
  Tensor dinitial =
      initial_states ? torch::stable::new_zeros(x, {s.rows, s.channels, s.width - 1}) : absent_on(x);
  const int64_t sums = s.batch * plan.segments;
  Tensor dweight = empty_on(x, {sums, s.channels, s.width}, type);
  Tensor dbias = bias ? empty_on(x, {sums, s.channels}, type) : absent_on(x);
  plan.dout = view(dout);
  plan.dx = view(dx);
  if (plan.initial_states.data) plan.dinitial_states = view(dinitial);
  plan.dweight = dweight.data_ptr();
  plan.dbias = bias ? dbias.data_ptr() : nullptr;
  run_items(plan, sums * plan.splits, item_grain(s.length), pick_causal_conv1d_backward(plan.float64));
  dweight = to_input_dtype(sum_over_items(dweight, 1, sums, {s.channels, s.width}), weight);
  if (bias) dbias = to_input_dtype(sum_over_items(dbias, 1, sums, {s.channels}), *bias);
  return {dx, dweight, dbias, dinitial};
}

CausalConv1dOtherGradients causal_conv1d_bwd_into(Tensor dout, Tensor x, Tensor weight, OptionalTensor bias,
                                                  OptionalTensor initial_states, OptionalTensor sequences,
                                                  bool silu, Tensor dx) {
  check_causal_conv1d_backward(dout, x, weight, bias, initial_states, sequences);
  check_gradient_out("causal_conv1d_fn", "dx", dx, "x", x, {&dout, &x});
  const auto [own, dweight, dbias, dstates] =
      causal_conv1d_bwd(dout, x, weight, bias, initial_states, sequences, silu);
  torch::stable::copy_(dx, own);
  return {dweight, dbias, dstates};
}

Tensor causal_conv1d_update(Tensor x, Tensor conv_state, Tensor weight, OptionalTensor bias,
                            OptionalTensor cache_seqlens, OptionalTensor conv_state_indices, bool silu) {
  const CausalConv1dUpdateSizes s =
      check_causal_conv1d_update(x, conv_state, weight, bias, cache_seqlens, conv_state_indices);
  check_slots("causal_conv1d_update", "conv_state_indices", conv_state_indices, s.slots);
  Tensor out = s.single ? empty_on(x, {s.batch, s.channels}, type_of(x))
                        : empty_on(x, {s.batch, s.channels, s.length}, type_of(x));
  ConvUpdatePlan plan{};
  plan.batch = s.batch;
  plan.channels = s.channels;
  plan.length = s.length;
  plan.width = s.width;
  plan.state_length = s.state_length;
  plan.split_channels = 64;
  plan.silu = silu;
  plan.float64 = type_of(x) == ScalarType::Double;
  plan.x = view(x);
  plan.out = view(out);
  plan.conv_state = view(conv_state);
  plan.weight = view(weight);
  plan.bias = view(bias);
  if (conv_state_indices) {
    plan.indices = static_cast<const int32_t*>(conv_state_indices->data_ptr());
    plan.indices_stride = conv_state_indices->stride(0);
  }
  if (cache_seqlens) {
    plan.seen = static_cast<const int32_t*>(cache_seqlens->data_ptr());
    plan.seen_stride = cache_seqlens->stride(0);
  }
  // Sequences of one slot stay on one thread, so that even a repeated slot is updated in order.
  const int64_t splits = ceil_div(s.channels, plan.split_channels);
  const int64_t steps = s.batch * s.length;
  run_items(plan, s.empty() ? 0 : splits, steps > 0 && steps < kStepGrain ? kStepGrain / steps : 1,
            pick_causal_conv1d_step(plan.float64));
  return out;
}

}  // namespace mamba_aot::cpu
