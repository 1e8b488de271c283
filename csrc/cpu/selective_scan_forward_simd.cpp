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

// The recurrence of one kind of scan, over several states at once and over one: what the sweep is not
// compiled anew for.
template <class S>
struct Advance {
  decltype(&advance<S, false, false, true, 1, false>) several, one;
  int states;
};

template <class S>
struct Forward {
  ScanItem<S> item;
  const Advance<S> advance_by;
  // `y` holds the sum of a few passes, `out` that of all: short chains of additions lose less.
  Vec<S>*dt, *x, *y, *out;

  Forward(const ScanPlan& plan, Arena<S>& arena, const Advance<S>& kind)
      : item(plan, arena), advance_by(kind) {
    dt = arena.take(kScanChunk);
    x = arena.take(kScanChunk);
    y = arena.take(kScanChunk);
    out = arena.take(kScanChunk);
  }

  void run(int64_t index) {
    const ScanPlan& plan = item.plan;
    item.start(index);
    for (const ScanRun* run = item.first_run(); run < item.last_run(); ++run) {
      const View before = item.begins_outside(*run) ? plan.initial_state : View{};
      for (int64_t b = 0; b < item.blocks; ++b) item.load_state(before, b, state(b));
      for (int64_t k = run->begin / kScanChunk; k * kScanChunk < run->end; ++k) {
        item.start_chunk(k, *run);
        item.pack_inputs();
        for (int64_t b = 0; b < item.blocks; ++b) run_block(k, b);
      }
    }
    // A row without sequences keeps the last state that it was given.
    if (item.first_run() == item.last_run()) return;
    for (int64_t b = 0; b < item.blocks; ++b) item.store_state(plan.last_state, b, state(b));
  }

  Vec<S>* state(int64_t block) const { return item.h + block * item.state_parts; }

  void run_block(int64_t k, int64_t block) {
    const int states = advance_by.states;
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
    for (; n + states <= item.state; n += states) {
      pass(advance_by.several, block, n);
      if (n / states % kPassesInSum == kPassesInSum - 1) fold();
    }
    for (; n < item.state; ++n) pass(advance_by.one, block, n);
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

  // What the pass asks for: of the next tile one of its tensors, then what this one will write.
  Ahead ahead(int64_t block, int64_t number) const {
    constexpr int kRead = 3;
    const ScanPlan& plan = item.plan;
    const View* const read[kRead] = {&plan.delta, &plan.u, &plan.z};
    const View* const written[] = {&plan.out};
    if (number >= kRead) return item.ahead(written, number - kRead, block, item.step);
    const bool last = block + 1 == item.blocks;
    return item.ahead(read, number, last ? 0 : block + 1, last ? item.step + item.steps : item.step);
  }

  void pass(decltype(Advance<S>::one) through, int64_t block, int64_t n) {
    const int64_t at = block * item.state_parts + n * item.parts;
    through(item, at, n, dt, x, item.h + at, y, {}, ahead(block, n / advance_by.states));
  }
};

// Runs the items [begin, end) in `scratch`; without scratch, returns the bytes it needs.
template <class S>
int64_t sweep(const ScanPlan& plan, int64_t begin, int64_t end, void* scratch, const Advance<S>& kind) {
  Arena<S> arena{static_cast<Vec<S>*>(scratch)};
  Forward<S> forward(plan, arena, kind);
  if (scratch) {
    for (int64_t i = begin; i < end; ++i) forward.run(i);
  }
  return arena.used * static_cast<int64_t>(sizeof(Vec<S>));
}

template <class S, bool kComplex, bool kZoh, bool kGeneral>
int64_t run(const ScanPlan& plan, int64_t begin, int64_t end, void* scratch) {
  constexpr int kStates = kForwardStates<S, kComplex>;
  return sweep<S>(plan, begin, end, scratch,
                  {&advance<S, kComplex, kZoh, kGeneral, kStates, false>,
                   &advance<S, kComplex, kZoh, kGeneral, 1, false>, kStates});
}

template <class S, bool kComplex, bool kZoh>
int64_t pick_general(const ScanPlan& p, int64_t begin, int64_t end, void* scratch) {
  if constexpr (kHasPlain<kComplex, kZoh>) {
    if (!(p.gate.data || p.constant_B || p.constant_C)) {
      return run<S, kComplex, kZoh, false>(p, begin, end, scratch);
    }
  }
  return run<S, kComplex, kZoh, true>(p, begin, end, scratch);
}

template <class S, bool kComplex>
int64_t pick_rule(const ScanPlan& p, int64_t begin, int64_t end, void* scratch) {
  return p.zoh ? pick_general<S, kComplex, true>(p, begin, end, scratch)
               : pick_general<S, kComplex, false>(p, begin, end, scratch);
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
