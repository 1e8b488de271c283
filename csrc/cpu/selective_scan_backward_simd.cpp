// The backward sweep of the selective scan. Compiled once per instruction set.
// Chunks are visited last to first; in each one the states are recomputed from the saved start of the chunk
// onto a tape that stays in the cache, a few states at a time, and then walked back.
#include "cpu/selective_scan_retreat.h"

namespace mamba_aot::cpu::MAMBA_AOT_ISA {
namespace {

// States per pass; one in double, as in the forward sweep.
template <class S, bool kComplex>
constexpr int kBackwardStates = sizeof(S) == 8 ? 1
                                : kComplex     ? 2
                                               : 4;

template <class S>
struct Backward;

// One kind of scan forth and back through a chunk, over several states at once and over one: what the sweep
// is not compiled anew for.
template <class S>
struct Passes {
  void (*several)(Backward<S>&, int64_t);
  void (*one)(Backward<S>&, int64_t);
  int states;
};

template <class S>
struct Backward {
  static constexpr int kLanes = Simd<S>::kLanes;
  ScanItem<S> item;
  const Passes<S> passes;
  // Per block of channels: the tiles of the chunk, and sums over the sequence. y, du and ddt hold the sums of
  // a few passes, the others those of all: short chains of additions lose less. Where a few are all, they are
  // the same.
  const bool few_passes;
  Vec<S>*dt, *x, *dy, *dout_slope, *y, *du, *ddt, *all_y, *all_du, *all_ddt;
  Vec<S>*dD, *dbias;
  Vec<S>* start;
  Tape<S> tape;
  ChannelSums<S> sums;
  TimeSums<S> over_time;

  Backward(const ScanPlan& plan, Arena<S>& arena, const Passes<S>& kind)
      : item(plan, arena),
        passes(kind),
        few_passes(item.state / kind.states + item.state % kind.states <= kPassesInSum) {
    const int64_t step_rows = passes.states * item.parts, tape_rows = kScanChunk * step_rows;
    const int64_t tiles = item.max_blocks * kScanChunk;
    dt = arena.take(tiles);
    x = arena.take(tiles);
    dy = arena.take(tiles);
    dout_slope = arena.take(tiles);
    y = arena.take(tiles);
    du = arena.take(tiles);
    ddt = arena.take(tiles);
    all_y = few_passes ? y : arena.take(tiles);
    all_du = few_passes ? du : arena.take(tiles);
    all_ddt = few_passes ? ddt : arena.take(tiles);
    dD = arena.take(item.max_blocks);
    dbias = arena.take(item.max_blocks);
    start = arena.take(item.state_parts * item.max_blocks);
    tape = {arena.take(tape_rows + step_rows), arena.take(tape_rows), arena.take(tape_rows)};
    sums = {arena.take(kScanChunk * ceil_div(2 * step_rows, kLanes)), arena.take(kScanChunk * passes.states)};
    const int64_t states = item.max_blocks * item.state_parts;
    over_time = {arena.take(states), arena.take(states), arena.take(states)};
  }

  void run(int64_t index) {
    const ScanPlan& plan = item.plan;
    item.start(index);
    const int64_t states = item.blocks * item.state_parts;
    for (int64_t i = 0; i < states; ++i) over_time.dA[i] = over_time.dB[i] = over_time.dC[i] = Vec<S>{};
    for (int64_t b = 0; b < item.blocks; ++b) dD[b] = dbias[b] = Vec<S>{};
    for (const ScanRun* run = item.last_run(); run-- > item.first_run();) {
      const View after = run + 1 == item.last_run() ? plan.dlast_state : View{};
      for (int64_t b = 0; b < item.blocks; ++b) item.load_state(after, b, state(b));
      for (int64_t k = ceil_div(run->end, kScanChunk) - 1; k >= run->begin / kScanChunk; --k) {
        run_chunk(k, *run);
      }
      if (!item.begins_outside(*run)) continue;
      for (int64_t b = 0; b < item.blocks; ++b) item.store_state(plan.dinitial_state, b, state(b));
    }
    for (int64_t b = 0; b < item.blocks; ++b) {
      const int64_t channel = item.row * plan.channels + item.channel(b);
      store_states(plan.dA, over_time.dA, b);
      store_states(plan.constant_dB, over_time.dB, b);
      store_states(plan.constant_dC, over_time.dC, b);
      if (plan.dD) store_tile<S>(flat_view<S>(plan.dD), channel, 1, 0, item.lanes(b), 1, dD + b);
      if (plan.ddelta_bias)
        store_tile<S>(flat_view<S>(plan.ddelta_bias), channel, 1, 0, item.lanes(b), 1, dbias + b);
    }
  }

