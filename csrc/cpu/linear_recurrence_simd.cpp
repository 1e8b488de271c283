// Linear recurrence, forward and backward. Compiled once per instruction set.
// Rows are the lanes; tiles of [steps, rows] come from any memory layout. A tile of complex numbers holds the
// real and the imaginary parts of a step one after the other.
#include "cpu/linear_recurrence_plan.h"
#include "cpu/tile.h"

namespace mamba_aot::cpu::MAMBA_AOT_ISA {
namespace {

constexpr int64_t kSteps = kRecurrenceTile;

template <class S, int kParts>
struct Number {
  Vec<S> part[kParts];

  MAMBA_AOT_INLINE static Number load(const Vec<S>* p) {
    Number x;
    for (int i = 0; i < kParts; ++i) x.part[i] = p[i];
    return x;
  }
  MAMBA_AOT_INLINE void store(Vec<S>* p) const {
    for (int i = 0; i < kParts; ++i) p[i] = part[i];
  }
};

template <class S, int kParts>
MAMBA_AOT_INLINE Number<S, kParts> add(const Number<S, kParts>& x, const Number<S, kParts>& y) {
  Number<S, kParts> sum;
  for (int i = 0; i < kParts; ++i) sum.part[i] = x.part[i] + y.part[i];
  return sum;
}

// a h + b
template <class S, int kParts>
MAMBA_AOT_INLINE Number<S, kParts> advance(const Number<S, kParts>& a, const Number<S, kParts>& h,
                                           const Number<S, kParts>& b) {
  if constexpr (kParts == 1) {
    return {fma(a.part[0], h.part[0], b.part[0])};
  } else {
    return {fma(a.part[0], h.part[0], fma(-a.part[1], h.part[1], b.part[0])),
            fma(a.part[0], h.part[1], fma(a.part[1], h.part[0], b.part[1]))};
  }
}

// x conj(y)
template <class S, int kParts>
MAMBA_AOT_INLINE Number<S, kParts> multiply_conjugate(const Number<S, kParts>& x,
                                                      const Number<S, kParts>& y) {
  if constexpr (kParts == 1) {
    return {x.part[0] * y.part[0]};
  } else {
    return {fma(x.part[0], y.part[0], x.part[1] * y.part[1]),
            fma(x.part[1], y.part[0], -(x.part[0] * y.part[1]))};
  }
}

// Every second lane of two vectors, from lane kFirst on; and the other way, one half of what they interleave
// to.
template <class S, int kFirst>
MAMBA_AOT_INLINE Vec<S> every_second(Vec<S> low, Vec<S> high) {
  IntVec<S> order{};
  for (int lane = 0; lane < Simd<S>::kLanes; ++lane) order[lane] = 2 * lane + kFirst;
  return __builtin_shuffle(low, high, order);
}

template <class S, int kHalf>
MAMBA_AOT_INLINE Vec<S> interleaved(Vec<S> even, Vec<S> odd) {
  constexpr int kLanes = Simd<S>::kLanes;
  IntVec<S> order{};
  for (int lane = 0; lane < kLanes; ++lane) {
    order[lane] = kHalf * kLanes / 2 + lane / 2 + (lane % 2 ? kLanes : 0);
  }
  return __builtin_shuffle(even, odd, order);
}

// Rows [row, row + lanes) of the plane (p, q).
template <class S, int kParts>
struct Block {
  const RecurrencePlan& plan;
  int64_t p, q, row;
  int lanes;

  int64_t start(const View& v) const { return p * v.stride[0] + q * v.stride[1] + row * v.stride[2]; }
  // Where the steps [t, t + steps) of the recurrence begin in memory; reversed ones lie the other way round.
  int64_t place(int64_t t, int64_t steps) const { return plan.reverse ? plan.length - t - steps : t; }

