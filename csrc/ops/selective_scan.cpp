// selective_scan on CUDA: check, allocate, pick a variant, launch. The kernels are
// csrc/kernels/selective_scan.py.
#include "ops/selective_scan.h"

#include <algorithm>

#include "generated/selective_scan.gen.h"
#include "ops/launch_arguments.h"

namespace mamba_aot::cuda {
namespace {

using generated::SelectiveScanBwd;
using generated::SelectiveScanFwd;

// Bits of the kernels' `flags`, the same as in csrc/kernels/selective_scan.py.
enum Flag : int32_t {
  kSoftplus = 1,
  kHasD = 2,
  kHasZ = 4,
  kHasBias = 8,
  kHasGate = 16,
  kHasState = 32,
  kSaveChunks = 64,
  kZoh = 128,
};

// Rows of B, C and the gate are padded to whole tiles, so that kernels load them without a mask.
constexpr int64_t kRowMultiple = 128;
// Partial sums of the backward may take this much memory, or as much as u does where that is more.
constexpr int64_t kPartialBytes = int64_t{32} << 20;
// A launch adds up at most this many chunks in one fp32 number; more would cost digits.
constexpr int64_t kChunksInOneSum = 64;

int64_t round_up(int64_t x, int64_t multiple) { return (x + multiple - 1) / multiple * multiple; }
int64_t ceil_div(int64_t x, int64_t y) { return (x + y - 1) / y; }

// B, C ([batch, groups, state, length(, 2)]) or a gate ([batch, state, length]) as fp32 rows along time.
Tensor pack_rows(const Tensor& x, bool complex, int64_t padded_length) {
  Tensor rows = complex ? torch::stable::transpose(x, 3, 4) : x;
  const int64_t last = rows.dim() - 1, length = rows.size(last);
  std::array<int64_t, 5> sizes{};
  for (int64_t i = 0; i < last; ++i) sizes[i] = rows.size(i);
  sizes[last] = padded_length;
  const torch::headeronly::IntHeaderOnlyArrayRef shape{sizes.data(), static_cast<size_t>(rows.dim())};
  Tensor packed = length == padded_length ? torch::stable::new_empty(x, shape, ScalarType::Float)
                                          : torch::stable::new_zeros(x, shape, ScalarType::Float);
  Tensor inside = torch::stable::narrow(packed, last, 0, length);
  torch::stable::copy_(inside, rows);
  return packed;
}

// The other way, for a gradient: drop the padding, give it the input's layout and dtype.
Tensor unpack_rows(Tensor packed, const Tensor& input, bool complex) {
  const int64_t last = packed.dim() - 1;
  Tensor rows = torch::stable::narrow(packed, last, 0, complex ? input.size(3) : input.size(last));
  return gradient_of(input, complex ? torch::stable::transpose(rows, 3, 4) : rows);
}

// fp32 [launches, batch, ...], summed over the first two.
Tensor sum_of_sums(const Tensor& rows) {
  const int64_t over[] = {0, 1};
  return torch::stable::sum(rows, over);
}

// fp32 [launches, batch, groups, padded channels of a group], summed over the first two, without the padding.
Tensor by_channel_of_blocks(const Tensor& rows, const SelectiveScanSizes& s) {
  Tensor sums = sum_of_sums(rows);
  return torch::stable::reshape(torch::stable::narrow(sums, 1, 0, s.channels / s.groups), {s.channels});
}

// The gradient of A ([channels, state(, 2)]) from the kernel's [state * parts, channels].
Tensor gradient_of_rates(const Tensor& rows, const Tensor& A, const SelectiveScanSizes& s) {
  Tensor by_channel = torch::stable::transpose(rows, 0, 1);
  if (!s.complex) return gradient_of(A, by_channel);
  Tensor pairs = torch::stable::reshape(by_channel, {s.channels, s.state, 2});
  return gradient_of(A, pairs);
}

void check_limits(const SelectiveScanSizes& s) {
  constexpr int64_t kLimit = INT32_MAX - kRowMultiple;
  check(s.length < kLimit && s.channels < kLimit && s.state < kLimit,
        "selective_scan_fn: on CUDA each of channels, state and length must be below 2^31 - 128, got ",
        s.channels, ", ", s.state, " and ", s.length,
        ". Split the sequence and carry the state with initial_state.");
}

// How many chunks one launch of the backward takes: as many as the memory for its planes of partial sums
// allows.
int64_t chunks_in_a_launch(const SelectiveScanSizes& s, const Tensor& u, int64_t blocks, bool gate) {
  const int64_t floats_a_step = blocks * s.batch * s.state * (2 * s.parts() + (gate ? 1 : 0));
  const int64_t u_bytes = s.batch * s.channels * s.length * (u.scalar_type() == ScalarType::Float ? 4 : 2);
  const int64_t chunks = std::max(kPartialBytes, u_bytes) / std::max<int64_t>(1, floats_a_step * 4 * kChunk);
  return std::clamp<int64_t>(chunks, 1, std::clamp<int64_t>(s.chunks(), 1, kChunksInOneSum));
}

// What both directions hand to their kernel besides their own tensors.
struct Inputs {
  Tensor A, B, C;
  OptionalTensor D, bias, gate;
  int64_t padded_length;
  int32_t flags;

