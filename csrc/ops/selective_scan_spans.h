// How the CUDA kernels of selective_scan split time: into spans that run at once, where rows and channels do
// not fill a GPU, and in the backward into launches, whose partial sums take memory.
#pragma once

#include <algorithm>
#include <cmath>

#include "generated/selective_scan.gen.h"
#include "ops/launch_arguments.h"
#include "ops/selective_scan.h"
#include "runtime/batch_invariant.h"
#include "runtime/launch.h"

namespace mamba_aot::cuda {
namespace spans {

// Each program goes through the ends of all spans before its own, or the adjoints of those behind it.
inline constexpr int64_t kMost = 16;
// The forward takes spans for so many channels of programs, three times as many as fill a GPU once.
inline constexpr int64_t kChannelsAtOnce = 3 * 8192;
// Fewer channels of packed sequences than this split: on an H100 2048 were faster in spans, 3072 without.
inline constexpr int64_t kPackedToSplit = 2400;
// The forward splits so many steps or more, into eight spans at first: on an H100 fewer were never faster.
inline constexpr int64_t kLeastToSplit = 1024;
inline constexpr int64_t kFirstSpans = 8;
// From there on a span has at least so many steps.
inline constexpr int64_t kLeastForward = 512;
// Partial sums of the backward may take this much memory, or as much as u does where that is more.
inline constexpr int64_t kPartialBytes = int64_t{32} << 20;
// Programs of the pass that finds spans' adjoints that run on a multiprocessor at once.
inline constexpr int64_t kPassAtOnce = 5;
// Chunks of a span that this pass cuts in two, for each piece costs the kernel after it some time.
inline constexpr int64_t kLeastToCut = 4;
// A launch adds up at most this many chunks in one fp32 number; more would cost digits.
inline constexpr int64_t kChunksInOneSum = 64;

}  // namespace spans

// Whether a multiprocessor has 160 KiB of shared memory or more, not 100; so has one of sm_87, which takes
// the images of sm_86.
inline bool has_room(int arch) { return arch == 80 || (arch >= 90 && arch < 120); }

// Into how many spans of how many steps the plain forward splits time.
struct Spans {
  int64_t count, steps;
};

// How many rows a forward kernel is chosen for.
inline int64_t rows_to_choose_by(const SelectiveScanSizes& s) { return batch_invariant() ? 1 : s.rows; }

// As many as fill the GPU, where rows and channels alone do not: fewer than SPLIT at 2048 to 5119 steps, than
// two thirds of it below, a quarter more beyond; of packed sequences a number of its own. `ends` is the
// launch before.
inline Spans forward_spans(const SelectiveScanSizes& s, const generated::SelectiveScanPlainFwd::Key& ends,
                           int32_t device) {
  using Kernel = generated::SelectiveScanPlainFwd;
  const Spans whole{1, round_up(s.length, kChunk)};
  // Sequences by ends share one row of time, and where they lie in it must not matter if batches must not.
  const bool by_ends = s.packing == Packing::by_ends;
  if (by_ends && batch_invariant()) return whole;
  const int64_t rows = rows_to_choose_by(s);
  const int64_t few = s.packed() ? spans::kPackedToSplit : Kernel::SPLIT(device);
  const int64_t limit = s.length < 2048 ? few * 2 / 3 : s.length < 5120 || s.packed() ? few : few * 5 / 4;
  if (s.length < spans::kLeastToSplit || rows * s.channels >= limit) return whole;
  const int64_t block_channels = Kernel::pick(ends, {}).CHANNELS;
  const int64_t blocks = s.groups * ceil_div(s.channels / s.groups, block_channels);
  const int64_t at_once = (by_ends ? 1 : rows) * blocks * block_channels;
  const int64_t most = std::clamp(s.length / spans::kLeastForward, spans::kFirstSpans, spans::kMost);
  const int64_t count = std::min(most, spans::kChannelsAtOnce / at_once);
  if (count < 2) return whole;
  const int64_t steps = round_up(ceil_div(s.length, count), kChunk);
  return {ceil_div(s.length, steps), steps};
}

// The backward's way through time: launches of so many chunks, in spans of `span` that run at once.
struct Launches {
  int64_t chunks, span;

