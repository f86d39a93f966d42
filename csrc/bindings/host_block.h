// The host's stand-in for a CUDA block: runs a block program for one thread after the other, with a
// memory that checks what a GPU would not forgive.
//   bounds     every access lies inside memory that was registered
//   alignment  an access of n bytes stands at a multiple of n
//   races      between two barriers no thread touches what another one wrote, nor writes what
//              another one read
// Memory may be virtual: addresses are checked and counted, nothing is read or written. So tensors
// past 2^32 elements take no room.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#include "../core/macros.h"
#include "../phases/table.h"

namespace sk::harness {

struct Range {
  uintptr_t begin, end;
  bool backed;                     // real memory, not only addresses
  int64_t loaded = 0, stored = 0;  // bytes
};

class Ledger {
 public:
  void add(const void* p, int64_t bytes, bool backed) {
    if (bytes == 0) return;
    const auto begin = reinterpret_cast<uintptr_t>(p);
    for (const Range& r : ranges_) {
      if (begin == r.begin && begin + uintptr_t(bytes) == r.end) return;  // the same tensor twice
      if (begin < r.end && r.begin < begin + uintptr_t(bytes)) fail("overlapping tensors", begin);
    }
    ranges_.push_back({begin, begin + uintptr_t(bytes), backed});
  }
  // after the last add: accesses search
  void seal() {
    std::sort(ranges_.begin(), ranges_.end(),
              [](const Range& a, const Range& b) { return a.begin < b.begin; });
  }
  void turn(int thread) { thread_ = thread; }
  void next_phase() { ++phase_; }
  const std::vector<Range>& ranges() const { return ranges_; }

  // whether there is memory behind [p, p + bytes)
  bool access(const void* p, size_t bytes, bool store, bool atomic = false) {
    const auto address = reinterpret_cast<uintptr_t>(p);
    if (address % bytes != 0) fail("misaligned access", address);
    Range& range = find(address, bytes);
    (store ? range.stored : range.loaded) += int64_t(bytes);
    if (!atomic) check_race(address, bytes, store);
    return range.backed;
  }

 private:
  // Who touched a byte last in the current phase. Stamps of older phases count as untouched.
  struct Stamp {
    uint64_t read = 0, write = 0;
  };
  static constexpr uintptr_t kPage = 4096;
  using Page = std::unique_ptr<Stamp[]>;

  Range& find(uintptr_t address, size_t bytes) {
    auto after = std::upper_bound(ranges_.begin(), ranges_.end(), address,
                                  [](uintptr_t a, const Range& r) { return a < r.begin; });
    if (after == ranges_.begin()) fail("access outside every tensor", address);
    Range& range = *--after;
    if (address + bytes > range.end) fail("access past the end of a tensor", address);
    return range;
  }
  void check_race(uintptr_t address, size_t bytes, bool store) {
    const uint64_t first = phase_ * phases::kThreads + 1;  // stamp of thread 0 in this phase
    const uint64_t mine = first + uint64_t(thread_);
    const uintptr_t page = address / kPage;
    if (page != page_) {
      Page& slot = pages_[page];
      if (!slot) slot = std::make_unique<Stamp[]>(kPage);
      page_ = page;
      stamps_ = slot.get();
    }
    Stamp* stamps = stamps_ + address % kPage;
    for (size_t i = 0; i < bytes; ++i) {
      const bool written = stamps[i].write >= first && stamps[i].write != mine;
      const bool read = stamps[i].read >= first && stamps[i].read != mine;
      if (written)
        fail(store ? "two threads write one address" : "read of another thread's write", address);
      if (store && read) fail("write to what another thread reads", address);
      (store ? stamps[i].write : stamps[i].read) = mine;
    }
  }
  [[noreturn]] void fail(const char* what, uintptr_t address) const {
    throw std::runtime_error(std::string(what) + ": address " + std::to_string(address) +
                             ", thread " + std::to_string(thread_) + ", phase " +
                             std::to_string(phase_));
  }

  std::vector<Range> ranges_;
  std::unordered_map<uintptr_t, Page> pages_;
  uintptr_t page_ = ~uintptr_t(0);
  Stamp* stamps_ = nullptr;
  uint64_t phase_ = 1;
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
  void add(int64_t* p, int64_t value) const {
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
