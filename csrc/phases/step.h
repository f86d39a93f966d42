// One step of one thread of the elementwise kernel: which elements take part, load, functor, store.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../core/reduce.h"
#include "generate.h"
#include "registers.h"
#include "table.h"

namespace sk::phases {

template <class... S>
constexpr int widest(StreamList<S...>) {
  int bytes = 1;
  ((bytes = int(sizeof(typename S::Storage)) > bytes ? int(sizeof(typename S::Storage)) : bytes),
   ...);
  return sizeof...(S) == 0 ? 4 : bytes;
}
template <class... S>
constexpr int bytes_read(StreamList<S...>) {
  return (0 + ... + (S::role == Role::kOut ? 0 : int(sizeof(typename S::Value))));
}

// How many elements a thread works on at a time: U groups of V. A group fills a 16-byte access of
// the widest stream; U keeps several loads in flight without passing 64 registers.
template <class Op>
struct Shape {
  using T = Traits<Op>;
  static constexpr bool kSum = Op::kReduce == Reduce::kSum;
  static constexpr int kFit = 16 / widest(typename Op::Lists{});
  static constexpr int V = kSum || kFit < 4 ? kLanes / kThreads : kFit;
  static constexpr int kRegisters = V * bytes_read(typename Op::Lists{}) / 4;  // of one group
  static constexpr int kLoads = kRegisters <= 8 ? 4 : (kRegisters <= 12 ? 2 : 1);
  static constexpr int kNormals = kSum && Op::Lists::size > 0 ? 4 : 8;  // one or two Philox calls
  static constexpr int kSigned = V == 4 ? 8 : 16;
  static constexpr int kElements = !T::kRandom ? 16 : (T::kSigns ? kSigned : kNormals);  // at most
  static constexpr int kMany = kElements / V > 1 ? kElements / V : 1;
  static constexpr int U = T::kInput ? 1 : (T::kRandom || kMany < kLoads ? kMany : kLoads);
  static constexpr int kStride = kThreads * V;  // between groups of a thread
  static constexpr int kStep = kStride * U;     // elements of a block at a time
  static constexpr uint32_t kAll = (1u << V) - 1u;
};
static_assert(kThreads * kSignsPerBlock == kChunkSize);

template <class Op>
struct Shared {
  typename Op::Math lanes[Op::kReduce == Reduce::kSum ? kLanes : 1];
  int32_t counts[Op::kReduce == Reduce::kCount ? kThreads : 1];
  alignas(16) uint32_t words[Traits<Op>::kSigns ? kSignWords : 1];
};

template <class Op>
using MathOf = typename Op::Math;

// What a thread keeps across barriers.
template <class Op>
struct Thread {
  using Math = typename Op::Math;
  Math lanes[kLanes / kThreads];
  int32_t count;
  Math s[Shape<Op>::U][Shape<Op>::V];
};

// U groups of one thread, the step that begins at element `first` of the chunk. kWhole: all groups
// of all threads exist and are aligned, and the loads come first, to be in flight together.
// Otherwise one group at a time, element by element.
template <class Op, bool kMasked, bool kWhole, class Memory>
struct Step {
  using F = Shape<Op>;
  using Lists = typename Op::Lists;
  static constexpr int V = F::V, U = F::U;

  const Memory& memory;
  const View<Op, kMasked> block;
  int at;            // first element of group 0, counted in the chunk; signed, so that the offsets
                     // of the other groups become immediates of the access
  uint32_t bits[U];  // mask bits of the groups of a whole step
  Registers<Lists, V, kWhole ? U : 1> streams;

  SK_HD Step(const Memory& m, const View<Op, kMasked>& b, int first, int thread)
      : memory(m), block(b.reloaded()), at(first + thread * V) {
    SK_UNROLLED
    for (int u = 0; u < U; ++u) bits[u] = kMasked && kWhole ? masked(u) : F::kAll;
  }
  SK_HD int element(int u) const { return at + u * F::kStride; }
  SK_HD uint32_t existing(int u) const {
    const int left = block.size - element(u);
    return left >= V ? F::kAll : (left <= 0 ? 0u : (1u << left) - 1u);
  }
  SK_HD uint32_t masked(int u) const {
    if constexpr (kMasked) {
      const uint32_t word = memory.load(block.mask() + (at >> 5) + u * (F::kStride / 32));
      return ((word ^ mask_flip<Op>()) >> (at & 31)) & F::kAll;
    } else {
      return F::kAll;
    }
  }
  // nothing to read, write or add
  SK_HD bool idle() const {
    if constexpr (!kWhole) return at >= block.size;
    if (!kMasked || block.saved()) return false;
    uint32_t any = 0;
    SK_UNROLLED
    for (int u = 0; u < U; ++u) any |= bits[u];
    return any == 0;
  }
  template <class Stream>
  SK_HD char* address(char* base, const Stream&, int u) const {
    return base + int64_t(element(u)) * int64_t(sizeof(typename Stream::Storage));
  }

