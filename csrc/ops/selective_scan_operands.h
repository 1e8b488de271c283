// What the CUDA kernels of selective_scan take of its arguments, in both directions.
#pragma once

#include <initializer_list>

#include "ops/launch_arguments.h"
#include "ops/selective_scan.h"
#include "ops/selective_scan_pack.h"

namespace mamba_aot::cuda {

// The plain forward kernels take 16 states at a time; so few are faster one by one, as the general one does.
inline constexpr int64_t kFewStates = 4;

// Bits of the kernels' `flags`, the same as in csrc/kernels/_scan_operands.py and _scan_packing.py.
enum Flag : int32_t {
  kSoftplus = 1,
  kHasD = 2,
  kHasZ = 4,
  kHasBias = 8,
  kHasGate = 16,
  kHasState = 32,
  kSaveChunks = 64,
  kZoh = 128,
  kByEnds = 256,
  kByIndex = 512,
  kConstantB = 1024,
  kConstantC = 2048,
  kPerHead = 4096,
  kSpans = 8192,
  kNextFillsGpu = 16384,
};

// What the kernels are told in a bit each.
inline int32_t flags_of(const SelectiveScanSizes& s, const SelectiveScanInputs& in, bool delta_softplus,
                        bool zoh) {
  return format_flag(in.u) | (delta_softplus ? kSoftplus : 0) | (in.D ? kHasD : 0) | (in.z ? kHasZ : 0) |
         (in.delta_bias ? kHasBias : 0) | (in.decay_gate ? kHasGate : 0) | (zoh ? kZoh : 0) |
         (s.constant_B ? kConstantB : 0) | (s.constant_C ? kConstantC : 0) |
         (s.heads != s.channels ? kPerHead : 0) | (s.packing == Packing::by_index ? kByIndex : 0) |
         (s.packing == Packing::by_ends ? kByEnds : 0);
}

// Whether only the kernels that can do all of it can do this. Complex scans in fp32 or of packed sequences
// run too seldom to be worth images without options; of the others complex ones take a gate and ZOH, too.
inline bool is_general(const SelectiveScanSizes& s, const SelectiveScanInputs& in, int32_t flags) {
  constexpr int32_t kOptions = kConstantB | kConstantC | kPerHead;
  if ((flags & kOptions) != 0) return true;
  return s.complex ? s.packed() || type_of(in.u) == ScalarType::Float : (flags & (kHasGate | kZoh)) != 0;
}

// What both directions hand to their kernel besides their own tensors.
struct Operands {
  Tensor A;
  int64_t padded_length;
  // Where runs of steps start and where they end, by seq_idx; or cu_seqlens.
  OptionalTensor starts, ends, sequences;
  PackedWeights weights;
  OptionalTensor D, bias, gate;
  int32_t flags;
  // Whether it takes the kernels that can do all of this.
  bool general;

  Operands(const SelectiveScanSizes& s, const SelectiveScanInputs& in, const OptionalTensor& runs,
           const OptionalTensor& cu_seqlens, bool delta_softplus, bool zoh, bool pairs = false)
      : A(to_state_dtype(in.A, ScalarType::Float)),
        padded_length(round_up(s.length, kRowMultiple)),
        starts(runs ? OptionalTensor(torch::stable::select(*runs, 0, 0)) : std::nullopt),
        ends(runs ? OptionalTensor(torch::stable::select(*runs, 0, 1)) : std::nullopt),
        sequences(cu_seqlens ? OptionalTensor(torch::stable::contiguous(*cu_seqlens)) : std::nullopt),
        weights(in.B, in.C, s, padded_length, pairs),
        D(to_state_dtype(in.D, ScalarType::Float)),
        bias(to_state_dtype(in.delta_bias, ScalarType::Float)),
        flags(flags_of(s, in, delta_softplus, zoh)),
        general(is_general(s, in, flags)) {
    // Behind the last step it lets the state pass.
    if (in.decay_gate) gate = pack_rows(*in.decay_gate, false, padded_length, 1.0);
  }

  bool packed() const { return (flags & (kByIndex | kByEnds)) != 0; }

  // What says where sequences lie: cu_seqlens, or one side of the runs of seq_idx.
  void* sequences_or(const OptionalTensor& side) const { return pointer(sequences ? sequences : side); }
};

// The arguments all kernels have in common but for B and C.
template <class Args>
void put_sequences(Args& args, const SelectiveScanSizes& s, const SelectiveScanInputs& in,
                   const Operands& with) {
  args.u = pointer(in.u);
  args.delta = pointer(in.delta);
  args.z = pointer(in.z);
  args.A = pointer(with.A);
  args.D_skip = pointer(with.D);
  args.delta_bias = pointer(with.bias);
  args.D = static_cast<int32_t>(s.channels);
  args.L = static_cast<int32_t>(s.length);
  args.N = static_cast<int32_t>(s.state);
  args.groups = static_cast<int32_t>(s.groups);
  args.padded_length = with.padded_length;
  Strides(in.u).put(args.u_batch, args.u_channel, args.u_time);
  Strides(in.delta).put(args.delta_batch, args.delta_channel, args.delta_time);
  Strides(in.z).put(args.z_batch, args.z_channel, args.z_time);
}

// And with them.
template <class Args>
void put_common(Args& args, const SelectiveScanSizes& s, const SelectiveScanInputs& in,
                const Operands& with) {
  put_sequences(args, s, in, with);
  args.B = with.weights.B();
  args.C = with.weights.C();
  args.gate = pointer(with.gate);
}

// Those that only kernels with all options have.
template <class Args>
void put_general(Args& args, const SelectiveScanSizes& s, const Operands& with, const OptionalTensor& runs) {
  args.runs = with.sequences_or(runs);
  args.head_channels = static_cast<int32_t>(s.channels / s.heads);
}

// Whether kernels can take them as contiguous rows.
inline bool in_rows(const SelectiveScanSizes& s, std::initializer_list<Strides> tensors) {
  bool rows = s.length % 16 == 0;
  for (const Strides& t : tensors) rows = rows && t.rows();
  return rows;
}

}  // namespace mamba_aot::cuda