  Inputs(const SelectiveScanSizes& s, const Tensor& A_, const Tensor& B_, const Tensor& C_,
         const OptionalTensor& D_, const OptionalTensor& z, const OptionalTensor& delta_bias,
         const OptionalTensor& decay_gate, bool delta_softplus, bool zoh)
      : A(to_state_dtype(A_, ScalarType::Float)),
        B(pack_rows(B_, s.complex, round_up(s.length, kRowMultiple))),
        C(pack_rows(C_, s.complex, round_up(s.length, kRowMultiple))),
        D(to_state_dtype(D_, ScalarType::Float)),
        bias(to_state_dtype(delta_bias, ScalarType::Float)),
        padded_length(round_up(s.length, kRowMultiple)),
        flags((delta_softplus ? kSoftplus : 0) | (D_ ? kHasD : 0) | (z ? kHasZ : 0) |
              (delta_bias ? kHasBias : 0) | (decay_gate ? kHasGate : 0) | (zoh ? kZoh : 0)) {
    if (decay_gate) gate = pack_rows(*decay_gate, false, padded_length);
  }

  bool general() const { return (flags & (kHasGate | kZoh)) != 0; }
};

}  // namespace

SelectiveScanOutputs selective_scan_fwd(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C,
                                        OptionalTensor D, OptionalTensor z, OptionalTensor delta_bias,
                                        OptionalTensor decay_gate, OptionalTensor initial_state,
                                        bool delta_softplus, bool zoh, bool save_states) {
  const SelectiveScanSizes s =
      check_selective_scan(u, delta, A, B, C, D, z, delta_bias, decay_gate, initial_state);
  check_limits(s);
  Tensor out = layout_like(u);
  Tensor last_state = s.complex ? empty_on(u, {s.batch, s.channels, s.state, 2}, ScalarType::Float)
                                : empty_on(u, {s.batch, s.channels, s.state}, ScalarType::Float);
  Tensor chunk_states =
      save_states ? empty_on(u, {s.batch, s.chunks(), s.state * s.parts(), s.channels}, ScalarType::Float)
                  : empty_on(u, {0}, ScalarType::Float);
  if (s.empty()) {
    if (initial_state) {
      torch::stable::copy_(last_state, *initial_state);
    } else {
      torch::stable::zero_(last_state);
    }
    return {out, last_state, chunk_states};
  }

  const Inputs in(s, A, B, C, D, z, delta_bias, decay_gate, delta_softplus, zoh);
  const OptionalTensor state = to_state_dtype(initial_state, ScalarType::Float);
  Tensor carry = empty_on(u, {s.batch, s.state * s.parts(), s.channels}, ScalarType::Float);
  const Strides us(u), ds(delta), zs(z), os(out);
  const bool plain = !s.complex && !in.general();
  const bool rows = plain && us.rows() && ds.rows() && zs.rows() && os.rows() && s.length % 16 == 0;
  const SelectiveScanFwd::Key key{dtype_of(u), s.complex, in.general(),
                                  rows ? SelectiveScanFwd::Layout::seq : SelectiveScanFwd::Layout::strided};
  const auto& config = SelectiveScanFwd::pick(key, {s.batch, s.channels, s.length});
  SelectiveScanFwd::Args args{};
  args.u = pointer(u);
  args.delta = pointer(delta);
  args.z = pointer(z);
  args.out = pointer(out);
  args.A = pointer(in.A);
  args.B = pointer(in.B);
  args.C = pointer(in.C);
  args.gate = pointer(in.gate);
  args.D_skip = pointer(in.D);
  args.delta_bias = pointer(in.bias);
  args.initial_state = pointer(state);
  args.last_state = pointer(last_state);
  args.carry = pointer(carry);
  args.chunk_states = pointer(chunk_states);
  args.D = static_cast<int32_t>(s.channels);
  args.L = static_cast<int32_t>(s.length);
  args.N = static_cast<int32_t>(s.state);
  args.groups = static_cast<int32_t>(s.groups);
  args.padded_length = in.padded_length;
  us.put(args.u_batch, args.u_channel, args.u_time);
  ds.put(args.delta_batch, args.delta_channel, args.delta_time);
  zs.put(args.z_batch, args.z_channel, args.z_time);
  os.put(args.out_batch, args.out_channel, args.out_time);
  args.flags = in.flags | (state ? kHasState : 0) | (save_states ? kSaveChunks : 0);
  const int64_t blocks = s.groups * ceil_div(s.channels / s.groups, config.CHANNELS);
  SelectiveScanFwd::launch(key, config, u.get_device_index(), s.batch * blocks, args);
  if (s.state == 0) torch::stable::zero_(last_state);
  return {out, last_state, chunk_states};
}

SelectiveScanGradients selective_scan_bwd(Tensor dout, OptionalTensor dlast_state, Tensor u, Tensor delta,
                                          Tensor A, Tensor B, Tensor C, OptionalTensor D, OptionalTensor z,
                                          OptionalTensor delta_bias, OptionalTensor decay_gate,
                                          Tensor chunk_states, bool delta_softplus, bool zoh) {
  const SelectiveScanSizes s = check_selective_scan_backward(dout, dlast_state, u, delta, A, B, C, D, z,
                                                             delta_bias, decay_gate, chunk_states);
  check_limits(s);
  constexpr ScalarType kFloat = ScalarType::Float;
  Tensor du = layout_like(u), ddelta = layout_like(delta);
  Tensor dz = z ? layout_like(*z) : absent_on(u);
  Tensor dinitial_state = s.complex ? empty_on(u, {s.batch, s.channels, s.state, 2}, kFloat)
                                    : empty_on(u, {s.batch, s.channels, s.state}, kFloat);
  const Inputs in(s, A, B, C, D, z, delta_bias, decay_gate, delta_softplus, zoh);
  const Strides gs(dout), us(u), ds(delta), zs(z), dus(du), dds(ddelta),
      dzs(z ? OptionalTensor(dz) : std::nullopt);
  const bool plain = !s.complex && !in.general();
  const bool rows = plain && gs.rows() && us.rows() && ds.rows() && zs.rows() && dus.rows() && dds.rows() &&
                    dzs.rows() && s.length % 16 == 0;
  const SelectiveScanBwd::Key key{dtype_of(u), s.complex, in.general(),
                                  rows ? SelectiveScanBwd::Layout::seq : SelectiveScanBwd::Layout::strided};
  const auto& config = SelectiveScanBwd::pick(key, {s.batch, s.channels, s.length});
  const int64_t blocks_per_group = ceil_div(s.channels / s.groups, config.CHANNELS);
  const int64_t blocks = s.groups * blocks_per_group;
  const int64_t chunks_a_launch = chunks_in_a_launch(s, u, blocks, in.gate.has_value());
  const int64_t launches = ceil_div(s.chunks(), chunks_a_launch);
  // Written whole by the kernels, unless there is nothing to launch.
  const auto sums = [&](Dims sizes) {
    return s.empty() ? torch::stable::new_zeros(in.A, {sizes.begin(), sizes.size()})
                     : empty_on(u, sizes, kFloat);
  };
  Tensor dA = sums({launches, s.batch, s.state * s.parts(), s.channels});
  // Blocks are whole in these rows, also where a group's channels end inside one.
  const int64_t padded_channels = blocks_per_group * config.CHANNELS;
  Tensor dD = sums({launches, s.batch, s.groups, padded_channels});
  Tensor dbias = sums({launches, s.batch, s.groups, padded_channels});
  Tensor dBC = sums({2, s.batch, s.groups, s.state * s.parts(), in.padded_length});
  Tensor dgate = sums({s.batch, in.gate ? s.state : 0, in.padded_length});

  if (s.empty()) {
    if (dlast_state) {
      torch::stable::copy_(dinitial_state, *dlast_state);
    } else {
      torch::stable::zero_(dinitial_state);
    }
  } else {
    // Channels lie last in the kernel's carry, first in a state.
    Tensor carry = empty_on(u, {s.batch, s.state * s.parts(), s.channels}, kFloat);
    Tensor adjoint = torch::stable::transpose(carry, 1, 2);
    const auto by_channel = [&](const Tensor& state) {
      return s.complex ? torch::stable::view(state, {s.batch, s.channels, s.state * 2}) : state;
    };
    if (dlast_state) {
      const Tensor last = torch::stable::contiguous(*dlast_state);
      torch::stable::copy_(adjoint, by_channel(last));
    }
    const int64_t partial_length = chunks_a_launch * kChunk;
    Tensor dBC_planes =
        empty_on(u, {blocks_per_group, 2, s.batch, s.groups, s.state * s.parts(), partial_length}, kFloat);
    Tensor dgate_planes = empty_on(u, {blocks, s.batch, in.gate ? s.state : 0, partial_length}, kFloat);

    SelectiveScanBwd::Args args{};
    args.dout = pointer(dout);
    args.u = pointer(u);
    args.delta = pointer(delta);
    args.z = pointer(z);
    args.A = pointer(in.A);
    args.B = pointer(in.B);
    args.C = pointer(in.C);
    args.gate = pointer(in.gate);
    args.D_skip = pointer(in.D);
    args.delta_bias = pointer(in.bias);
    args.chunk_states = pointer(chunk_states);
    args.du = pointer(du);
    args.ddelta = pointer(ddelta);
    args.dz = pointer(dz);
    args.dB = pointer(dBC_planes);
    args.dC = static_cast<float*>(dBC_planes.data_ptr()) + dBC_planes.stride(1);
    args.dgate = pointer(dgate_planes);
    args.carry = pointer(carry);
    args.D = static_cast<int32_t>(s.channels);
    args.L = static_cast<int32_t>(s.length);
    args.N = static_cast<int32_t>(s.state);
    args.groups = static_cast<int32_t>(s.groups);
    args.padded_length = in.padded_length;
    args.partial_length = partial_length;
    gs.put(args.dout_batch, args.dout_channel, args.dout_time);
    us.put(args.u_batch, args.u_channel, args.u_time);
    ds.put(args.delta_batch, args.delta_channel, args.delta_time);
    zs.put(args.z_batch, args.z_channel, args.z_time);
    dus.put(args.du_batch, args.du_channel, args.du_time);
    dds.put(args.ddelta_batch, args.ddelta_channel, args.ddelta_time);
    dzs.put(args.dz_batch, args.dz_channel, args.dz_time);
    args.flags = in.flags | (dlast_state ? kHasState : 0);

    const int64_t over_planes[] = {0};
    const auto add_planes = [&](Tensor& planes, Tensor& total, int64_t begin, int64_t steps) {
      const int64_t axis = planes.dim() - 1;
      Tensor target = torch::stable::narrow(total, axis - 1, begin, steps);
      Tensor used = torch::stable::narrow(planes, axis, 0, steps);
      torch::stable::sum_out(target, used, over_planes);
    };
    const auto row_of = [](const Tensor& rows, int64_t launch) {
      return static_cast<float*>(rows.data_ptr()) + launch * rows.stride(0);
    };
    int64_t launch = 0;
    for (int64_t end = s.chunks(); end > 0; ++launch) {
      const int64_t begin = std::max<int64_t>(0, end - chunks_a_launch);
      args.dA = row_of(dA, launch);
      args.dD = row_of(dD, launch);
      args.ddelta_bias = row_of(dbias, launch);
      args.chunk_begin = static_cast<int32_t>(begin);
      args.chunk_end = static_cast<int32_t>(end);
      SelectiveScanBwd::launch(key, config, u.get_device_index(), s.batch * blocks, args);
      const int64_t steps = (end - begin) * kChunk;
      add_planes(dBC_planes, dBC, begin * kChunk, steps);
      if (in.gate) add_planes(dgate_planes, dgate, begin * kChunk, steps);
      end = begin;
    }
    Tensor initial = by_channel(dinitial_state);
    torch::stable::copy_(initial, adjoint);
  }

  const auto matrix = [&](int64_t which, const Tensor& input) {
    Tensor rows = torch::stable::select(dBC, 0, which);
    Tensor shaped =
        s.complex ? torch::stable::view(rows, {s.batch, s.groups, s.state, 2, in.padded_length}) : rows;
    return unpack_rows(shaped, input, s.complex);
  };
  return {du,
          ddelta,
          gradient_of_rates(sum_of_sums(dA), A, s),
          matrix(0, B),
          matrix(1, C),
          D ? gradient_of(*D, by_channel_of_blocks(dD, s)) : absent_on(u),
          dz,
          delta_bias ? gradient_of(*delta_bias, by_channel_of_blocks(dbias, s)) : absent_on(u),
          decay_gate ? unpack_rows(dgate, *decay_gate, false) : absent_on(u),
          dinitial_state};
}

}  // namespace mamba_aot::cuda