  SK_HD void load() {
    if constexpr (!kWhole) return;
    streams.each([&](auto& stream) SK_INLINED {
      using S = std::remove_reference_t<decltype(stream)>;
      if constexpr (!S::kOut) {
        const bool saved = S::kIndex == 0 && block.saved();
        fetch(stream, block.template data<S>(S::kIndex), saved);
      }
    });
    if constexpr (Traits<Op>::kBackup) {
      if (block.saved()) save(streams.template at<0>());
    }
  }
  template <class Stream>
  SK_HD void fetch(Stream& stream, char* base, bool saved) {
    // a conditional load keeps the registers of the step before alive, which these cannot afford
    constexpr bool kAlways = Traits<Op>::kRandom;
    SK_UNROLLED
    for (int u = 0; u < U; ++u) {
      if (kMasked && !kAlways && !saved && bits[u] == 0) continue;  // leave it in memory
      load_vector<typename Stream::Storage, V>(memory, address(base, stream, u), stream.raw[u]);
    }
  }
  template <class Stream>
  SK_HD void save(const Stream& stream) {
    using Storage = typename Stream::Storage;
    char* backup = block.template backup<Stream>();
    if constexpr (Stream::kOut) {  // not loaded yet
      Stream old;
      fetch(old, block.template data<Stream>(Stream::kIndex), true);
      SK_UNROLLED
      for (int u = 0; u < U; ++u) {
        store_vector<Storage, V>(memory, address(backup, stream, u), old.raw[u]);
      }
    } else {
      SK_UNROLLED
      for (int u = 0; u < U; ++u) {
        store_vector<Storage, V>(memory, address(backup, stream, u), stream.raw[u]);
      }
    }
  }

  template <class Functor>
  SK_HD void finish(const Functor& functor, Thread<Op>& state) {
    if constexpr (!kWhole) return finish_groups(functor, state);
    if (!functor.enabled()) return;
    SK_UNROLLED
    for (int u = 0; u < U; ++u) {
      if (kMasked && bits[u] == 0) continue;
      compute(functor, u, bits[u], state);
      streams.each([&](auto& stream) SK_INLINED { write(stream, u, bits[u]); });
    }
  }
  template <class Functor>
  SK_HD void finish_groups(const Functor& functor, Thread<Op>& state) {
    if constexpr (Traits<Op>::kRandom) {  // s is indexed by u and has to stay in registers
      SK_UNROLLED
      for (int u = 0; u < U; ++u) finish_group(functor, u, state);
    } else {
      SK_UNROLL(1)
      for (int u = 0; u < U; ++u) finish_group(functor, u, state);
    }
  }
  template <class Functor>
  SK_HD void finish_group(const Functor& functor, int u, Thread<Op>& state) {
    const uint32_t exist = existing(u);
    if (exist == 0) return;
    const uint32_t live = functor.enabled() ? exist & masked(u) : 0u;
    streams.each([&](auto& stream) SK_INLINED { fetch_elements(stream, u, exist, live); });
    if (live == 0) return;
    compute(functor, u, live, state);
    streams.each([&](auto& stream) SK_INLINED { write(stream, u, live); });
  }
  template <class Stream>
  SK_HD void fetch_elements(Stream& stream, int u, uint32_t exist, uint32_t live) {
    using Storage = typename Stream::Storage;
    const char* p = address(block.template data<Stream>(Stream::kIndex), stream, u);
    if constexpr (Traits<Op>::kBackup && Stream::kIndex == 0) {
      load_elements<Storage, V>(memory, p, block.saved() ? exist : live, stream.raw[0]);
      if (!block.saved()) return;
      store_elements<Storage, V>(memory, address(block.template backup<Stream>(), stream, u), exist,
                                 stream.raw[0]);
    } else if constexpr (!Stream::kOut) {
      load_elements<Storage, V>(memory, p, live, stream.raw[0]);
    }
  }

  template <class Functor>
  SK_HD void compute(const Functor& functor, int u, uint32_t live, Thread<Op>& state) {
    SK_UNROLLED
    for (int i = 0; i < V; ++i) {
      const auto result = call(functor, u, i, live, state);
      const bool counts = (kWhole && !kMasked) || ((live >> i) & 1u);
      if constexpr (Op::kReduce == Reduce::kSum) {
        state.lanes[i] = counts ? state.lanes[i] + result : state.lanes[i];
      }
      if constexpr (Op::kReduce == Reduce::kCount) state.count += counts ? result : 0;
    }
  }
  template <class Functor>
  SK_HD auto call(const Functor& functor, int u, int i, uint32_t live, const Thread<Op>& state) {
    const int r = kWhole ? u : 0;
    if constexpr (Traits<Op>::kRandom) {
      return streams.call(functor, r, i, state.s[u][i]);
    } else if constexpr (Traits<Op>::kInput) {
      const int64_t index = block.begin + element(u) + i;
      MathOf<Op> x = 0;
      if ((live >> i) & 1u) x = computed(Op{}, functor, memory, block, index);
      return streams.call(functor, r, i, x);
    } else {
      return streams.call(functor, r, i);
    }
  }
  template <class Stream>
  SK_HD void write(Stream& stream, int u, uint32_t live) {
    using Storage = typename Stream::Storage;
    if constexpr (!Stream::kIn) {
      char* p = address(block.template data<Stream>(Stream::kIndex), stream, u);
      if (kWhole && (!kMasked || live == F::kAll)) {
        store_vector<Storage, V>(memory, p, stream.raw[kWhole ? u : 0]);
      } else {
        store_elements<Storage, V>(memory, p, live, stream.raw[kWhole ? u : 0]);
      }
    }
  }
};

}  // namespace sk::phases
