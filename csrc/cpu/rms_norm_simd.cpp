// RMSNorm and LayerNorm of rows, forward and backward. Compiled once per instruction set.
// Channels are the lanes; what a row is made of passes through tiles that stay in the cache.
#include "cpu/rms_norm_plan.h"
#include "cpu/tile.h"
#include "cpu/vector_math.h"

namespace mamba_aot::cpu::MAMBA_AOT_ISA {
namespace {

// One group of channels of one row, or of the parameters: `size` numbers, `stride` elements apart.
template <class S>
struct Span {
  int64_t size, full;
  int rest;

  explicit Span(int64_t count)
      : size(count), full(count / Simd<S>::kLanes), rest(static_cast<int>(count % Simd<S>::kLanes)) {}

  int64_t vectors() const { return full + (rest ? 1 : 0); }

  // Lanes behind the last number are 0.
  void load(const View& v, int64_t at, int64_t stride, Vec<S>* to) const {
    constexpr int kLanes = Simd<S>::kLanes;
    load_tile<S>(v, at, stride, stride * kLanes, kLanes, full, to);
    if (rest) load_tile<S>(v, at + full * kLanes * stride, stride, 0, rest, 1, to + full);
  }
  void store(const View& v, int64_t at, int64_t stride, const Vec<S>* from) const {
    constexpr int kLanes = Simd<S>::kLanes;
    store_tile<S>(v, at, stride, stride * kLanes, kLanes, full, from);
    if (rest) store_tile<S>(v, at + full * kLanes * stride, stride, 0, rest, 1, from + full);
  }
  // Sets the lanes behind the last number to 0.
  void cut(Vec<S>* tile) const {
    for (int i = rest; rest && i < Simd<S>::kLanes; ++i) tile[full][i] = 0;
  }
};

template <class S>
MAMBA_AOT_INLINE S sum_of(const StepSum<S>& sum) {
  const Vec<S> total = sum.total();
  S all = 0;
  for (int i = 0; i < Simd<S>::kLanes; ++i) all += total[i];
  return all;
}

// A row of the plan, and where the tensors have it.
template <class S>
struct Row {
  const NormPlan& plan;
  int64_t index, batch, row;

  Row(const NormPlan& p, int64_t i) : plan(p), index(i), batch(i / p.rows), row(i % p.rows) {}

  void load(const Span<S>& span, const View& v, int64_t channel, Vec<S>* to) const {
    span.load(v, batch * v.stride[0] + row * v.stride[1] + channel * v.stride[2], v.stride[2], to);
  }
  void store(const Span<S>& span, const View& v, int64_t channel, const Vec<S>* from) const {
    span.store(v, batch * v.stride[0] + row * v.stride[1] + channel * v.stride[2], v.stride[2], from);
  }
  // x, with the residual added to it, or the residual alone; `other` is overwritten.
  void load_total(const Span<S>& span, int64_t channel, Vec<S>* to, Vec<S>* other) const {
    load(span, plan.x.data ? plan.x : plan.residual, channel, to);
    if (!plan.x.data || !plan.residual.data) return;
    load(span, plan.residual, channel, other);
    for (int64_t i = 0; i < span.vectors(); ++i) to[i] = to[i] + other[i];
  }
  S& statistic(void* of, int64_t group) const { return static_cast<S*>(of)[index * plan.groups + group]; }
};

// weight, then bias (or zeros), padded to whole vectors per group.
template <class S>
void load_parameters(const NormPlan& plan, const Span<S>& span, Vec<S>* weight, Vec<S>* bias) {
  for (int64_t g = 0; g < plan.groups; ++g) {
    Vec<S>* offset = bias + g * span.vectors();
    span.load(flat_view<S>(plan.weight), g * span.size, 1, weight + g * span.vectors());
    for (int64_t i = 0; i < span.vectors(); ++i) offset[i] = Vec<S>{};
    if (plan.bias) span.load(flat_view<S>(plan.bias), g * span.size, 1, offset);
  }
}

template <class S>
void forward_group(const Row<S>& row, const Span<S>& span, int64_t group, const Vec<S>* weight,
                   const Vec<S>* bias, Vec<S>* u, Vec<S>* other) {
  const NormPlan& plan = row.plan;
  const int64_t channel = group * span.size, vectors = span.vectors();
  row.load_total(span, channel, u, other);
  if (plan.sum.data) row.store(span, plan.sum, channel, u);
  if (plan.z.data) row.load(span, plan.z, channel, other);
  if (plan.z.data && !plan.gate_last) {
    for (int64_t i = 0; i < vectors; ++i) u[i] = u[i] * Silu<S>(other[i]).value;
  }
  if (plan.centered) {
    StepSum<S> sum;
    for (int64_t i = 0; i < vectors; ++i) sum.add(i, u[i]);
    const S mean = sum_of<S>(sum) / static_cast<S>(span.size);
    row.statistic(plan.mean, group) = mean;
    for (int64_t i = 0; i < vectors; ++i) u[i] = u[i] - splat<S>(mean);
    span.cut(u);
  }
  StepSum<S> squares;
  for (int64_t i = 0; i < vectors; ++i) squares.add(i, u[i] * u[i]);
  const S variance = sum_of<S>(squares) / static_cast<S>(span.size);
  const S rstd = 1 / __builtin_sqrt(variance + static_cast<S>(plan.eps));
  row.statistic(plan.rstd, group) = rstd;
  for (int64_t i = 0; i < vectors; ++i) u[i] = fma(u[i] * splat<S>(rstd), weight[i], bias[i]);
  if (plan.z.data && plan.gate_last) {
    for (int64_t i = 0; i < vectors; ++i) u[i] = u[i] * Silu<S>(other[i]).value;
  }
  row.store(span, plan.out, channel, u);
}

// The tiles of one group that the backward works on.
template <class S>
struct Tiles {
  Vec<S>*total, *normed, *gate, *slope, *grad;

