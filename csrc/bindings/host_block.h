// The host's stand-in for a CUDA block: runs a block program for one thread after the other, with a
// memory that checks what a GPU would not forgive.
//   bounds     every access lies inside memory that was registered
//   alignment  an access of n bytes stands at a multiple of n
//   races      between two barriers no thread touches what another one wrote, nor writes what
//              another one read; no block touches what another block wrote
// Memory may be virtual: addresses are checked and counted, nothing is read or written. So tensors
// past 2^32 elements take no room.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <unordered_map>
#include <vector>

#include "../core/macros.h"
#include "../phases/table.h"

namespace sk::harness {

enum class Kind { kVirtual, kGlobal, kShared };

struct Range {
  uintptr_t begin, end;
  Kind kind;
  int64_t loaded = 0, stored = 0;  // bytes
};

class Ledger {
 public:
  void add(const void* p, int64_t bytes, Kind kind = Kind::kGlobal) {
    if (bytes == 0) return;
    const auto begin = reinterpret_cast<uintptr_t>(p);
    ranges_.push_back({begin, begin + uintptr_t(bytes), kind});
  }
  // after the last add: accesses search
  void seal() {
    std::stable_sort(ranges_.begin(), ranges_.end(), [](const Range& a, const Range& b) {
      return a.begin < b.begin || (a.begin == b.begin && a.end < b.end);
    });
    const auto same = [](const Range& a, const Range& b) {  // the same tensor twice
      return a.begin == b.begin && a.end == b.end;
    };
    ranges_.erase(std::unique(ranges_.begin(), ranges_.end(), same), ranges_.end());
  }
  void turn(int thread) { thread_ = thread; }
  void next_phase() { ++phase_; }
  void next_block() { block_ = ++phase_; }
  const std::vector<Range>& ranges() const { return ranges_; }
  size_t widest() const { return widest_; }  // bytes of an access to a tensor

  // whether there is memory behind [p, p + bytes)
  bool access(const void* p, size_t bytes, bool store, bool atomic = false) {
    const auto address = reinterpret_cast<uintptr_t>(p);
    if (address % bytes != 0) fail("misaligned access", address);
    Range& range = find(address, bytes);
    (store ? range.stored : range.loaded) += int64_t(bytes);
    if (range.kind != Kind::kShared) widest_ = std::max(widest_, bytes);
    if (!atomic) check_race(address, bytes, store, range.kind == Kind::kShared);
    return range.kind != Kind::kVirtual;
  }

 private:
  // Who touched a byte last: phase * threads + thread + 1, 0 for nobody.
  struct Stamp {
    uint64_t read = 0, write = 0;
  };
  static constexpr uintptr_t kPage = 4096;
  using Page = std::unique_ptr<Stamp[]>;

  Range& find(uintptr_t address, size_t bytes) {
    auto range = std::upper_bound(ranges_.begin(), ranges_.end(), address,
                                  [](uintptr_t a, const Range& r) { return a < r.begin; });
    while (range != ranges_.begin()) {
      --range;
      if (address + bytes <= range->end) return *range;
    }
    fail("access outside every tensor", address);
  }
  Stamp* stamps_at(uintptr_t address) {
    if (address / kPage != page_) {
      page_ = address / kPage;
      Page& slot = pages_[page_];
      if (!slot) slot = std::make_unique<Stamp[]>(kPage);
      stamps_ = slot.get();
    }
    return stamps_ + address % kPage;
  }
  void check_race(uintptr_t address, size_t bytes, bool store, bool shared) {
    const uint64_t phase = phase_ * phases::kThreads + 1;  // stamp of thread 0 in this phase
    const uint64_t block = block_ * phases::kThreads + 1;  // in the first phase of this block
    const uint64_t mine = phase + uint64_t(thread_);
    const auto by_other = [&](uint64_t stamp) {
      const bool other_thread = stamp >= phase && stamp != mine;
      return other_thread || (!shared && stamp != 0 && stamp < block);
    };
    Stamp* stamps = stamps_at(address);
    for (size_t i = 0; i < bytes; ++i) {
      if (by_other(stamps[i].write)) {
        fail(store ? "two threads write one address" : "read of another thread's write", address);
      }
      if (store && by_other(stamps[i].read)) fail("write to what another thread reads", address);
      (store ? stamps[i].write : stamps[i].read) = mine;
    }
  }
  [[noreturn]] void fail(const char* what, uintptr_t address) const {
    throw std::runtime_error(std::string(what) + ": address " + std::to_string(address) +
                             ", thread " + std::to_string(thread_) + ", phase " +
                             std::to_string(phase_ - block_) + " of the block");
  }

  std::vector<Range> ranges_;
  size_t widest_ = 0;
  std::unordered_map<uintptr_t, Page> pages_;
  uintptr_t page_ = ~uintptr_t(0);
  Stamp* stamps_ = nullptr;
  uint64_t phase_ = 1, block_ = 1;
  int thread_ = 0;
};

struct HostMemory {
  Ledger* ledger;

  template <class T>
  T load(const T* p) const {
    T value;
    // virtual memory reads as ones: every mask bit is set
    std::memset(static_cast<void*>(&value), 0xff, sizeof(T));
    if (ledger->access(p, sizeof(T), false)) std::memcpy(static_cast<void*>(&value), p, sizeof(T));
    return value;
  }
  template <class T>
  void store(T* p, T value) const {
    if (ledger->access(p, sizeof(T), true)) std::memcpy(static_cast<void*>(p), &value, sizeof(T));
  }
  template <class T>
  void add(T* p, T value) const {
    static_assert(std::is_same_v<T, int32_t> || std::is_same_v<T, int64_t>);
    if (ledger->access(p, sizeof(*p), true, true)) *p += value;
  }
};

// Twin of DeviceBlock in csrc/cuda/launch.cuh.
template <class SharedState, class ThreadState>
struct HostBlock {
  using Memory = HostMemory;

  SharedState& shared;
  std::vector<ThreadState>& states;
  Memory memory;

  template <class F>
  void run(const F& f) {
    for (int thread = 0; thread < phases::kThreads; ++thread) {
      memory.ledger->turn(thread);
      f(thread, states[size_t(thread)]);
    }
  }
  void barrier() { memory.ledger->next_phase(); }
};

}  // namespace sk::harness
