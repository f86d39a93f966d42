// How an elementwise op describes itself to for_each, on the CPU and in CUDA kernels alike.
//
// An op is a struct with
//   using Math     the type of the arithmetic (opmath of the parameters)
//   using Lists    StreamList of the tensors it walks, in the order of the functor's arguments;
//                  stream 0 is the one that may have a backup
//   kReduce        what the functor returns: nothing, a value to sum, or a 0/1 to count
//   kGenerated     whether a computed input (random numbers, mask words) comes first
//   kBackup        what it does with a backup of stream 0, if anything
//   kInverted      optional: it walks the entries whose mask bit is 0, not those whose bit is 1
//   bind(t)        the functor for tensor t of the list: scalars only, no pointers, no indices.
//                  Its enabled() says whether the op writes at all (a norm may not be finite).
// Loads, stores, tails, mask bits, backups and threads belong to for_each.
#pragma once

#include <cstddef>
#include <tuple>

#include "../core/types.h"

namespace sk {

enum class Role { kIn, kOut, kInOut };
enum class Reduce { kNone, kSum, kCount };

// kSaves: the call may come with a backup; the raw bits of stream 0 are copied into it before they
//   change, whether the functor is enabled or not. Whole: every entry. Packed: those with bit 1.
// kRestores: the call comes with a backup, and stream 0 enters the functor as it was when saved:
//   from the backup where the mask bit is 1 (everywhere without a mask), from memory elsewhere. The
//   mask chooses the source only; every entry takes part. With a disabled functor the raw bits go
//   back to memory, and nothing else is read or written.
// kFeeds: the call comes with a backup, and stream 0 enters as it was when saved, but entries with
//   bit 0 take no part: they are neither read nor written.
enum class Backup { kNone, kSaves, kRestores, kFeeds };

template <class Op>
constexpr Backup backup_of() {
  if constexpr (requires { Op::kBackup; }) {
    return Op::kBackup;
  } else {
    return Backup::kNone;
  }
}
template <class Op>
inline constexpr bool kSaves = backup_of<Op>() == Backup::kSaves;
template <class Op>
inline constexpr bool kRestores = backup_of<Op>() == Backup::kRestores;
template <class Op>
inline constexpr bool kFromBackup = kRestores<Op> || backup_of<Op>() == Backup::kFeeds;

template <class T, Role kRole>
struct Stream {
  using Storage = T;
  using Value = opmath_t<T>;
  static constexpr Role role = kRole;
};

template <class T>
using In = Stream<T, Role::kIn>;
template <class T>
using Out = Stream<T, Role::kOut>;
template <class T>
using InOut = Stream<T, Role::kInOut>;

template <class... S>
struct StreamList {
  static constexpr size_t size = sizeof...(S);
  template <size_t I>
  using At = std::tuple_element_t<I, std::tuple<S...>>;
};

// what a mask word is xor-ed with before the op sees it
template <class Op>
constexpr uint32_t mask_flip() {
  if constexpr (requires { Op::kInverted; }) {
    return Op::kInverted ? ~0u : 0u;
  } else {
    return 0u;
  }
}

struct AlwaysEnabled {
  SK_HD bool enabled() const { return true; }
};

}  // namespace sk
