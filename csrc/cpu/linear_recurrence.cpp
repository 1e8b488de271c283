// The CPU half of linear_recurrence: checks, allocates, cuts the work into items and hands them to the
// kernels.
#include "ops/linear_recurrence.h"

#include "cpu/dispatch.h"
#include "cpu/linear_recurrence_plan.h"

namespace mamba_aot::cpu {

MAMBA_AOT_PER_ISA(int64_t, linear_recurrence_forward,
                  (const RecurrencePlan& plan, int64_t begin, int64_t end, void* scratch))
MAMBA_AOT_PER_ISA(int64_t, linear_recurrence_backward,
                  (const RecurrencePlan& plan, int64_t begin, int64_t end, void* scratch))

static_assert(kRecurrenceSaved == kRecurrenceChunk);
static_assert(kRecurrenceTile % kRecurrenceChunk == 0, "a tile starts where a state was saved");

namespace {

// A tensor with strides of its rows, as RecurrenceRows has them.
View row_view(const Tensor& t, const int64_t* stride) {
  return {t.data_ptr(), view_dtype(type_of(t)), {stride[0], stride[1], stride[2], stride[3]}};
}

View row_view(const OptionalTensor& t, const int64_t* stride) { return t ? row_view(*t, stride) : View{}; }

// Chunks [chunks, ...] of states that are contiguous, like the states themselves.
View chunk_view(const OptionalTensor& t, const int64_t* stride, int64_t rows) {
  if (!t || t->numel() == 0) return {};
  View v = row_view(*t, stride);
  v.stride[3] = rows;
  return v;
}

RecurrencePlan make_plan(const LinearRecurrenceSizes& s, const RecurrenceRows& rows, const Tensor& values,
                         bool reverse) {
  RecurrencePlan plan{};
  for (int i = 0; i < 3; ++i) plan.size[i] = rows.size[i];
  plan.length = s.length;
  // Rows that are neighbours in memory are read across: many rows, few steps. Others are streams of their
  // own: few rows, many steps.
  const bool across = rows.stride[0][2] == s.parts();
  plan.split_rows = across ? kRecurrenceSplit : 16;
  plan.tile_steps = across ? kRecurrenceChunk : kRecurrenceTile;
  plan.splits = (rows.size[2] + plan.split_rows - 1) / plan.split_rows;
  plan.complex = s.complex;
  plan.reverse = reverse;
  plan.float64 = type_of(values) == ScalarType::Double;
  return plan;
}

int64_t items_of(const RecurrencePlan& plan) { return plan.size[0] * plan.size[1] * plan.splits; }

// Items worth a thread of their own.
int64_t item_grain(int64_t steps) { return steps < 256 ? 256 / steps : 1; }

}  // namespace

LinearRecurrenceOutputs linear_recurrence_fwd(Tensor a, Tensor b, OptionalTensor initial_state, bool complex,
                                              bool reverse, bool save_states) {
  const LinearRecurrenceSizes s = check_linear_recurrence(a, b, initial_state, complex, save_states);
  Tensor h = ordered_like(b, complex);
  Tensor last_state = states_on(b, s.shape(-1, -1));
  Tensor chunk_states = states_on(b, save_states ? s.shape(s.chunks(), -1) : std::vector<int64_t>{0});
  if (s.empty()) {
    pass_state_through(last_state, initial_state);
    return {h, last_state, chunk_states};
  }
  const OptionalTensor state = to_state_dtype(initial_state, state_dtype(type_of(b)));
  const RecurrenceRows rows(s, {&h, &a, &b, &last_state});
  RecurrencePlan plan = make_plan(s, rows, b, reverse);
  plan.h = row_view(h, rows.stride[0]);
  plan.a = row_view(a, rows.stride[1]);
  plan.b = row_view(b, rows.stride[2]);
  plan.initial_state = row_view(state, rows.stride[3]);
  plan.last_state = row_view(last_state, rows.stride[3]);
  plan.chunk_states = chunk_view(chunk_states, rows.stride[3], s.rows);
  run_items(plan, items_of(plan), item_grain(s.length), pick_linear_recurrence_forward(plan.float64));
  return {h, last_state, chunk_states};
}

LinearRecurrenceOutputs linear_recurrence_bwd(Tensor dh, OptionalTensor dlast_state, Tensor a,
                                              OptionalTensor b, OptionalTensor h,
                                              OptionalTensor initial_state, OptionalTensor chunk_states,
                                              bool complex, bool reverse) {
  const LinearRecurrenceSizes s =
      check_linear_recurrence_backward(dh, dlast_state, a, b, h, initial_state, chunk_states, complex);
  const bool recompute = detail::is_half(a);
  const Tensor& values = recompute ? *b : *h;
  Tensor da = ordered_like(a, complex), db = ordered_like(values, complex);
  Tensor dinitial_state = states_on(a, s.shape(-1, -1));
  if (s.empty()) {
    pass_state_through(dinitial_state, dlast_state);
    return {da, db, dinitial_state};
  }
  const OptionalTensor state = to_state_dtype(initial_state, state_dtype(type_of(a)));
  const OptionalTensor last = to_state_dtype(dlast_state, state_dtype(type_of(a)));
  const RecurrenceRows rows(s, {&db, &da, &a, &values, &dh, &dinitial_state});
  RecurrencePlan plan = make_plan(s, rows, values, reverse);
  plan.db = row_view(db, rows.stride[0]);
  plan.da = row_view(da, rows.stride[1]);
  plan.a = row_view(a, rows.stride[2]);
  (recompute ? plan.b : plan.h) = row_view(values, rows.stride[3]);
  plan.dh = row_view(dh, rows.stride[4]);
  plan.initial_state = row_view(state, rows.stride[5]);
  plan.dlast_state = row_view(last, rows.stride[5]);
  plan.dinitial_state = row_view(dinitial_state, rows.stride[5]);
  if (recompute) plan.chunk_states = chunk_view(chunk_states, rows.stride[5], s.rows);
  run_items(plan, items_of(plan), item_grain(s.length), pick_linear_recurrence_backward(plan.float64));
  return {da, db, dinitial_state};
}

}  // namespace mamba_aot::cpu
