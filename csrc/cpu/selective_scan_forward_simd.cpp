// The forward sweep of the selective scan. Compiled once per instruction set.
#include "cpu/selective_scan_advance.h"

namespace mamba_aot::cpu::MAMBA_AOT_ISA {
namespace {

// States per pass: as many as fit in registers beside the exponentials. Double, which is for checking
// gradients, makes do with one: half the code to compile.
template <class S, bool kComplex>
constexpr int kForwardStates = sizeof(S) == 8 ? 1
                               : kComplex     ? 2
                                              : 4;

template <class S, bool kComplex, bool kZoh, bool kGate>
struct Forward {
  ScanItem<S> item;
  // `y` holds the sum of a few passes, `out` that of all: short chains of additions lose less.
  Vec<S>*dt, *x, *y, *out;

  Forward(const ScanPlan& plan, Arena<S>& arena) : item(plan, arena) {
    dt = arena.take(kScanChunk);
    x = arena.take(kScanChunk);
    y = arena.take(kScanChunk);
    out = arena.take(kScanChunk);
  }

  void run(int64_t index) {
    const ScanPlan& plan = item.plan;
    item.start(index);
    for (int64_t b = 0; b < item.blocks; ++b) item.load_state(plan.initial_state, b, state(b));
    for (int64_t k = 0; k * kScanChunk < plan.length; ++k) {
      item.start_chunk(k);
      item.pack_inputs();
      for (int64_t b = 0; b < item.blocks; ++b) run_block(k, b);
    }
    for (int64_t b = 0; b < item.blocks; ++b) item.store_state(plan.last_state, b, state(b));
  }

  Vec<S>* state(int64_t block) const { return item.h + block * item.state_parts; }

  void run_block(int64_t k, int64_t block) {
    constexpr int kStates = kForwardStates<S, kComplex>;
    const ScanPlan& plan = item.plan;
    if (plan.chunk_states) item.save_chunk_state(k, block, state(block));
    item.load_step_sizes(block, dt);
    item.load_block(plan.u, block, x);
    const Vec<S> skip = item.per_channel(plan.D, block);
    for (int64_t t = 0; t < item.steps; ++t) {
      out[t] = skip * x[t];
      y[t] = Vec<S>{};
    }
    int64_t n = 0;
    for (; n + kStates <= item.state; n += kStates) {
      pass<kStates>(block, n);
      if (n / kStates % kPassesInSum == kPassesInSum - 1) fold();
    }
    for (; n < item.state; ++n) pass<1>(block, n);
    fold();
    if (plan.z.data) {
      item.load_block(plan.z, block, y);
      for (int64_t t = 0; t < item.steps; ++t) out[t] = out[t] * Silu<S>(y[t]).value;
    }
    item.store_block(plan.out, block, out);
  }

  void fold() {
    for (int64_t t = 0; t < item.steps; ++t) {
      out[t] = out[t] + y[t];
      y[t] = Vec<S>{};
    }
  }

  template <int kStates>
  void pass(int64_t block, int64_t n) {
    const Vec<S>* A = item.A + block * item.state_parts + n * item.parts;
    advance<S, kComplex, kZoh, kGate, kStates, false>(item, A, n, dt, x, state(block) + n * item.parts, y,
                                                      {});
  }
};

// Runs the items [begin, end) in `scratch`; without scratch, returns the bytes it needs.
template <class S, bool kComplex, bool kZoh, bool kGate>
int64_t run(const ScanPlan& plan, int64_t begin, int64_t end, void* scratch) {
  Arena<S> arena{static_cast<Vec<S>*>(scratch)};
  Forward<S, kComplex, kZoh, kGate> sweep(plan, arena);
  if (scratch) {
    for (int64_t i = begin; i < end; ++i) sweep.run(i);
  }
  return arena.used * static_cast<int64_t>(sizeof(Vec<S>));
}

template <class S, bool kComplex, bool kZoh>
int64_t pick_gate(const ScanPlan& p, int64_t begin, int64_t end, void* scratch) {
  return p.gate.data ? run<S, kComplex, kZoh, true>(p, begin, end, scratch)
                     : run<S, kComplex, kZoh, false>(p, begin, end, scratch);
}

template <class S, bool kComplex>
int64_t pick_rule(const ScanPlan& p, int64_t begin, int64_t end, void* scratch) {
  return p.zoh ? pick_gate<S, kComplex, true>(p, begin, end, scratch)
               : pick_gate<S, kComplex, false>(p, begin, end, scratch);
}

template <class S>
int64_t pick_field(const ScanPlan& p, int64_t begin, int64_t end, void* scratch) {
  return p.parts == 2 ? pick_rule<S, true>(p, begin, end, scratch)
                      : pick_rule<S, false>(p, begin, end, scratch);
}

}  // namespace

int64_t selective_scan_forward(const ScanPlan& plan, int64_t begin, int64_t end, void* scratch) {
  return with_lane_type(plan.float64,
                        [&](auto lane) { return pick_field<decltype(lane)>(plan, begin, end, scratch); });
}

}  // namespace mamba_aot::cpu::MAMBA_AOT_ISA
