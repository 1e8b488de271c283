// linear_recurrence on CUDA: check, allocate, pick a variant, launch. The kernels are
// csrc/kernels/linear_recurrence.py.
#include "ops/linear_recurrence.h"

#include "generated/linear_recurrence.gen.h"
#include "ops/launch_arguments.h"
#include "runtime/batch_invariant.h"

namespace mamba_aot::cuda {
namespace {

using generated::LinearRecurrenceBwd;
using generated::LinearRecurrenceFwd;

// Bits of the kernels' `flags`, the same as in csrc/kernels/_recurrence_tiles.py.
enum Flag : int32_t {
  kReverse = 1,
  kHasState = 2,
  kSaveChunks = 4,
};

void check_limits(const LinearRecurrenceSizes& s) {
  constexpr int64_t kLimit = INT32_MAX - 1024;
  check(s.length < kLimit && s.rows < kLimit,
        "linear_recurrence: on CUDA the length and the number of rows must each be below 2^31 - 1024, got ",
        s.length, " and ", s.rows, ". Split the sequence and carry the state with initial_state.");
}

// Contiguous along time, each row on a 16-element boundary: what the "seq" variants are compiled for.
bool is_row_wise(const Tensor& t, const int64_t (&stride)[4]) {
  return stride[3] == 1 && reinterpret_cast<uintptr_t>(t.data_ptr()) % 16 == 0 && stride[0] % 16 == 0 &&
         stride[1] % 16 == 0 && stride[2] % 16 == 0;
}

template <class Kernel>
typename Kernel::Key key_of(const Tensor& values, const LinearRecurrenceSizes& s, bool row_wise) {
  using Layout = typename Kernel::Layout;
  const bool rows = row_wise && !s.complex && s.length % 16 == 0;
  return {storage_of(values), s.complex, rows ? Layout::seq : Layout::strided};
}

template <class Args>
void put_sizes(Args& args, const LinearRecurrenceSizes& s, const RecurrenceRows& rows,
               const int64_t (&state)[4], int32_t flags) {
  args.rows = static_cast<int32_t>(s.rows);
  args.L = static_cast<int32_t>(s.length);
  args.Q = static_cast<int32_t>(rows.size[1]);
  args.R = static_cast<int32_t>(rows.size[2]);
  args.state_p = state[0];
  args.state_q = state[1];
  args.state_r = state[2];
  args.flags = flags;
}

void put(const int64_t (&stride)[4], int64_t& p, int64_t& q, int64_t& r, int64_t& time) {
  p = stride[0];
  q = stride[1];
  r = stride[2];
  time = stride[3];
}

}  // namespace

LinearRecurrenceOutputs linear_recurrence_fwd(Tensor a, Tensor b, OptionalTensor initial_state, bool complex,
                                              bool reverse, bool save_states) {
  const LinearRecurrenceSizes s = check_linear_recurrence(a, b, initial_state, complex, save_states);
  check_limits(s);
  Tensor h = ordered_like(b, complex);
  Tensor last_state = states_on(b, s.shape(-1, -1));
  Tensor chunk_states = states_on(b, save_states ? s.shape(s.chunks(), -1) : std::vector<int64_t>{0});
  if (s.empty()) {
    pass_state_through(last_state, initial_state);
    return {h, last_state, chunk_states};
  }
  const OptionalTensor state = to_state_dtype(initial_state, ScalarType::Float);
  const RecurrenceRows rows(s, {&h, &a, &b, &last_state});
  const auto& strides = rows.stride;
  const bool row_wise =
      is_row_wise(h, strides[0]) && is_row_wise(a, strides[1]) && is_row_wise(b, strides[2]);
  const auto key = key_of<LinearRecurrenceFwd>(b, s, row_wise);
  const auto& config = LinearRecurrenceFwd::pick(key, {batch_invariant() ? 1 : s.rows, b.get_device_index()});
  LinearRecurrenceFwd::Args args{};
  args.a = pointer(a);
  args.b = pointer(b);
  args.h = pointer(h);
  args.initial_state = pointer(state);
  args.last_state = pointer(last_state);
  args.chunk_states = pointer(chunk_states);
  put(strides[0], args.h_p, args.h_q, args.h_r, args.h_time);
  put(strides[1], args.a_p, args.a_q, args.a_r, args.a_time);
  put(strides[2], args.b_p, args.b_q, args.b_r, args.b_time);
  put_sizes(
      args, s, rows, strides[3],
      format_flag(b) | (reverse ? kReverse : 0) | (state ? kHasState : 0) | (save_states ? kSaveChunks : 0));
  LinearRecurrenceFwd::launch(key, config, b.get_device_index(), ceil_div(s.rows, config.ROWS), args);
  return {h, last_state, chunk_states};
}

LinearRecurrenceOutputs linear_recurrence_bwd(Tensor dh, OptionalTensor dlast_state, Tensor a,
                                              OptionalTensor b, OptionalTensor h,
                                              OptionalTensor initial_state, OptionalTensor chunk_states,
                                              bool complex, bool reverse) {
  const LinearRecurrenceSizes s =
      check_linear_recurrence_backward(dh, dlast_state, a, b, h, initial_state, chunk_states, complex);
  check_limits(s);
  const Tensor& values = detail::is_half(a) ? *b : *h;
  Tensor da = ordered_like(a, complex), db = ordered_like(values, complex);
  Tensor dinitial_state = states_on(a, s.shape(-1, -1));
  if (s.empty()) {
    pass_state_through(dinitial_state, dlast_state);
    return {da, db, dinitial_state};
  }
  const OptionalTensor state = to_state_dtype(initial_state, ScalarType::Float);
  const OptionalTensor last = to_state_dtype(dlast_state, ScalarType::Float);
  const RecurrenceRows rows(s, {&db, &da, &a, &values, &dh, &dinitial_state});
  const auto& strides = rows.stride;
  const bool row_wise = is_row_wise(db, strides[0]) && is_row_wise(da, strides[1]) &&
                        is_row_wise(a, strides[2]) && is_row_wise(values, strides[3]) &&
                        is_row_wise(dh, strides[4]);
  const auto key = key_of<LinearRecurrenceBwd>(values, s, row_wise);
  const auto& config = LinearRecurrenceBwd::pick(key, {s.rows, a.get_device_index()});
  LinearRecurrenceBwd::Args args{};
  args.dh = pointer(dh);
  args.a = pointer(a);
  args.values = pointer(values);
  args.initial_state = pointer(state);
  args.chunk_states = pointer(chunk_states);
  args.dlast_state = pointer(last);
  args.da = pointer(da);
  args.db = pointer(db);
  args.dinitial_state = pointer(dinitial_state);
  put(strides[0], args.db_p, args.db_q, args.db_r, args.db_time);
  put(strides[1], args.da_p, args.da_q, args.da_r, args.da_time);
  put(strides[2], args.a_p, args.a_q, args.a_r, args.a_time);
  put(strides[3], args.values_p, args.values_q, args.values_r, args.values_time);
  put(strides[4], args.dh_p, args.dh_q, args.dh_r, args.dh_time);
  put_sizes(args, s, rows, strides[5],
            format_flag(values) | (reverse ? kReverse : 0) | (state ? kHasState : 0));
  args.has_last_state = last ? 1 : 0;
  LinearRecurrenceBwd::launch(key, config, a.get_device_index(), ceil_div(s.rows, config.ROWS), args);
  return {da, db, dinitial_state};
}

}  // namespace mamba_aot::cuda