  // Asks for the cache lines of steps that come later: rows are more streams than the machine follows by
  // itself.
  void prefetch_steps(const View& v, int64_t t, int64_t steps) const {
    if (t < 0 || t >= plan.length) return;
    const int64_t rest = plan.length - t, many = rest < steps ? rest : steps;
    const int64_t size = v.dtype == DType::f64 ? 8 : v.dtype == DType::f32 ? 4 : 2;
    const char* at = static_cast<const char*>(v.data) + (start(v) + place(t, many) * v.stride[3]) * size;
    if (v.stride[3] == kParts) {
      for (int lane = 0; lane < lanes; ++lane) {
        const char* from = at + lane * v.stride[2] * size;
        for (int64_t byte = 0; byte < many * kParts * size; byte += 64) __builtin_prefetch(from + byte, 0, 2);
      }
    } else {
      for (int64_t i = 0; i < many; ++i) __builtin_prefetch(at + i * v.stride[3] * size, 0, 2);
    }
  }
  void load_steps(const View& v, int64_t t, int64_t steps, Vec<S>* tile) const {
    const int64_t at = start(v) + place(t, steps) * v.stride[3];
    if (kParts == 1 || v.stride[3] == kParts) {
      load_tile<S>(v, at, v.stride[2], kParts == 1 ? v.stride[3] : 1, lanes, steps * kParts, tile);
    } else if (v.stride[2] == kParts && lanes == Simd<S>::kLanes) {
      for (int64_t i = 0; i < steps; ++i) {
        const S* from = static_cast<const S*>(v.data) + at + i * v.stride[3];
        const Vec<S> low = load<S>(from), high = load<S>(from + Simd<S>::kLanes);
        tile[2 * i] = every_second<S, 0>(low, high);
        tile[2 * i + 1] = every_second<S, 1>(low, high);
      }
    } else {
      for (int64_t i = 0; i < steps; ++i) {
        load_tile<S>(v, at + i * v.stride[3], v.stride[2], 1, lanes, kParts, tile + i * kParts);
      }
    }
  }
  void store_steps(const View& v, int64_t t, int64_t steps, const Vec<S>* tile) const {
    const int64_t at = start(v) + place(t, steps) * v.stride[3];
    if (kParts == 1 || v.stride[3] == kParts) {
      store_tile<S>(v, at, v.stride[2], kParts == 1 ? v.stride[3] : 1, lanes, steps * kParts, tile);
    } else if (v.stride[2] == kParts && lanes == Simd<S>::kLanes) {
      for (int64_t i = 0; i < steps; ++i) {
        S* to = static_cast<S*>(v.data) + at + i * v.stride[3];
        const Vec<S> even = tile[2 * i], odd = tile[2 * i + 1];
        store<S>(to, interleaved<S, 0>(even, odd));
        store<S>(to + Simd<S>::kLanes, interleaved<S, 1>(even, odd));
      }
    } else {
      for (int64_t i = 0; i < steps; ++i) {
        store_tile<S>(v, at + i * v.stride[3], v.stride[2], 1, lanes, kParts, tile + i * kParts);
      }
    }
  }
  // A state at `offset` of its row; 0 if it was not given.
  Number<S, kParts> load_state(const View& v, int64_t offset) const {
    Number<S, kParts> x{};
    if (v.data) load_tile<S>(v, start(v) + offset, v.stride[2], 1, lanes, kParts, x.part);
    return x;
  }
  void store_state(const View& v, int64_t offset, const Number<S, kParts>& x) const {
    if (v.data) store_tile<S>(v, start(v) + offset, v.stride[2], 1, lanes, kParts, x.part);
  }
};

// The blocks of one item, and the number that each carries from tile to tile.
template <class S, int kParts>
struct Item {
  static constexpr int kLanes = Simd<S>::kLanes;
  int64_t p, q, first, last;
  Number<S, kParts> carry[kRecurrenceSplit / kLanes];

  Item(const RecurrencePlan& plan, int64_t index) {
    const int64_t split = index % plan.splits, plane = index / plan.splits;
    q = plane % plan.size[1];
    p = plane / plan.size[1];
    first = split * plan.split_rows;
    last = first + plan.split_rows;
    if (last > plan.size[2]) last = plan.size[2];
  }

