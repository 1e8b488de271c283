// One work item of the scan: a row of work, one split of the channels of one group, walked chunk by chunk.
// Shared by the forward and the backward sweep.
#pragma once

#include "cpu/ahead.h"
#include "cpu/selective_scan_plan.h"
#include "cpu/tile.h"
#include "cpu/vector_math.h"

namespace mamba_aot::cpu::MAMBA_AOT_ISA {

// Which scans have code of their own for when there are no gates and constants: those that run most, on the
// vectors most machines have. The others go without, for the compiler's time.
template <bool kComplex, bool kZoh>
#if defined(__x86_64__) && !defined(__AVX2__)
constexpr bool kHasPlain = false;
#else
constexpr bool kHasPlain = !kComplex && !kZoh;
#endif

MAMBA_AOT_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Hands out vectors from one buffer; with a null buffer it only counts them.
template <class S>
struct Arena {
  Vec<S>* base;
  int64_t used = 0;

  MAMBA_AOT_INLINE Vec<S>* take(int64_t vectors) {
    Vec<S>* p = base + (base ? used : 0);
    used += vectors;
    return p;
  }
};

// Where an item is in its tensors, its parameters and states, and the packed inputs of its current chunk.
template <class S>
struct ScanItem {
  static constexpr int kLanes = Simd<S>::kLanes;
  const ScanPlan& plan;
  const int64_t state, parts, state_parts;
  // Rows of the packed B, C and gate hold the real parts of all states, then the imaginary ones.
  const int64_t row_vectors, part_vectors, max_blocks;
  int64_t row = 0, batch = 0, group = 0, split = 0, first_channel = 0, channels = 0, blocks = 0;
  int64_t step = 0, steps = 0;

  // [blocks, state_parts] each: A, the state (forward) or its adjoint (backward), constant B and C (or 0).
  Vec<S>*A, *h, *constant_B, *constant_C;
  // [kScanChunk, row_vectors] and, for the gate, [kScanChunk, part_vectors].
  Vec<S>*B, *C, *gate;
  Vec<S>* row_scratch;

  ScanItem(const ScanPlan& plan, Arena<S>& arena)
      : plan(plan),
        state(plan.state),
        parts(plan.parts),
        state_parts(plan.state * plan.parts),
        row_vectors(ceil_div(plan.state, kLanes) * plan.parts),
        part_vectors(ceil_div(plan.state, kLanes)),
        max_blocks(ceil_div(plan.split_channels, kLanes)) {
    A = arena.take(max_blocks * state_parts);
    h = arena.take(max_blocks * state_parts);
    constant_B = arena.take(max_blocks * state_parts);
    constant_C = arena.take(max_blocks * state_parts);
    B = arena.take(kScanChunk * row_vectors);
    C = arena.take(kScanChunk * row_vectors);
    gate = arena.take(kScanChunk * part_vectors);
    row_scratch = arena.take(kScanChunk);
  }

  int lanes(int64_t block) const {
    const int64_t rest = channels - block * kLanes;
    return static_cast<int>(rest < kLanes ? rest : kLanes);
  }
  int64_t channel(int64_t block) const { return first_channel + block * kLanes; }
  int64_t part_stride() const { return part_vectors * kLanes; }

  void start(int64_t item) {
    split = item % plan.splits;
    const int64_t row_group = item / plan.splits;
    group = row_group % plan.groups;
    row = row_group / plan.groups;
    batch = plan.by_ends ? 0 : row;
    const int64_t group_channels = plan.channels / plan.groups;
    const int64_t begin = split * plan.split_channels, rest = group_channels - begin;
    first_channel = group * group_channels + begin;
    channels = rest < plan.split_channels ? rest : plan.split_channels;
    blocks = ceil_div(channels, kLanes);
    load_constants(plan.A, 1, A);
    load_constants(plan.constant_B, 1, constant_B);
    load_constants(plan.constant_C, static_cast<S>(parts), constant_C);
    // What every step has: no share of a constant weight along time, a gate that is open.
    for (int64_t i = 0; i < kScanChunk * row_vectors; ++i) B[i] = C[i] = Vec<S>{};
    for (int64_t i = 0; i < kScanChunk * part_vectors; ++i) gate[i] = splat<S>(1);
  }

