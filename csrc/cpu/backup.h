// The backup of stream 0 as one chunk walks it, block by block: written before the stream changes,
// or read in its place. Whole: as long as the tensor. Packed: the entries with mask bit 1.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../core/mask.h"
#include "../core/segment.h"
#include "../core/simd_pack.h"
#include "../functors/streams.h"
#include "block.h"

namespace sk::cpu {

// Appends to a place in memory, in whole cache lines once it has reached the first one.
template <class T>
class PackedWriter {
 public:
  // not initialised: the buffer is written before it is read
  explicit PackedWriter(StreamCopy stream) : stream_(stream) {}

  void start(T* to) {
    head_ = filled_ = int(reinterpret_cast<uintptr_t>(to) % kStreamAlign / sizeof(T));
    line_ = to - head_;
  }
  // Lines go out one block late: to load one that has just been put together from several stores
  // would wait for all of them.
  void append(const T* src, const uint32_t* words, int n) {
    static const Gather<T> gather = pick_gather<T>();
    flush();
    filled_ += gather(src, words, n, buffer_ + filled_);
  }
  void finish() {
    flush();
    std::memcpy(line_ + head_, buffer_ + head_, size_t(filled_ - head_) * sizeof(T));
  }

 private:
  static constexpr int kLine = int(kStreamAlign / sizeof(T));

  void flush() {
    const int full = filled_ / kLine * kLine;
    if (full == 0) return;
    int from = 0;
    if (head_ != 0) {  // the first line is shared with the chunk before
      std::memcpy(line_ + head_, buffer_ + head_, size_t(kLine - head_) * sizeof(T));
      from = kLine;
      head_ = 0;
    }
    copy_out(line_ + from, buffer_ + from, size_t(full - from) * sizeof(T), stream_);
    std::memcpy(buffer_, buffer_ + full, kStreamAlign);
    line_ += full;
    filled_ -= full;
  }

  StreamCopy stream_;
  T* line_;     // where buffer_[0] belongs
  int head_;    // entries of the first line that are not ours
  int filled_;  // entries in the buffer, head included
  alignas(kStreamAlign) T buffer_[kLine + kBlock + kPackSlack];
};

template <class Op, bool kMasked>
class ChunkBackup {
 public:
  using Storage = typename Op::Lists::template At<0>::Storage;
  static constexpr bool kWrites = kSaves<Op>;
  struct alignas(kStreamAlign) Buffer {
    Buffer() {}  // not defaulted: it is written before it is read
    Storage x[kMasked && !kWrites ? kBlock : 1];
  };

  SK_HD ChunkBackup(const Segment& segment, int64_t begin, int64_t end, StreamCopy stream)
      : memory_(static_cast<Storage*>(segment.data[0])),
        backup_(static_cast<Storage*>(segment.backup)),
        words_(segment.mask),
        packed_(kMasked && segment.ranks),
        stream_(stream),
        writer_(stream) {
    if (!packed_) return;
    const int64_t place = segment.ranks[begin / kRankTile];
    fits_ = places_exist(place, count_ones(words_ + begin / 32, end - begin), segment.capacity);
    if (!fits_) return;
    next_ = backup_ + place;
    end_ = backup_ + segment.capacity;
    if constexpr (kWrites) writer_.start(next_);
  }
  bool packed() const { return packed_; }
  // false: the entries have no place; the chunk is left alone
  bool fits() const { return fits_; }

  SK_HD void save(int64_t first, int n) {
    if (packed_) {
      if constexpr (kWrites) writer_.append(memory_ + first, words_ + first / 32, n);
    } else if (backup_) {
      copy_out(backup_ + first, memory_ + first, size_t(n) * sizeof(Storage), stream_);
    }
  }
  void finish() {
    if constexpr (kWrites) {
      if (packed_ && fits_) writer_.finish();
    }
  }

  // Asks for what restoring the block at `first` reads, or feeding it but for the stream itself.
  SK_HD void fetch_ahead(int64_t first) const {
    fetch(packed_ ? next_ + kAheadBytes / int(sizeof(Storage)) : backup_ + first);
    if constexpr (kMasked && kRestores<Op>) fetch(memory_ + first);
  }
  // The n unperturbed elements from `first` on; in `buffer` where they stand in two places.
  SK_HD const Storage* unperturbed(int64_t first, int n, Buffer& buffer) {
    if constexpr (kMasked) {
      merge(first, n, buffer.x);
      return buffer.x;
    } else {
      return backup_ + first;
    }
  }
  // The same, into the tensor.
  SK_HD void restore(int64_t first, int n) {
    if constexpr (kMasked) {
      merge(first, n, memory_ + first);
    } else {
      copy_out(memory_ + first, backup_ + first, size_t(n) * sizeof(Storage), stream_);
    }
  }

 private:
  SK_HD void merge(int64_t first, int n, Storage* out) {
    static const Scatter<Storage> scatter = pick_scatter<Storage>();
    const Storage* now = memory_ + first;
    if (packed_) {
      next_ += scatter(next_, end_ - next_, words_ + first / 32, n, now, out);
      return;
    }
    alignas(kStreamAlign) uint32_t keep[kBlock];
    expand_mask(words_ + first / 32, n, keep);
    choose_raw(backup_ + first, now, keep, n, out);
  }

  struct NoWriter {
    explicit NoWriter(StreamCopy) {}
  };
  Storage* memory_;
  Storage* backup_;
  const uint32_t* words_;
  bool packed_, fits_ = true;
  StreamCopy stream_;
  Storage* next_ = nullptr;  // of the packed entries
  Storage* end_ = nullptr;
  std::conditional_t<kWrites, PackedWriter<Storage>, NoWriter> writer_;
};

// of an op without one
struct NoBackup {
  NoBackup(const Segment&, int64_t, int64_t, StreamCopy) {}
  struct Buffer {};
  static constexpr bool fits() { return true; }
  void finish() {}
};

}  // namespace sk::cpu
