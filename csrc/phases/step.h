// One step of one thread of the elementwise kernel: which elements take part, load, functor, store.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../core/reduce.h"
#include "generate.h"
#include "packed.h"
#include "registers.h"
#include "shape.h"
#include "table.h"

namespace sk::phases {

// U groups of one thread, the step that begins at element `first` of the chunk. kWhole: all groups
// of all threads exist and are aligned, and the loads come first, to be in flight together.
// Otherwise one group at a time, element by element.
template <class Op, bool kMasked, bool kWhole, class Memory>
struct Step {
  using F = Shape<Op>;
  using Lists = typename Op::Lists;
  static constexpr int V = F::V, U = F::U;
  static constexpr bool kPacked = Traits<Op>::kPacked;
  using PlacesOf = decltype(Shared<Op>::places);

  const Memory& memory;
  const View<Op, kMasked> block;
  const PlacesOf* places;
  int at;            // first element of group 0, counted in the chunk; signed, so that the offsets
                     // of the other groups become immediates of the access
  uint32_t bits[U];  // mask bits of the groups of a whole step
  Registers<Lists, V, kWhole ? U : 1> streams;

  SK_HD Step(const Memory& m, const View<Op, kMasked>& b, const PlacesOf* p, int first, int thread)
      : memory(m), block(b.reloaded()), places(p), at(first + thread * V) {
    SK_UNROLLED
    for (int u = 0; u < U; ++u) bits[u] = kMasked && kWhole ? masked(u) : F::kAll;
  }
  SK_HD int element(int u) const { return at + u * F::kStride; }
  SK_HD uint32_t existing(int u) const {
    const int left = block.size - element(u);
    return left >= V ? F::kAll : (left <= 0 ? 0u : (1u << left) - 1u);
  }
  SK_HD int word(int u) const { return (at >> 5) + u * (F::kStride / 32); }
  SK_HD uint32_t masked(int u) const {
    if constexpr (kMasked) {
      return ((memory.load(block.mask() + word(u)) ^ mask_flip<Op>()) >> (at & 31)) & F::kAll;
    } else {
      return F::kAll;
    }
  }
  // where the first entry of group u stands in the packed backup
  template <class Stream>
  SK_HD char* entry(const Stream&, int u) const {
    const uint32_t below = memory.load(block.mask() + word(u)) & ((1u << (at & 31)) - 1u);
    const int before = memory.load(places->ones + word(u)) + popcount(below);
    const int64_t place = memory.load(&places->first) + before;
    return block.entries() + place * int64_t(sizeof(typename Stream::Storage));
  }
  // nothing to read, write or add
  SK_HD bool idle() const {
    if constexpr (!kWhole) return at >= block.size;
    if (!kMasked || kRestores<Op> || block.saved()) return false;
    uint32_t any = 0;
    SK_UNROLLED
    for (int u = 0; u < U; ++u) any |= bits[u];
    return any == 0;
  }
  template <class Stream>
  SK_HD char* address(char* base, const Stream&, int u) const {
    return base + int64_t(element(u)) * int64_t(sizeof(typename Stream::Storage));
  }