  Vec<S>* state(int64_t block) const { return item.h + block * item.state_parts; }

  // One block of [rows, channels, state, parts], unless that is not wanted.
  void store_states(void* to, const Vec<S>* sums, int64_t block) const {
    const int64_t channel = item.row * item.plan.channels + item.channel(block);
    if (!to) return;
    store_tile<S>(flat_view<S>(to), channel * item.state_parts, item.state_parts, 1, item.lanes(block),
                  item.state_parts, sums + block * item.state_parts);
  }

  void run_chunk(int64_t k, const ScanRun& run) {
    item.start_chunk(k, run);
    item.pack_inputs();
    for (int64_t b = 0; b < item.blocks; ++b) {
      load_chunk(b);
      item.load_chunk_state(k, b, start + b * item.state_parts);
    }
    int64_t n = 0;
    for (; n + passes.states <= item.state; n += passes.states) {
      passes.several(*this, n);
      if (n / passes.states % kPassesInSum == kPassesInSum - 1) fold();
    }
    for (; n < item.state; ++n) passes.one(*this, n);
    fold();
    for (int64_t b = 0; b < item.blocks; ++b) store_chunk(b);
  }

  void fold() {
    if (few_passes) return;
    for (int64_t b = 0; b < item.blocks; ++b) {
      for (int64_t t = b * kScanChunk; t < b * kScanChunk + item.steps; ++t) {
        all_y[t] = all_y[t] + y[t];
        all_du[t] = all_du[t] + du[t];
        all_ddt[t] = all_ddt[t] + ddt[t];
        y[t] = du[t] = ddt[t] = Vec<S>{};
      }
    }
  }

  void load_chunk(int64_t block) {
    const ScanPlan& plan = item.plan;
    const int64_t at = block * kScanChunk;
    item.load_step_sizes(block, dt + at);
    item.load_block(plan.u, block, x + at);
    item.load_block(plan.dout, block, dy + at);
    const Vec<S> skip = item.per_channel(plan.D, block);
    if (plan.z.data) {
      item.load_block(plan.z, block, dout_slope + at);
      for (int64_t t = at; t < at + item.steps; ++t) {
        const Silu<S> gate(dout_slope[t]);
        dout_slope[t] = dy[t] * gate.slope;
        dy[t] = dy[t] * gate.value;
      }
    }
    StepSum<S> sum;
    for (int64_t t = at; t < at + item.steps; ++t) {
      sum.add(t, dy[t] * x[t]);
      if (!few_passes) y[t] = du[t] = ddt[t] = Vec<S>{};
      all_y[t] = skip * x[t];
      all_du[t] = skip * dy[t];
      all_ddt[t] = Vec<S>{};
    }
    dD[block] = dD[block] + sum.total();
  }

  // What the number-th pass asks for: while it advances, of the chunk before one of its tensors, and while it
  // goes back, of what this chunk will write.
  Ahead ahead_to_read(int64_t block, int64_t number) const {
    const ScanPlan& plan = item.plan;
    const View* const read[] = {&plan.u, &plan.delta, &plan.dout, &plan.z};
    return item.ahead(read, number, block, item.step - kScanChunk);
  }
  Ahead ahead_to_write(int64_t block, int64_t number) const {
    const ScanPlan& plan = item.plan;
    const View* const written[] = {&plan.du, &plan.ddelta, &plan.dz};
    return item.ahead(written, number, block, item.step);
  }

  // Where this item's sums of state n lie in [batch, groups, splits, state, length].
  int64_t sums_offset(int64_t n) const {
    const int64_t index = (item.batch * item.plan.groups + item.group) * item.plan.splits + item.split;
    return (index * item.state + n) * item.plan.length + item.step;
  }

  // Up to a vector of sums from step t on, `apart` numbers from one step to the next.
  void store_steps(Vec<S> values, S* row, int64_t t, int apart) const {
    const int64_t rest = item.steps - t;
    if (apart == 1 && rest >= kLanes) return store(row + t, values);
    for (int i = 0; i < kLanes && i < rest; ++i) row[(t + i) * apart] = values[i];
  }

