// The small kernels around those of selective_scan: before the backward, the adjoints that spans of time pass
// on; after it, the sums of what its programs wrote; after both, zeros where no sequence is.
#pragma once

#include "generated/selective_scan.gen.h"
#include "ops/launch_arguments.h"
#include "ops/selective_scan.h"

namespace mamba_aot::cuda {

// Walks every span but the first of a launch of the backward, in so many pieces, from an adjoint of zero.
inline void launch_adjoint(const generated::SelectiveScanPlainBwd::Args& of, const SelectiveScanSizes& s,
                           const Tensor& u, bool rows, int32_t pieces) {
  using Kernel = generated::SelectiveScanAdjoint;
  const Kernel::Key key{storage_of(u), rows ? Kernel::Layout::seq : Kernel::Layout::strided, s.complex,
                        s.packed()};
  const auto& config = Kernel::pick(key, {});
  Kernel::Args args{};
  args.dout = of.dout;
  args.delta = of.delta;
  args.z = of.z;
  args.A = of.A;
  args.C = of.C;
  args.gate = of.gate;
  args.delta_bias = of.delta_bias;
  args.ends = of.span_ends;
  args.elapsed_times = of.span_times;
  args.span_gates = of.span_gates;
  args.runs = of.runs;
  args.D = of.D;
  args.L = of.L;
  args.N = of.N;
  args.groups = of.groups;
  args.padded_length = of.padded_length;
  args.chunk_begin = of.chunk_begin;
  args.chunk_end = of.chunk_end;
  args.spans = of.spans;
  args.pieces = pieces;
  args.dout_batch = of.dout_batch;
  args.dout_channel = of.dout_channel;
  args.dout_time = of.dout_time;
  args.delta_batch = of.delta_batch;
  args.delta_channel = of.delta_channel;
  args.delta_time = of.delta_time;
  args.z_batch = of.z_batch;
  args.z_channel = of.z_channel;
  args.z_time = of.z_time;
  args.flags = of.flags;
  const int64_t blocks = s.groups * ceil_div(s.channels / s.groups, config.CHANNELS);
  Kernel::launch(key, config, u.get_device_index(), (of.spans - 1) * pieces * s.rows * blocks, args);
}

// Writes chunks [begin, end) of `first` and `second`, [rows..., length(, parts)] each, from `planes` [count,
// 1 or 2, rows..., parts, partial length] of a launch that begins with them. Nobody wants what is not given.
inline void add_planes(const Tensor& planes, const OptionalTensor& first, const OptionalTensor& second,
                       int64_t rows, int64_t parts, const SelectiveScanSizes& s, int64_t begin, int64_t end) {
  using Kernel = generated::SelectiveScanSums;
  const int64_t count = planes.size(0), plane_size = planes.stride(0);
  if (planes.numel() == 0) return;
  const int64_t partial_length = planes.size(planes.dim() - 1);
  Kernel::Args args{};
  args.planes = pointer(planes);
  args.first = pointer(first);
  args.second = pointer(second);
  args.count = static_cast<int32_t>(count);
  args.plane_size = plane_size;
  args.partial_length = partial_length;
  args.rows = static_cast<int32_t>(rows);
  args.parts = static_cast<int32_t>(parts);
  args.L = static_cast<int32_t>(s.length);
  args.begin = static_cast<int32_t>(begin * kChunk);
  args.flags = code_of(first) | code_of(second) << 2;
  const auto& config = Kernel::pick({}, {});
  const int64_t blocks = (end - begin) * kChunk / config.STEPS;
  args.blocks = static_cast<int32_t>(blocks);
  Kernel::launch({}, config, planes.get_device_index(), plane_size / partial_length * blocks, args);
}

// Zeros at the steps of x [rows, length] that sequences by cu_seqlens leave out.
inline void zero_outside(const Tensor& x, int64_t rows, int64_t row_stride, int64_t time_stride,
                         const Tensor& cu_seqlens, const SelectiveScanSizes& s) {
  using Kernel = generated::SelectiveScanOutside;
  if (rows == 0) return;
  Kernel::Args args{};
  args.x = pointer(x);
  args.ends = pointer(cu_seqlens);
  args.sequences = static_cast<int32_t>(s.rows);
  args.L = static_cast<int32_t>(s.length);
  args.rows = static_cast<int32_t>(rows);
  args.row_stride = row_stride;
  args.time_stride = time_stride;
  const Kernel::Key key{storage_of(x)};
  const auto& config = Kernel::pick(key, {});
  Kernel::launch(key, config, x.get_device_index(), ceil_div(rows, config.ROWS), args);
}

// Of a sequence [1, channels, length], or rows [1..., length(, parts)] side by side.
inline void zero_outside(const Tensor& sequence, const Tensor& cu_seqlens, const SelectiveScanSizes& s) {
  if (sequence.numel() == 0) return;
  zero_outside(sequence, s.channels, sequence.stride(1), sequence.stride(2), cu_seqlens, s);
}

inline void zero_rows_outside(const Tensor& rows, int64_t parts, const Tensor& cu_seqlens,
                              const SelectiveScanSizes& s) {
  if (rows.numel() == 0) return;
  const int64_t row_size = s.length * parts, count = rows.numel() / row_size;
  Tensor all = torch::stable::view(rows, {count, s.length, parts});
  for (int64_t part = 0; part < parts; ++part) {
    zero_outside(torch::stable::select(all, 2, part), count, row_size, parts, cu_seqlens, s);
  }
}

// B or C with zeros at those steps: in a row with others they must not hold what spreads.
inline Tensor inside_alone(const Tensor& weight, const Tensor& cu_seqlens, const SelectiveScanSizes& s) {
  Tensor copy = torch::stable::new_empty(weight, weight.sizes());
  torch::stable::copy_(copy, weight);
  zero_rows_outside(copy, 1, cu_seqlens, s);
  return copy;
}

}  // namespace mamba_aot::cuda
