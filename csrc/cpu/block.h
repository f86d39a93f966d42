// One block of up to kBlock elements: how a stream's memory and a functor's registers meet.
//
// A stream is worked on in place where its type is the type of the math and every element is
// written. Otherwise it goes through a buffer in L1: to convert 16-bit types, to leave masked-out
// entries alone, to come from elsewhere, or to be streamed past the caches (core/simd_store.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>

#include "../core/macros.h"
#include "../core/simd_store.h"
#include "../functors/streams.h"

namespace sk::cpu {

constexpr int kBlock = 256;  // elements: larger buffers lose bandwidth (docs/performance.md)
// normals of a block, and of one more call where it begins inside one; whole cache lines
constexpr int kNoise = kBlock + int(kStreamAlign / sizeof(float));

// How far ahead of a block what it reads is asked for. The hardware does so by itself for a loop
// that only walks, not for one that turns to buffers, sums or random numbers between its reads.
constexpr int kAheadBytes = 4096;

// A block's elements from p on, into the caches.
template <class T>
SK_HD void fetch(const T* p) {
  const char* bytes = reinterpret_cast<const char*>(p);
  for (int i = 0; i < kBlock * int(sizeof(T)); i += int(kStreamAlign))
    __builtin_prefetch(bytes + i);
}

// Elements as integers, which a choice between them needs to be vectorised.
template <size_t kBytes>
struct RawOf;
template <>
struct RawOf<1> {
  typedef uint8_t type __attribute__((may_alias));
};
template <>
struct RawOf<2> {
  typedef uint16_t type __attribute__((may_alias));
};
template <>
struct RawOf<4> {
  typedef uint32_t type __attribute__((may_alias));
};
template <>
struct RawOf<8> {
  typedef uint64_t type __attribute__((may_alias));
};

// out[i] = keep[i] ? now[i] : old[i], by bits
template <class T>
SK_HD void choose_raw(const T* now, const T* old, const uint32_t* keep, int n, T* out) {
  using Raw = typename RawOf<sizeof(T)>::type;
  // not auto: deduction would drop may_alias
  const Raw* a = reinterpret_cast<const Raw*>(now);
  const Raw* b = reinterpret_cast<const Raw*>(old);
  Raw* raw = reinterpret_cast<Raw*>(out);
#pragma omp simd
  for (int i = 0; i < n; ++i) {
    // both are loaded: a choice of loads becomes masked loads, three times as slow from memory
    const Raw mask = Raw(0) - Raw(keep[i]);
    raw[i] = (a[i] & mask) | (b[i] & ~mask);
  }
}

struct BlockContext {
  int n;                 // elements in this block
  const uint32_t* keep;  // 0 or 1 per element; null without a mask
  StreamCopy stream;     // null: plain stores
  const void* source;    // where stream 0 is read from, if not from memory
};

SK_HD bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % kStreamAlign == 0; }

SK_HD void copy_out(void* dst, const void* src, size_t bytes, StreamCopy stream) {
  if (stream && bytes % kStreamAlign == 0 && aligned(dst) && aligned(src)) {
    stream(dst, src, bytes);
  } else {
    std::memcpy(dst, src, bytes);
  }
}

// kSourced: read from block.source, and written without being read
template <class S, bool kMasked, bool kSourced>
struct BlockStream {
  using Storage = typename S::Storage;
  using Value = typename S::Value;
  static constexpr bool kSameType = std::is_same_v<Storage, Value>;
  static constexpr bool kReads = S::role != Role::kOut;
  static constexpr bool kWrites = S::role != Role::kIn;

  // Where the functor's values come from and go to; a copy of it, since a loop's stores could move
  // a member.
  struct Ends {
    const Value* from;
    Value* to;
    SK_HD Value get(int i) const {
      if constexpr (kReads) {
        return from[i];
      } else {
        return Value(0);
      }
    }
    SK_HD void put(int i, Value value) const {
      if constexpr (kWrites) to[i] = value;
    }
  };
  Storage* memory;
  Ends ends;
  alignas(kStreamAlign) Value buffer[kBlock];

  SK_HD BlockStream() {}  // not defaulted: std::tuple would zero the buffer of every block

  SK_HD void open(void* base, int64_t first, const BlockContext& block) {
    memory = static_cast<Storage*>(base) + first;
    const auto* source = kSourced ? static_cast<const Storage*>(block.source) : memory;
    ends = {buffer, buffer};
    if constexpr (kSameType) {
      ends.from = source;
      const bool past = kSourced || (S::role == Role::kOut && block.stream && block.n == kBlock);
      if (!(kWrites && kMasked) && !past) ends.to = memory;
    } else if constexpr (kReads) {
#pragma omp simd
      for (int i = 0; i < block.n; ++i) buffer[i] = load(source[i]);
    }
  }