  Tiles(Vec<S>* memory, int64_t vectors)
      : total(memory),
        normed(memory + vectors),
        gate(memory + 2 * vectors),
        slope(memory + 3 * vectors),
        grad(memory + 4 * vectors) {}
  static constexpr int64_t kCount = 5;
};

// Adds to dweight and dbias what one group of one row has of them, and stores the gradients of the row.
template <class S>
void backward_group(const Row<S>& row, const Span<S>& span, int64_t group, const Vec<S>* weight,
                    const Vec<S>* bias, const Tiles<S>& t, Vec<S>* dweight, Vec<S>* dbias) {
  const NormPlan& plan = row.plan;
  const int64_t channel = group * span.size, vectors = span.vectors();
  const bool gated = plan.z.data, gate_first = gated && !plan.gate_last;
  row.load_total(span, channel, t.total, t.normed);
  if (gated) {
    row.load(span, plan.z, channel, t.gate);
    for (int64_t i = 0; i < vectors; ++i) {
      const Silu<S> silu(t.gate[i]);
      t.gate[i] = silu.value;
      t.slope[i] = silu.slope;
    }
  }
  const Vec<S> mean = splat<S>(plan.centered ? row.statistic(plan.mean, group) : 0);
  const S scale = row.statistic(plan.rstd, group);
  const Vec<S> rstd = splat<S>(scale);
  // Rounded before the mean, which is that of rounded numbers, is taken off: a loop of its own keeps the
  // compiler from making one operation of both.
  for (int64_t i = 0; i < vectors; ++i) t.normed[i] = gate_first ? t.total[i] * t.gate[i] : t.total[i];
  for (int64_t i = 0; i < vectors; ++i) t.normed[i] = (t.normed[i] - mean) * rstd;
  span.cut(t.normed);
  row.load(span, plan.dout, channel, t.grad);
  if (gated && plan.gate_last) {
    for (int64_t i = 0; i < vectors; ++i) {
      const Vec<S> y = fma(t.normed[i], weight[i], bias[i]);
      t.slope[i] = t.grad[i] * y * t.slope[i];
      t.grad[i] = t.grad[i] * t.gate[i];
    }
    row.store(span, plan.dz, channel, t.slope);
  }
  StepSum<S> along, whole;
  for (int64_t i = 0; i < vectors; ++i) {
    const Vec<S> g = t.grad[i];
    dweight[i] = fma(g, t.normed[i], dweight[i]);
    dbias[i] = dbias[i] + g;
    t.grad[i] = g * weight[i];
    along.add(i, t.grad[i] * t.normed[i]);
    whole.add(i, t.grad[i]);
  }
  if (span.size == 1) {
    // The gradient of one number is all along its norm, and what is left of it, 1 - normed^2, is eps rstd^2.
    t.grad[0] = t.grad[0] * splat<S>(plan.centered ? 0 : static_cast<S>(plan.eps) * scale * scale * scale);
  } else {
    const Vec<S> slope_along = splat<S>(sum_of<S>(along) / static_cast<S>(span.size));
    const Vec<S> slope_whole = splat<S>(plan.centered ? sum_of<S>(whole) / static_cast<S>(span.size) : 0);
    for (int64_t i = 0; i < vectors; ++i) {
      t.grad[i] = (t.grad[i] - fma(t.normed[i], slope_along, slope_whole)) * rstd;
    }
  }
  if (gate_first) {
    for (int64_t i = 0; i < vectors; ++i) {
      t.slope[i] = t.grad[i] * t.total[i] * t.slope[i];
      t.grad[i] = t.grad[i] * t.gate[i];
    }
    row.store(span, plan.dz, channel, t.slope);
  }
  if (plan.dsum.data) {
    row.load(span, plan.dsum, channel, t.total);
    for (int64_t i = 0; i < vectors; ++i) t.grad[i] = t.grad[i] + t.total[i];
  }
  row.store(span, plan.dx, channel, t.grad);
  if (plan.dresidual.data) row.store(span, plan.dresidual, channel, t.grad);
}

template <class S>
int64_t forward_rows(const NormPlan& plan, int64_t begin, int64_t end, void* scratch) {
  const Span<S> span(plan.group_size);
  const int64_t vectors = span.vectors();
  if (scratch) {
    Vec<S>* weight = static_cast<Vec<S>*>(scratch);
    Vec<S>* bias = weight + plan.groups * vectors;
    Vec<S>* tiles = bias + plan.groups * vectors;
    load_parameters<S>(plan, span, weight, bias);
    for (int64_t i = begin; i < end; ++i) {
      const Row<S> row(plan, i);
      for (int64_t g = 0; g < plan.groups; ++g) {
        forward_group<S>(row, span, g, weight + g * vectors, bias + g * vectors, tiles, tiles + vectors);
      }
    }
  }
  return (2 * plan.groups + 2) * vectors * kVectorBytes;
}

template <class S>
void backward_block(const NormPlan& plan, const Span<S>& span, int64_t block, Vec<S>* weight) {
  const int64_t vectors = span.vectors(), all = plan.groups * vectors;
  Vec<S>*bias = weight + all, *dweight = weight + 2 * all, *dbias = weight + 3 * all;
  const Tiles<S> tiles(weight + 4 * all, vectors);
  for (int64_t i = 0; i < all; ++i) dweight[i] = dbias[i] = Vec<S>{};
  const int64_t first = block * plan.block_rows, limit = first + plan.block_rows;
  const int64_t last = limit < plan.batch * plan.rows ? limit : plan.batch * plan.rows;
  for (int64_t i = first; i < last; ++i) {
    const Row<S> row(plan, i);
    for (int64_t g = 0; g < plan.groups; ++g) {
      const int64_t at = g * vectors;
      backward_group<S>(row, span, g, weight + at, bias + at, tiles, dweight + at, dbias + at);
    }
  }
  for (int64_t g = 0; g < plan.groups; ++g) {
    const int64_t at = block * plan.channels + g * span.size;
    span.store(flat_view<S>(plan.dweight), at, 1, dweight + g * vectors);
    if (plan.dbias) span.store(flat_view<S>(plan.dbias), at, 1, dbias + g * vectors);
  }
}

template <class S>
int64_t backward_blocks(const NormPlan& plan, int64_t begin, int64_t end, void* scratch) {
  const Span<S> span(plan.group_size);
  const int64_t all = plan.groups * span.vectors();
  if (scratch) {
    Vec<S>* memory = static_cast<Vec<S>*>(scratch);
    load_parameters<S>(plan, span, memory, memory + all);
    for (int64_t block = begin; block < end; ++block) backward_block<S>(plan, span, block, memory);
  }
  return (4 * all + Tiles<S>::kCount * span.vectors()) * kVectorBytes;
}

}  // namespace

// Each runs the items [begin, end) in `scratch`; without scratch, returns the bytes it needs.
int64_t rms_norm_forward(const NormPlan& plan, int64_t begin, int64_t end, void* scratch) {
  return with_lane_type(plan.float64,
                        [&](auto lane) { return forward_rows<decltype(lane)>(plan, begin, end, scratch); });
}

int64_t rms_norm_backward(const NormPlan& plan, int64_t begin, int64_t end, void* scratch) {
  return with_lane_type(
      plan.float64, [&](auto lane) { return backward_blocks<decltype(lane)>(plan, begin, end, scratch); });
}

}  // namespace mamba_aot::cpu::MAMBA_AOT_ISA