  // A [channels, state, parts] of dtype S, times `scale`; zero if it was not given.
  void load_constants(const void* x, S scale, Vec<S>* to) const {
    for (int64_t b = 0; b < blocks; ++b) {
      Vec<S>* of_block = to + b * state_parts;
      if (x) {
        load_tile<S>(flat_view<S>(x), channel(b) * state_parts, state_parts, 1, lanes(b), state_parts,
                     of_block);
      }
      for (int64_t i = 0; i < state_parts; ++i) of_block[i] = x ? of_block[i] * scale : Vec<S>{};
    }
  }

  const ScanRun* first_run() const { return plan.runs + plan.first_run[row]; }
  const ScanRun* last_run() const { return plan.runs + plan.first_run[row + 1]; }
  // Whether the state passes between the sequence and the caller at its start.
  bool begins_outside(const ScanRun& run) const { return plan.by_ends || run.begin == 0; }

  // The steps of a sequence in chunk k.
  void start_chunk(int64_t k, const ScanRun& run) {
    const int64_t begin = k * kScanChunk, end = begin + kScanChunk;
    step = begin < run.begin ? run.begin : begin;
    steps = (end < run.end ? end : run.end) - step;
  }

  // Copies the chunk of B or C [state, steps, parts] into rows [steps, parts, state], times `scale`.
  void pack(const View& x, int64_t offset, int64_t state_stride, int64_t step_stride, int64_t part_stride_in,
            int64_t count, int64_t vectors, S scale, Vec<S>* rows) {
    for (int64_t part = 0; part < count; ++part) {
      for (int64_t v = 0; v < part_vectors; ++v) {
        const int64_t n = v * kLanes, rest = state - n;
        load_tile<S>(x, offset + part * part_stride_in + n * state_stride + step * step_stride, state_stride,
                     step_stride, static_cast<int>(rest < kLanes ? rest : kLanes), steps, row_scratch);
        Vec<S>* out = rows + part * part_vectors + v;
        for (int64_t t = 0; t < steps; ++t) out[t * vectors] = row_scratch[t] * scale;
      }
    }
  }

  void pack_inputs() {
    const View &b = plan.B, &c = plan.C, &g = plan.gate;
    const int64_t* s = b.stride;
    if (b.data) pack(b, batch * s[0] + group * s[1], s[2], s[3], s[4], parts, row_vectors, 1, B);
    // With conjugate pairs folded into one state, y is twice the real part; C carries that factor.
    s = c.stride;
    if (c.data)
      pack(c, batch * s[0] + group * s[1], s[2], s[3], s[4], parts, row_vectors, static_cast<S>(parts), C);
    s = g.stride;
    if (g.data) pack(g, batch * s[0], s[1], s[2], 0, 1, part_vectors, 1, gate);
  }

  // The chunk of a [batch, channels, length] tensor for one block of channels.
  void load_block(const View& x, int64_t block, Vec<S>* tile) const {
    load_tile<S>(x, batch * x.stride[0] + channel(block) * x.stride[1] + step * x.stride[2], x.stride[1],
                 x.stride[2], lanes(block), steps, tile);
  }
  void store_block(const View& x, int64_t block, const Vec<S>* tile) const {
    store_tile<S>(x, batch * x.stride[0] + channel(block) * x.stride[1] + step * x.stride[2], x.stride[1],
                  x.stride[2], lanes(block), steps, tile);
  }

  // The lines of such a chunk that begins at `first_step`, of the number-th of a few tensors; none outside of
  // the sequence, nor of a delta whose rows channels share.
  template <int kCount>
  MAMBA_AOT_INLINE Ahead ahead(const View* const (&tensors)[kCount], int64_t number, int64_t block,
                               int64_t first_step) const {
    if (number >= kCount || first_step < 0 || first_step >= plan.length) return {};
    const View& x = *tensors[number];
    if (&x == &plan.delta && plan.head_channels != 1) return {};
    return {x, batch * x.stride[0] + channel(block) * x.stride[1] + first_step * x.stride[2], x.stride[1],
            x.stride[2]};
  }