  int64_t spans() const { return ceil_div(chunks, span); }
  // Those of all launches.
  int64_t parts(int64_t all_chunks) const {
    return all_chunks / chunks * spans() + ceil_div(all_chunks % chunks, span);
  }
};

// How many chunks one launch of the backward takes: all launches alike, and as few of them as the memory for
// planes of partial sums allows.
inline int64_t chunks_in_a_launch(const SelectiveScanSizes& s, const Tensor& u, int64_t blocks, bool gate) {
  const int64_t floats_a_step = blocks * s.batch * s.state * (2 * s.parts() + (gate ? 1 : 0));
  const int64_t u_bytes = s.batch * s.channels * s.length * (type_of(u) == ScalarType::Float ? 4 : 2);
  const int64_t chunks =
      std::max(spans::kPartialBytes, u_bytes) / std::max<int64_t>(1, floats_a_step * 4 * kChunk);
  const int64_t all = std::max<int64_t>(1, s.chunks());
  const int64_t most = std::clamp<int64_t>(chunks, 1, spans::kChunksInOneSum);
  return ceil_div(all, ceil_div(all, most));
}

// How many programs of the plain backward: shared memory has room for two a multiprocessor, or for one.
inline int64_t programs_at_once(int32_t device) {
  const int arch = runtime::arch_of(device);
  return (arch >= 90 && arch < 120 ? 2 : 1) * runtime::multiprocessors_of(device);
}

// Whether so many of them leave hardly any room.
inline bool fills_gpu(int64_t programs, int32_t device) {
  return 10 * programs >= 9 * programs_at_once(device);
}

// What a launch of the plain backward takes, in units of a chunk of as many programs as run at once. The
// factors are fitted to what 1 to 16 spans took on an H200.
inline double cost_of_launch(int64_t programs, int64_t chunks, int64_t span, int32_t device) {
  const int64_t at_once = programs_at_once(device);
  const int64_t parts = ceil_div(chunks, span), rest = programs * parts % at_once;
  // A program that has a multiprocessor for itself is faster.
  const int64_t multiprocessors = runtime::multiprocessors_of(device);
  const double last = rest == 0 ? 0.0 : at_once > multiprocessors && rest <= multiprocessors ? 0.65 : 1.0;
  const double own = static_cast<double>(span);
  const double cost = own * (static_cast<double>(programs * parts / at_once) + last);
  if (parts == 1) return cost;
  // The pass that finds the spans' adjoints: its length, its work, and what is paid once a span.
  const double passed = static_cast<double>(programs * (chunks - span)) / static_cast<double>(at_once);
  return cost + 0.2 * own + 0.2 * passed + 0.12 * static_cast<double>(parts);
}

// The same of `sequences` that share a launch by cu_seqlens, of lengths that only the device knows: in each
// span a program a block of channels for each of `rows`, most of which find nothing to do.
inline double cost_of_sequences(int64_t blocks, int64_t rows, double sequences, int64_t chunks, int64_t span,
                                int32_t device) {
  const double at_once = static_cast<double>(programs_at_once(device));
  const double parts = static_cast<double>(ceil_div(chunks, span)), all = static_cast<double>(chunks);
  // The longest sequence is not much longer than the mean; sequences end inside of chunks.
  const double longest = std::min(static_cast<double>(span), 1.25 * all / sequences);
  const double work = static_cast<double>(blocks) * (all + 0.5 * (sequences + parts - 1.0)) / at_once;
  const double idle = 0.1 * static_cast<double>(rows * blocks) * parts / at_once;
  const double cost = std::max(work, longest) + 0.25 * longest + idle;
  return parts == 1.0 ? cost : cost + 0.4 * longest + 0.1 * work + 0.12 * parts;
}

// The spans that take the least time.
template <class Cost>
Launches cheapest(int64_t chunks, const Cost& cost_of_span) {
  Launches best{chunks, chunks};
  double least = cost_of_span(chunks);
  for (int64_t count = 2; count <= std::min(spans::kMost, chunks); ++count) {
    const int64_t span = ceil_div(chunks, count);
    const double cost = cost_of_span(span);
    if (cost < least) {
      least = cost;
      best.span = span;
    }
  }
  return best;
}

inline Launches backward_launches(const SelectiveScanSizes& s, int64_t chunks, int64_t blocks,
                                  int32_t device) {
  if (s.packing != Packing::by_ends) {
    return cheapest(chunks,
                    [&](int64_t span) { return cost_of_launch(s.rows * blocks, chunks, span, device); });
  }
  if (batch_invariant()) return {chunks, chunks};
  const double share = static_cast<double>(chunks) / static_cast<double>(std::max<int64_t>(1, s.chunks()));
  const double sequences = std::max(1.0, static_cast<double>(s.rows) * share);
  return cheapest(chunks, [&](int64_t span) {
    return cost_of_sequences(blocks, s.rows, sequences, chunks, span, device);
  });
}

// Into how many pieces the pass that finds spans' adjoints cuts each: two, where spans are long and so few
// that some multiprocessors would be done before others, and none would be empty.
inline int32_t pieces_of_spans(const SelectiveScanSizes& s, int64_t blocks, int64_t chunks, int64_t span,
                               int32_t device) {
  const int64_t others = ceil_div(chunks, span) - 1, last = chunks - others * span;
  const bool few = others * s.rows * blocks < spans::kPassAtOnce * runtime::multiprocessors_of(device);
  return few && span >= spans::kLeastToCut && last > ceil_div(span, 2) ? 2 : 1;
}

// Whether the plain backward takes sequences by ends that begin and end with no state as one row, as it would
// by index: where their programs, one each, would not fill whole rounds. How long each is only the device
// knows.
inline bool walks_as_row(const SelectiveScanSizes& s, const SelectiveScanInputs& in) {
  if (s.packing != Packing::by_ends || s.empty() || batch_invariant()) return false;
  // Kernels that clear what no sequence has don't know float64.
  for (const Tensor* weight : {&in.B, &in.C}) {
    if (type_of(*weight) == ScalarType::Double) return false;
  }
  const int32_t device = in.u.get_device_index();
  const int64_t block_channels = generated::SelectiveScanPlainBwd::pick({}, {}).CHANNELS;
  const int64_t blocks = s.groups * ceil_div(s.channels / s.groups, block_channels);
  const int64_t chunks = chunks_in_a_launch(s, in.u, blocks, false);
  if (backward_launches(s, chunks, blocks, device).spans() > 1) return true;
  const double sequences = static_cast<double>(s.rows * chunks) / static_cast<double>(s.chunks());
  const double rounds =
      sequences * static_cast<double>(blocks) / static_cast<double>(programs_at_once(device));
  return rounds < 0.9 * std::ceil(rounds);
}

}  // namespace mamba_aot::cuda