  // The gradients of B and C for kNumbers numbers from state n on.
  template <int kNumbers>
  void store_weight_sums(int64_t n) const {
    const int parts = static_cast<int>(item.parts);
    WeightSums<S, kNumbers>::unfold(sums.weights, item.steps, [&](int q, int64_t t, Vec<S> values) {
      S* to = static_cast<S*>(q < kNumbers ? item.plan.dB : item.plan.dC);
      const int number = q % kNumbers;
      if (to) store_steps(values, to + sums_offset(n + number / parts) * parts + number % parts, t, parts);
    });
  }

  void store_gate_sums(int64_t n, int states) const {
    S* to = static_cast<S*>(item.plan.dgate);
    for (int j = 0; to && j < states; ++j) {
      for (int64_t t = 0; t < item.steps; t += kLanes) {
        Vec<S> rows[kLanes];
        for (int i = 0; i < kLanes; ++i) {
          rows[i] = t + i < item.steps ? sums.gate[(t + i) * states + j] : Vec<S>{};
        }
        store_steps(sum_lanes<S>(rows), to + sums_offset(n + j), t, 1);
      }
    }
  }

  void store_chunk(int64_t block) {
    const ScanPlan& plan = item.plan;
    const int64_t at = block * kScanChunk;
    StepSum<S> sum;
    for (int64_t t = at; t < at + item.steps; ++t) {
      if (plan.softplus) all_ddt[t] = all_ddt[t] * softplus_slope<S>(dt[t]);
      sum.add(t, all_ddt[t]);
    }
    dbias[block] = dbias[block] + sum.total();
    item.store_block(plan.du, block, all_du + at);
    item.store_block(plan.ddelta, block, all_ddt + at);
    if (plan.z.data) {
      for (int64_t t = at; t < at + item.steps; ++t) all_y[t] = all_y[t] * dout_slope[t];
      item.store_block(plan.dz, block, all_y + at);
    }
  }
};

template <class S, bool kComplex, bool kZoh, bool kGeneral, int kStates>
void pass(Backward<S>& sweep, int64_t n) {
  constexpr int kParts = kComplex ? 2 : 1;
  const ScanItem<S>& item = sweep.item;
  const int64_t number = n / sweep.passes.states;
  sweep.sums.template clear<kStates * kParts, kStates, kGeneral>(item.steps);
  for (int64_t b = 0; b < item.blocks; ++b) {
    const int64_t row = b * item.state_parts + n * kParts, at = b * kScanChunk;
    for (int j = 0; j < kStates * kParts; ++j) sweep.tape.h[j] = sweep.start[row + j];
    advance<S, kComplex, kZoh, kGeneral, kStates, true>(item, row, n, sweep.dt + at, sweep.x + at,
                                                        sweep.start + row, sweep.y + at, sweep.tape,
                                                        sweep.ahead_to_read(b, number));
    const RetreatTiles<S> tiles{sweep.dt + at, sweep.x + at, sweep.dy + at, sweep.du + at, sweep.ddt + at};
    retreat<S, kComplex, kZoh, kGeneral, kStates>(item, row, n, tiles, sweep.tape, sweep.sums,
                                                  sweep.over_time, sweep.ahead_to_write(b, number));
  }
  sweep.template store_weight_sums<kStates * kParts>(n);
  if constexpr (kGeneral) sweep.store_gate_sums(n, kStates);
}

// Runs the items [begin, end) in `scratch`; without scratch, returns the bytes it needs.
template <class S>
int64_t sweep(const ScanPlan& plan, int64_t begin, int64_t end, void* scratch, const Passes<S>& kind) {
  Arena<S> arena{static_cast<Vec<S>*>(scratch)};
  Backward<S> backward(plan, arena, kind);
  if (scratch) {
    for (int64_t i = begin; i < end; ++i) backward.run(i);
  }
  return arena.used * static_cast<int64_t>(sizeof(Vec<S>));
}

template <class S, bool kComplex, bool kZoh, bool kGeneral>
int64_t run(const ScanPlan& plan, int64_t begin, int64_t end, void* scratch) {
  constexpr int kStates = kBackwardStates<S, kComplex>;
  return sweep<S>(
      plan, begin, end, scratch,
      {&pass<S, kComplex, kZoh, kGeneral, kStates>, &pass<S, kComplex, kZoh, kGeneral, 1>, kStates});
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

int64_t selective_scan_backward(const ScanPlan& plan, int64_t begin, int64_t end, void* scratch) {
  return with_lane_type(plan.float64,
                        [&](auto lane) { return pick_field<decltype(lane)>(plan, begin, end, scratch); });
}

}  // namespace mamba_aot::cpu::MAMBA_AOT_ISA