  // A [rows, channels, state, parts] tensor for one block of channels; zero if it was not given.
  void load_state(const View& x, int64_t block, Vec<S>* h) const {
    for (int64_t part = 0; part < parts; ++part) {
      for (int64_t n = 0; n < state; ++n) {
        Vec<S> v{};
        if (x.data) {
          load_tile<S>(x, state_offset(x, block, n, part), x.stride[1], 0, lanes(block), 1, &v);
        }
        h[n * parts + part] = v;
      }
    }
  }
  void store_state(const View& x, int64_t block, const Vec<S>* h) const {
    for (int64_t part = 0; part < parts; ++part) {
      for (int64_t n = 0; n < state; ++n) {
        store_tile<S>(x, state_offset(x, block, n, part), x.stride[1], 0, lanes(block), 1,
                      h + n * parts + part);
      }
    }
  }
  int64_t state_offset(const View& x, int64_t block, int64_t n, int64_t part) const {
    return row * x.stride[0] + channel(block) * x.stride[1] + n * x.stride[2] + part * x.stride[3];
  }

  // The states at the start of chunk k, if the sequence comes from before it or starts there: rows of
  // channels.
  void save_chunk_state(int64_t k, int64_t block, const Vec<S>* h) const {
    if (step > k * kScanChunk) return;
    store_tile<S>(flat_view<S>(plan.chunk_states), chunk_offset(k, block), 1, plan.channels, lanes(block),
                  state_parts, h);
  }
  void load_chunk_state(int64_t k, int64_t block, Vec<S>* h) const {
    load_tile<S>(flat_view<S>(plan.chunk_states), chunk_offset(k, block), 1, plan.channels, lanes(block),
                 state_parts, h);
  }
  int64_t chunk_offset(int64_t k, int64_t block) const {
    const int64_t begun = ceil_div(plan.length, kScanChunk) + (plan.by_ends ? row : 0);
    const int64_t saved = step > k * kScanChunk ? begun : k;
    return (batch * plan.saved_rows + saved) * state_parts * plan.channels + channel(block);
  }

  // A per-channel parameter of dtype S; zero if it was not given.
  Vec<S> per_channel(const void* x, int64_t block) const {
    Vec<S> v{};
    if (x) load_tile<S>(flat_view<S>(x), channel(block), 1, 0, lanes(block), 1, &v);
    return v;
  }

  // delta of one block: lanes of one head share a row.
  void load_delta(int64_t block, Vec<S>* tile) const {
    const int64_t size = plan.head_channels;
    if (size == 1) return load_block(plan.delta, block, tile);
    const View& x = plan.delta;
    for (int lane = 0; lane < lanes(block);) {
      const int64_t head = (channel(block) + lane) / size, rest = (head + 1) * size - channel(block);
      const int end = static_cast<int>(rest < lanes(block) ? rest : lanes(block));
      load_tile<S>(x, batch * x.stride[0] + head * x.stride[1] + step * x.stride[2], 0, x.stride[2], 1, steps,
                   row_scratch);
      for (int64_t t = 0; t < steps; ++t) {
        if (lane == 0) tile[t] = Vec<S>{};
        for (int i = lane; i < end; ++i) tile[t][i] = row_scratch[t][0];
      }
      lane = end;
    }
  }

  // The step sizes dt of one block: delta plus bias, through softplus if asked.
  void load_step_sizes(int64_t block, Vec<S>* dt) const {
    load_delta(block, dt);
    const Vec<S> bias = per_channel(plan.delta_bias, block);
    if (plan.softplus && parts == 2) {
      for (int64_t t = 0; t < steps; ++t) dt[t] = softplus_exact<S>(dt[t] + bias);
    } else if (plan.softplus) {
      for (int64_t t = 0; t < steps; ++t) dt[t] = softplus<S>(dt[t] + bias);
    } else if (plan.delta_bias) {
      for (int64_t t = 0; t < steps; ++t) dt[t] = dt[t] + bias;
    }
  }
};

}  // namespace mamba_aot::cpu::MAMBA_AOT_ISA