  template <class Functor>
  SK_HD void load(const Functor& functor) {
    if constexpr (!kWhole) return;
    streams.each([&](auto& stream) SK_INLINED {
      using S = std::remove_reference_t<decltype(stream)>;
      if constexpr (kFromBackup<Op> && S::kIndex == 0) {
        fetch_unperturbed(stream, kRestores<Op> && functor.enabled());
      } else if constexpr (!S::kOut) {
        if (kRestores<Op> && !functor.enabled()) return;
        const bool all = kRestores<Op> || (S::kIndex == 0 && block.saved());
        fetch(stream, block.template data<S>(S::kIndex), all);
      }
    });
    if constexpr (kSaves<Op> && kPacked) {
      save_packed(streams.template at<0>());
    } else if constexpr (kSaves<Op>) {
      if (block.saved()) save(streams.template at<0>());
    }
  }
  template <class Stream>
  SK_HD void fetch(Stream& stream, char* base, bool all) {
    // a conditional load keeps the registers of the step before alive, which these cannot afford
    constexpr bool kAlways = Traits<Op>::kRandom;
    SK_UNROLLED
    for (int u = 0; u < U; ++u) {
      if (kMasked && !kAlways && !all && bits[u] == 0) continue;  // leave it in memory
      load_vector<typename Stream::Storage, V>(memory, address(base, stream, u), stream.raw[u]);
    }
  }
  // The backup where the mask bit is 1; with all, what is in memory elsewhere.
  template <class Stream>
  SK_HD void fetch_unperturbed(Stream& stream, bool all) {
    using Storage = typename Stream::Storage;
    Storage saved[U][V];
    SK_UNROLLED
    for (int u = 0; u < U; ++u) {
      fetch_saved(stream, u, bits[u], saved[u]);
      if (!kMasked || !all || bits[u] == F::kAll) continue;
      char* base = block.template data<Stream>(Stream::kIndex);
      load_vector<Storage, V>(memory, address(base, stream, u), stream.raw[u]);
    }
    SK_UNROLLED
    for (int u = 0; u < U; ++u) {
      SK_UNROLLED
      for (int i = 0; i < V; ++i) {
        if (!kMasked || !all || ((bits[u] >> i) & 1u)) stream.raw[u][i] = saved[u][i];
      }
    }
  }
  template <class Stream>
  SK_HD void fetch_saved(const Stream& stream, int u, uint32_t live,
                         typename Stream::Storage* out) {
    using Storage = typename Stream::Storage;
    if (kMasked && live == 0) return;
    if constexpr (kPacked) {
      load_packed<Storage, V>(memory, entry(stream, u), live, out);
    } else {
      const char* p = address(block.template backup<Stream>(), stream, u);
      if constexpr (kWhole) {
        load_vector<Storage, V>(memory, p, out);
      } else {
        load_elements<Storage, V>(memory, p, live, out);
      }
    }
  }
  template <class Stream>
  SK_HD void save_packed(const Stream& stream) {
    SK_UNROLLED
    for (int u = 0; u < U; ++u) {
      if (bits[u] == 0) continue;
      store_packed<typename Stream::Storage, V>(memory, entry(stream, u), bits[u], stream.raw[u]);
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
    if (!functor.enabled()) {
      if constexpr (kRestores<Op>) {
        SK_UNROLLED
        for (int u = 0; u < U; ++u) write(streams.template at<0>(), u, bits[u]);
      }
      return;
    }
    SK_UNROLLED
    for (int u = 0; u < U; ++u) {
      const uint32_t live = kRestores<Op> ? F::kAll : bits[u];
      if (kMasked && live == 0) continue;
      compute(functor, u, live, state);
      streams.each([&](auto& stream) SK_INLINED { write(stream, u, live); });
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
    const uint32_t mine = exist & masked(u);
    const uint32_t live = functor.enabled() ? (kRestores<Op> ? exist : mine) : 0u;
    streams.each([&](auto& stream) SK_INLINED { fetch_elements(stream, u, exist, mine, live); });
    if (live == 0) {
      if constexpr (kRestores<Op>) write(streams.template at<0>(), u, mine);
      return;
    }
    compute(functor, u, live, state);
    streams.each([&](auto& stream) SK_INLINED { write(stream, u, live); });
  }
  // exist: in the tensor; mine: with mask bit 1; live: that take part
  template <class Stream>
  SK_HD void fetch_elements(Stream& stream, int u, uint32_t exist, uint32_t mine, uint32_t live) {
    using Storage = typename Stream::Storage;
    const char* p = address(block.template data<Stream>(Stream::kIndex), stream, u);
    if constexpr (kFromBackup<Op> && Stream::kIndex == 0) {
      Storage saved[V];
      fetch_saved(stream, u, mine, saved);
      load_elements<Storage, V>(memory, p, live & ~mine, stream.raw[0]);
      SK_UNROLLED
      for (int i = 0; i < V; ++i) {
        if ((mine >> i) & 1u) stream.raw[0][i] = saved[i];
      }
    } else if constexpr (kSaves<Op> && kPacked && Stream::kIndex == 0) {
      load_elements<Storage, V>(memory, p, mine, stream.raw[0]);
      if (mine == 0) return;
      store_packed<Storage, V>(memory, entry(stream, u), mine, stream.raw[0]);
    } else if constexpr (kSaves<Op> && Stream::kIndex == 0) {
      load_elements<Storage, V>(memory, p, block.saved() ? exist : live, stream.raw[0]);
      if (!block.saved()) return;
      store_elements<Storage, V>(memory, address(block.template backup<Stream>(), stream, u), exist,
                                 stream.raw[0]);
    } else if constexpr (!Stream::kOut) {
      load_elements<Storage, V>(memory, p, live, stream.raw[0]);
    }
  }

  // of group u, where the computed input is bits: they stand in one word
  SK_HD uint32_t input_bits(int u) const {
    if constexpr (Traits<Op>::kBits) {
      static_assert(32 % V == 0);
      const auto* words = reinterpret_cast<const uint32_t*>(block.input()) + block.begin / 32;
      return memory.load(words + (element(u) >> 5)) >> (element(u) & 31);
    }
    return 0;
  }
  template <class Functor>
  SK_HD void compute(const Functor& functor, int u, uint32_t live, Thread<Op>& state) {
    const uint32_t word = input_bits(u);
    SK_UNROLLED
    for (int i = 0; i < V; ++i) {
      const auto result = call(functor, u, i, live, word, state);
      const bool counts = (kWhole && !kMasked) || ((live >> i) & 1u);
      if constexpr (Op::kReduce == Reduce::kSum) {
        state.lanes[i] = counts ? state.lanes[i] + result : state.lanes[i];
      }
      if constexpr (Op::kReduce == Reduce::kCount) state.count += counts ? result : 0;
    }
  }
  template <class Functor>
  SK_HD auto call(const Functor& functor, int u, int i, uint32_t live, uint32_t word,
                  const Thread<Op>& state) {
    const int r = kWhole ? u : 0;
    if constexpr (Traits<Op>::kRandom) {
      return streams.call(functor, r, i, state.s[u][i]);
    } else if constexpr (Traits<Op>::kBits) {
      return streams.call(functor, r, i, MathOf<Op>((word >> i) & 1u));
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
