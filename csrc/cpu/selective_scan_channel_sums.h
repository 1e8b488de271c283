// What the backward of the scan sums over channels, step by step: the gradients of B, C and the gate. Blocks
// of channels take turns, so sums stay in memory between them; those of B and C are folded over lanes first,
// as many numbers to a vector as it holds, or they would fill the cache nearest the core.
#pragma once

#include "cpu/simd.h"

namespace mamba_aot::cpu::MAMBA_AOT_ISA {

// Folds kCount vectors until none or no lane is left over: lanes with the bits of kStep and below add up.
template <class S, int kCount, int kStep>
MAMBA_AOT_INLINE void fold_lanes(const Vec<S>* vectors, Vec<S>* sums) {
  if constexpr (kCount == 1 || kStep == 0) {
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) sums[i] = sums[i] + vectors[i];
  } else {
    Vec<S> half[kCount / 2];
#pragma GCC unroll 8
    for (int i = 0; i < kCount / 2; ++i) {
      half[i] = add_halves<S, kStep>(vectors[i], vectors[i + kCount / 2]);
    }
    fold_lanes<S, kCount / 2, kStep / 2>(half, sums);
  }
}

// kNumbers numbers of B and as many of C, a power of two. Number q of all lies in vector q % kVectors of a
// step, in kShare lanes from q / kVectors * kShare on.
template <class S, int kNumbers>
struct WeightSums {
  static constexpr int kLanes = Simd<S>::kLanes, kAll = 2 * kNumbers;
  static constexpr int kVectors = kAll > kLanes ? kAll / kLanes : 1;
  static constexpr int kShare = kAll > kLanes ? 1 : kLanes / kAll;
  // One number of B and one of C.
  Vec<S> pairs[kNumbers];

  MAMBA_AOT_INLINE void put(int number, Vec<S> of_B, Vec<S> of_C) {
    pairs[number] = add_halves<S, kLanes / 2>(of_B, of_C);
  }
  MAMBA_AOT_INLINE void add_to(Vec<S>* step) const { fold_lanes<S, kNumbers, kLanes / 4>(pairs, step); }

  // Calls put(number, t, sums) with what lies in `steps` of steps [t, t + kLanes), for every number of B,
  // then C.
  template <class Put>
  static void unfold(const Vec<S>* steps, int64_t count, const Put& put) {
    for (int64_t t = 0; t < count; t += kLanes) {
      const int64_t rest = count - t;
      for (int i = 0; i < kVectors; ++i) {
        Vec<S> rows[kLanes];
#pragma GCC unroll 16
        for (int k = 0; k < kLanes; ++k) rows[k] = k < rest ? steps[(t + k) * kVectors + i] : Vec<S>{};
        transpose<S>(rows);
        for (int q = i; q < kAll; q += kVectors) {
          const int lane = q / kVectors * kShare;
          Vec<S> sum = rows[lane];
          for (int k = 1; k < kShare; ++k) sum = sum + rows[lane + k];
          put(q, t, sum);
        }
      }
    }
  }
};

template <class S>
struct ChannelSums {
  // Of a step the vectors of WeightSums, and one a state.
  Vec<S>*weights, *gate;

  template <int kNumbers, int kStates, bool kGate>
  void clear(int64_t steps) const {
    for (int64_t i = 0; i < steps * WeightSums<S, kNumbers>::kVectors; ++i) weights[i] = Vec<S>{};
    // What is not summed up stays out of the cache, which the tapes nearly fill.
    if constexpr (!kGate) return;
    for (int64_t i = 0; i < steps * kStates; ++i) gate[i] = Vec<S>{};
  }
};

}  // namespace mamba_aot::cpu::MAMBA_AOT_ISA
