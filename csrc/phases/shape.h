// How the elementwise kernel divides a chunk among threads, and what these share and keep.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../core/reduce.h"
#include "generate.h"
#include "packed.h"
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
constexpr int narrowest(StreamList<S...>) {
  int bytes = 16;
  ((bytes = int(sizeof(typename S::Storage)) < bytes ? int(sizeof(typename S::Storage)) : bytes),
   ...);
  return bytes;
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
  static constexpr int kWords = bytes_read(typename Op::Lists{}) / 4;  // registers of one element
  // one Philox call, or two where there is nothing else to hold
  static constexpr bool kHolds = Op::Lists::size > 1 || (kSum && Op::Lists::size > 0);
  static constexpr int kNormals = kHolds || T::kPacked ? 4 : 8;
  // 16-bit normals with a source or a packed backup take 8 bytes at a time: with 16 they spill on
  // sm_80 or sm_100, and it is instructions that bound them, not memory
  static constexpr bool kDraws = T::kRandom && !T::kSigns;
  static constexpr bool kSourced = Op::Lists::size > 1 || kFromBackup<Op> || T::kPacked;
  static constexpr int kGroup = kDraws && kSourced && kNormals < kFit ? kNormals : kFit;
  static constexpr int V = kSum || kFit < 4 || kFit * kWords > 24 ? kLanes / kThreads : kGroup;
  static constexpr int kRegisters = V * bytes_read(typename Op::Lists{}) / 4;  // of one group
  // a stream that comes from two places stands in registers twice; so does one of 16 bits among
  // wider ones, as it is and as a float
  static constexpr bool kMixed = narrowest(typename Op::Lists{}) < widest(typename Op::Lists{});
  static constexpr int kFew = kFromBackup<Op> || kMixed ? 4 : 8;
  static constexpr int kLoads = kRegisters <= kFew ? 4 : (kRegisters <= 12 ? 2 : 1);
  static constexpr int kSigned = V == 4 || kFromBackup<Op> ? 8 : 16;
  static constexpr int kElements = !T::kRandom ? 16 : (T::kSigns ? kSigned : kNormals);  // at most
  static constexpr int kMany = kElements / V > 1 ? kElements / V : 1;
  static constexpr int U = T::kInput ? 1 : (T::kRandom || kMany < kLoads ? kMany : kLoads);
  static constexpr int kStride = kThreads * V;  // between groups of a thread
  static constexpr int kStep = kStride * U;     // elements of a block at a time
  static constexpr uint32_t kAll = (1u << V) - 1u;
};
static_assert(kThreads * kSignsPerBlock == kChunkSize);

struct NoPlaces {};

template <class Op>
struct Shared {
  typename Op::Math lanes[Op::kReduce == Reduce::kSum ? kLanes : 1];
  int32_t counts[Op::kReduce == Reduce::kCount ? kThreads : 1];
  alignas(16) uint32_t words[Traits<Op>::kSigns ? kSignWords : 1];
  std::conditional_t<Traits<Op>::kPacked, Places, NoPlaces> places;
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

}  // namespace sk::phases
