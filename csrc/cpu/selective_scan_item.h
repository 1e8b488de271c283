// One work item of the scan: a sequence, one split of the channels of one group, walked chunk by chunk.
// Shared by the forward and the backward sweep.
#pragma once

#include "cpu/selective_scan_plan.h"
#include "cpu/tile.h"
#include "cpu/vector_math.h"

namespace mamba_aot::cpu::MAMBA_AOT_ISA {

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
  int64_t index = 0, batch = 0, group = 0, first_channel = 0, channels = 0, blocks = 0;
  int64_t step = 0, steps = 0;

  // [blocks, state_parts] each: A, and the state (forward) or its adjoint (backward).
  Vec<S>*A, *h;
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
    index = item;
    const int64_t split = item % plan.splits, sequence_group = item / plan.splits;
    group = sequence_group % plan.groups;
    batch = sequence_group / plan.groups;
    const int64_t group_channels = plan.channels / plan.groups;
    const int64_t begin = split * plan.split_channels, rest = group_channels - begin;
    first_channel = group * group_channels + begin;
    channels = rest < plan.split_channels ? rest : plan.split_channels;
    blocks = ceil_div(channels, kLanes);
    for (int64_t b = 0; b < blocks; ++b) {
      load_tile<S>(flat_view<S>(plan.A), channel(b) * state_parts, state_parts, 1, lanes(b), state_parts,
                   A + b * state_parts);
    }
  }

  void start_chunk(int64_t k) {
    step = k * kScanChunk;
    steps = plan.length - step < kScanChunk ? plan.length - step : kScanChunk;
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
    pack(b, batch * s[0] + group * s[1], s[2], s[3], s[4], parts, row_vectors, 1, B);
    // With conjugate pairs folded into one state, y is twice the real part; C carries that factor.
    s = c.stride;
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

  // A [batch, channels, state, parts] tensor for one block of channels; zero if it was not given.
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
    return batch * x.stride[0] + channel(block) * x.stride[1] + n * x.stride[2] + part * x.stride[3];
  }

  // The states at the start of chunk k: rows of channels.
  void save_chunk_state(int64_t k, int64_t block, const Vec<S>* h) const {
    store_tile<S>(flat_view<S>(plan.chunk_states), chunk_offset(k, block), 1, plan.channels, lanes(block),
                  state_parts, h);
  }
  void load_chunk_state(int64_t k, int64_t block, Vec<S>* h) const {
    load_tile<S>(flat_view<S>(plan.chunk_states), chunk_offset(k, block), 1, plan.channels, lanes(block),
                 state_parts, h);
  }
  int64_t chunk_offset(int64_t k, int64_t block) const {
    const int64_t chunks = ceil_div(plan.length, kScanChunk);
    return (batch * chunks + k) * state_parts * plan.channels + channel(block);
  }

  // A per-channel parameter of dtype S; zero if it was not given.
  Vec<S> per_channel(const void* x, int64_t block) const {
    Vec<S> v{};
    if (x) load_tile<S>(flat_view<S>(x), channel(block), 1, 0, lanes(block), 1, &v);
    return v;
  }

  // The step sizes dt of one block: delta plus bias, through softplus if asked.
  void load_step_sizes(int64_t block, Vec<S>* dt) const {
    load_block(plan.delta, block, dt);
    const Vec<S> bias = per_channel(plan.delta_bias, block);
    if (plan.softplus) {
      for (int64_t t = 0; t < steps; ++t) dt[t] = softplus<S>(dt[t] + bias);
    } else if (plan.delta_bias) {
      for (int64_t t = 0; t < steps; ++t) dt[t] = dt[t] + bias;
    }
  }
};

}  // namespace mamba_aot::cpu::MAMBA_AOT_ISA
