// What one thread holds of the streams: U groups of V consecutive elements, moved by 16-byte
// accesses where a group is whole and aligned, else element by element.
//
// All memory goes through a Memory: load(p), store(p, value), add(p, value). On the device these
// are plain accesses; the host harness checks bounds, alignment and races in them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "../core/math.h"
#include "../functors/streams.h"

namespace sk::phases {

template <int kBytes>
struct alignas(kBytes) Packet {
  uint32_t words[kBytes / 4];
};

// N elements from or to an address that is a multiple of their size (at most 16 bytes at a time)
template <class T, int N, class Memory>
SK_HD void load_vector(const Memory& memory, const char* p, T* out) {
  constexpr int kBytes = int(N * sizeof(T));
  constexpr int kPacket = kBytes < 16 ? kBytes : 16;
  SK_UNROLLED
  for (int i = 0; i < kBytes / kPacket; ++i) {
    const auto packet = memory.load(reinterpret_cast<const Packet<kPacket>*>(p) + i);
    std::memcpy(reinterpret_cast<char*>(out) + i * kPacket, &packet, kPacket);
  }
}

template <class T, int N, class Memory>
SK_HD void store_vector(const Memory& memory, char* p, const T* x) {
  constexpr int kBytes = int(N * sizeof(T));
  constexpr int kPacket = kBytes < 16 ? kBytes : 16;
  SK_UNROLLED
  for (int i = 0; i < kBytes / kPacket; ++i) {
    Packet<kPacket> packet;
    std::memcpy(&packet, reinterpret_cast<const char*>(x) + i * kPacket, kPacket);
    memory.store(reinterpret_cast<Packet<kPacket>*>(p) + i, packet);
  }
}

// N elements of which those with their bit set exist
template <class T, int N, class Memory>
SK_HD void load_elements(const Memory& memory, const char* p, uint32_t bits, T* out) {
  SK_UNROLLED
  for (int i = 0; i < N; ++i) {
    out[i] = T{};
    if ((bits >> i) & 1u) out[i] = memory.load(reinterpret_cast<const T*>(p) + i);
  }
}

template <class T, int N, class Memory>
SK_HD void store_elements(const Memory& memory, char* p, uint32_t bits, const T* x) {
  SK_UNROLLED
  for (int i = 0; i < N; ++i) {
    if ((bits >> i) & 1u) memory.store(reinterpret_cast<T*>(p) + i, x[i]);
  }
}

// The elements with their bit set, from or to consecutive places.
template <class T, int N, class Memory>
SK_HD void load_packed(const Memory& memory, const char* p, uint32_t bits, T* out) {
  SK_UNROLLED
  for (int i = 0; i < N; ++i) {
    out[i] = T{};
    if (((bits >> i) & 1u) == 0) continue;
    out[i] = memory.load(reinterpret_cast<const T*>(p) + popcount(bits & ((1u << i) - 1u)));
  }
}

template <class T, int N, class Memory>
SK_HD void store_packed(const Memory& memory, char* p, uint32_t bits, const T* x) {
  SK_UNROLLED
  for (int i = 0; i < N; ++i) {
    if (((bits >> i) & 1u) == 0) continue;
    memory.store(reinterpret_cast<T*>(p) + popcount(bits & ((1u << i) - 1u)), x[i]);
  }
}

template <int kNumber, class S, int V, int U>
struct StreamRegisters {
  using Storage = typename S::Storage;
  using Value = typename S::Value;
  static constexpr int kIndex = kNumber;  // in the op's list of streams
  static constexpr bool kIn = S::role == Role::kIn, kOut = S::role == Role::kOut;

  Storage raw[U][V];
  Value x;  // the element at hand

  SK_HD void open(int u, int i) {
    if constexpr (S::role == Role::kOut) {
      x = Value(0);
    } else {
      x = sk::load(raw[u][i]);
    }
  }
  SK_HD void close(int u, int i) {
    if constexpr (S::role != Role::kIn) raw[u][i] = sk::store<Storage>(x);
  }
};

template <class Indices, class Lists, int V, int U>
struct RegisterSet;

template <size_t... I, class... S, int V, int U>
struct RegisterSet<std::index_sequence<I...>, StreamList<S...>, V, U>
    : StreamRegisters<int(I), S, V, U>... {
  // f(registers) for every stream
  template <class F>
  SK_HD void each(const F& f) {
    (f(static_cast<StreamRegisters<int(I), S, V, U>&>(*this)), ...);
  }
  template <size_t kAt>
  SK_HD auto& at() {
    using S0 = typename StreamList<S...>::template At<kAt>;
    return static_cast<StreamRegisters<int(kAt), S0, V, U>&>(*this);
  }
  // the functor's result for element i of group u
  template <class Functor, class... Computed>
  SK_HD auto call(const Functor& functor, int u, int i, Computed... computed) {
    (static_cast<StreamRegisters<int(I), S, V, U>&>(*this).open(u, i), ...);
    if constexpr (std::is_void_v<decltype(functor(computed..., lvalue<S>()...))>) {
      functor(computed..., static_cast<StreamRegisters<int(I), S, V, U>&>(*this).x...);
      (static_cast<StreamRegisters<int(I), S, V, U>&>(*this).close(u, i), ...);
      return 0;
    } else {
      const auto result =
          functor(computed..., static_cast<StreamRegisters<int(I), S, V, U>&>(*this).x...);
      (static_cast<StreamRegisters<int(I), S, V, U>&>(*this).close(u, i), ...);
      return result;
    }
  }

 private:
  template <class Stream>
  static typename Stream::Value& lvalue();
};

template <class Lists, int V, int U>
using Registers = RegisterSet<std::make_index_sequence<Lists::size>, Lists, V, U>;

}  // namespace sk::phases