  SK_HD void close(const BlockContext& block) {
    if constexpr (kWrites) {
      if (ends.to != buffer) return;
      if constexpr (kMasked) {
        if constexpr (kSameType) {
          choose_raw(buffer, memory, block.keep, block.n, memory);
        } else {
          alignas(kStreamAlign) Storage narrow[kBlock];
#pragma omp simd
          for (int i = 0; i < block.n; ++i) narrow[i] = store<Storage>(buffer[i]);
          choose_raw(narrow, memory, block.keep, block.n, memory);
        }
      } else if constexpr (kSameType) {
        copy_out(memory, buffer, block.n * sizeof(Storage), block.stream);
      } else if ((kSourced || S::role == Role::kOut) && block.stream) {
        alignas(kStreamAlign) Storage narrow[kBlock];
#pragma omp simd
        for (int i = 0; i < block.n; ++i) narrow[i] = store<Storage>(buffer[i]);
        copy_out(memory, narrow, block.n * sizeof(Storage), block.stream);
      } else {
#pragma omp simd
        for (int i = 0; i < block.n; ++i) memory[i] = store<Storage>(buffer[i]);
      }
    }
  }
};

// What becomes of a functor's results.
struct NoResults {};
// To be counted.
struct Flags {
  int32_t* flags;
  SK_HD void put(int i, int32_t flag) const { flags[i] = flag; }
};
// Added to a chunk's partial sums at once: a buffer between the loops costs time.
template <class Math, bool kSkips>
struct Lanes {
  Math* lanes;
  const uint32_t* keep;
  SK_HD void put(int i, Math x) const {
    lanes[i] = lanes[i] + (kSkips && !keep[kSkips ? i : 0] ? Math(0) : x);
  }
};

template <class Lists, bool kMasked, bool kSourced, class Indices>
struct BlockStreamSet;

// kSourced: stream 0 comes from block.source
template <class... S, bool kMasked, bool kSourced, size_t... kNumbers>
struct BlockStreamSet<StreamList<S...>, kMasked, kSourced, std::index_sequence<kNumbers...>> {
  std::tuple<BlockStream<S, kMasked, kSourced && kNumbers == 0>...> streams;

  // Asks for what the block at `first` reads.
  static SK_HD void fetch_ahead(void* const* bases, int64_t first) {
    (fetch_stream<S>(bases[kNumbers], first), ...);
  }
  template <class Stream>
  static SK_HD void fetch_stream(const void* base, int64_t first) {
    if constexpr (Stream::role != Role::kOut)
      fetch(static_cast<const typename Stream::Storage*>(base) + first);
  }

  SK_HD void open(void* const* bases, int64_t first, const BlockContext& block) {
    each([&](auto& s, size_t i) __attribute__((always_inline)) { s.open(bases[i], first, block); });
  }
  SK_HD void close(const BlockContext& block) {
    each([&](auto& s, size_t) __attribute__((always_inline)) { s.close(block); });
  }
  template <class F>
  SK_HD void each(F f) {
    each_impl(f, std::index_sequence_for<S...>{});
  }
  template <class F, size_t... I>
  SK_HD void each_impl([[maybe_unused]] F f, std::index_sequence<I...>) {
    (f(std::get<I>(streams), I), ...);
  }

  // out.put(i, functor(generated[i], x0[i], x1[i], ...)) for n elements
  template <class Functor, class Generated, class Results>
  SK_HD void run(const Functor& functor, int n, const Generated* generated, Results out) {
    loop(functor, n, generated, out, std::get<kNumbers>(streams).ends...);
  }
  template <class Functor, class Generated, class Results, class... Ends>
  static SK_HD void loop(const Functor& functor, int n, const Generated* generated, Results out,
                         Ends... x) {
#pragma omp simd
    for (int i = 0; i < n; ++i) {
      [&](typename S::Value... values) SK_INLINED {
        const auto step = [&](auto... first) SK_INLINED {
          if constexpr (std::is_same_v<Results, NoResults>) {
            functor(first..., values...);
          } else {
            out.put(i, functor(first..., values...));
          }
        };
        if constexpr (std::is_void_v<Generated>) {
          step();
        } else {
          step(generated[i]);
        }
        (x.put(i, values), ...);
      }(x.get(i)...);
    }
  }
};

template <class Lists, bool kMasked, bool kSourced>
using BlockStreams =
    BlockStreamSet<Lists, kMasked, kSourced, std::make_index_sequence<Lists::size>>;

// 32 mask bits to 32 words of 0 or 1; the shifts vectorise
SK_HD void expand_mask(const uint32_t* words, int n, uint32_t* keep, uint32_t flip = 0) {
  for (int w = 0; w * 32 < n; ++w) {
    const uint32_t word = words[w] ^ flip;
#pragma omp simd
    for (int i = 0; i < 32; ++i) keep[32 * w + i] = (word >> i) & 1u;
  }
}

SK_HD bool any_bit(const uint32_t* words, int n, uint32_t flip = 0) {
  uint32_t any = 0;
  for (int w = 0; w * 32 < n; ++w) any |= words[w] ^ flip;
  return any != 0;
}

}  // namespace sk::cpu