  template <class Visit>
  MAMBA_AOT_INLINE void for_blocks(const RecurrencePlan& plan, const Visit& visit) {
    int i = 0;
    for (int64_t row = first; row < last; row += kLanes, ++i) {
      const int64_t rest = last - row;
      visit(Block<S, kParts>{plan, p, q, row, static_cast<int>(rest < kLanes ? rest : kLanes)}, carry[i]);
    }
  }
};

// Runs the steps [t, t + steps) from h on: `tile` turns from b into h.
template <class S, int kParts>
MAMBA_AOT_INLINE void advance_tile(const Block<S, kParts>& block, int64_t t, int64_t steps, const Vec<S>* a,
                                   Vec<S>* tile, Number<S, kParts>& h, bool save) {
  for (int64_t begin = 0; begin < steps; begin += kRecurrenceSaved) {
    const int64_t rest = steps - begin, end = begin + (rest < kRecurrenceSaved ? rest : kRecurrenceSaved);
    if (save && (t + begin) % kRecurrenceSaved == 0) {
      const View& saved = block.plan.chunk_states;
      block.store_state(saved, (t + begin) / kRecurrenceSaved * saved.stride[3], h);
    }
    for (int64_t i = begin; i < end; ++i) {
      const int64_t at = (block.plan.reverse ? steps - 1 - i : i) * kParts;
      h = advance(Number<S, kParts>::load(a + at), h, Number<S, kParts>::load(tile + at));
      h.store(tile + at);
    }
  }
}

template <class S, int kParts>
void forward_item(const RecurrencePlan& plan, int64_t index) {
  using Value = Number<S, kParts>;
  Item<S, kParts> item(plan, index);
  Vec<S> a[kSteps * kParts], tile[kSteps * kParts];
  item.for_blocks(
      plan, [&](const Block<S, kParts>& block, Value& h) { h = block.load_state(plan.initial_state, 0); });
  for (int64_t t = 0; t < plan.length; t += plan.tile_steps) {
    const int64_t rest = plan.length - t, steps = rest < plan.tile_steps ? rest : plan.tile_steps;
    item.for_blocks(plan, [&](const Block<S, kParts>& block, Value& h) {
      block.load_steps(plan.a, t, steps, a);
      block.load_steps(plan.b, t, steps, tile);
      block.prefetch_steps(plan.a, t + plan.tile_steps, plan.tile_steps);
      block.prefetch_steps(plan.b, t + plan.tile_steps, plan.tile_steps);
      advance_tile(block, t, steps, a, tile, h, true);
      block.store_steps(plan.h, t, steps, tile);
    });
  }
  item.for_blocks(plan,
                  [&](const Block<S, kParts>& block, Value& h) { block.store_state(plan.last_state, 0, h); });
}

// carry is conj(a) times the adjoint of the step after the tile: what that step passes back.
template <class S, int kParts>
void backward_item(const RecurrencePlan& plan, int64_t index) {
  using Value = Number<S, kParts>;
  Item<S, kParts> item(plan, index);
  Vec<S> a[kSteps * kParts], grad[kSteps * kParts], states[kSteps * kParts];
  item.for_blocks(plan, [&](const Block<S, kParts>& block, Value& carry) {
    carry = block.load_state(plan.dlast_state, 0);
  });
  const int64_t tiles = (plan.length + plan.tile_steps - 1) / plan.tile_steps;
  for (int64_t tile = tiles - 1; tile >= 0; --tile) {
    const int64_t t = tile * plan.tile_steps, rest = plan.length - t;
    const int64_t steps = rest < plan.tile_steps ? rest : plan.tile_steps;
    item.for_blocks(plan, [&](const Block<S, kParts>& block, Value& carry) {
      block.load_steps(plan.a, t, steps, a);
      block.load_steps(plan.dh, t, steps, grad);
      block.prefetch_steps(plan.a, t - plan.tile_steps, plan.tile_steps);
      block.prefetch_steps(plan.dh, t - plan.tile_steps, plan.tile_steps);
      block.prefetch_steps(plan.chunk_states.data ? plan.b : plan.h, t - plan.tile_steps, plan.tile_steps);
      Value entering;
      if (plan.chunk_states.data) {
        entering = block.load_state(plan.chunk_states, t / kRecurrenceSaved * plan.chunk_states.stride[3]);
        block.load_steps(plan.b, t, steps, states);
        Value h = entering;
        advance_tile(block, t, steps, a, states, h, false);
      } else {
        block.load_steps(plan.h, t, steps, states);
        if (t > 0) {
          block.load_steps(plan.h, t - 1, 1, entering.part);
        } else {
          entering = block.load_state(plan.initial_state, 0);
        }
      }
      const int64_t step = plan.reverse ? -kParts : kParts;
      int64_t at = (plan.reverse ? 0 : steps - 1) * kParts;
      for (int64_t i = steps - 1; i >= 0; --i, at -= step) {
        const Value decay = Value::load(a + at), adjoint = add(Value::load(grad + at), carry);
        const Value before = i > 0 ? Value::load(states + at - step) : entering;
        carry = multiply_conjugate(adjoint, decay);
        multiply_conjugate(adjoint, before).store(a + at);
        adjoint.store(grad + at);
      }
      block.store_steps(plan.da, t, steps, a);
      block.store_steps(plan.db, t, steps, grad);
    });
  }
  item.for_blocks(plan, [&](const Block<S, kParts>& block, Value& carry) {
    block.store_state(plan.dinitial_state, 0, carry);
  });
}

// Calls the item with its lane type and parts as compile-time values.
template <template <class, int> class F>
MAMBA_AOT_INLINE void run_range(const RecurrencePlan& plan, int64_t begin, int64_t end) {
  with_lane_type(plan.float64, [&](auto lane) {
    using S = decltype(lane);
    for (int64_t i = begin; i < end; ++i) {
      plan.complex ? F<S, 2>::run(plan, i) : F<S, 1>::run(plan, i);
    }
  });
}

template <class S, int kParts>
struct ForwardItem {
  static void run(const RecurrencePlan& plan, int64_t index) { forward_item<S, kParts>(plan, index); }
};

template <class S, int kParts>
struct BackwardItem {
  static void run(const RecurrencePlan& plan, int64_t index) { backward_item<S, kParts>(plan, index); }
};

}  // namespace

// Each runs the items [begin, end); neither needs scratch.
int64_t linear_recurrence_forward(const RecurrencePlan& plan, int64_t begin, int64_t end, void*) {
  run_range<ForwardItem>(plan, begin, end);
  return 0;
}

int64_t linear_recurrence_backward(const RecurrencePlan& plan, int64_t begin, int64_t end, void*) {
  run_range<BackwardItem>(plan, begin, end);
  return 0;
}

}  // namespace mamba_aot::cpu::MAMBA_AOT_ISA
