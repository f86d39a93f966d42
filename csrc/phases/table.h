// Tensor tables: the metadata of one launch, small enough to travel in the kernel's arguments.
// A list that does not fit is cut into several tables; chunks keep their number in the whole list,
// so partial sums do not depend on the cut.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "../core/chunk_plan.h"
#include "../core/mask.h"
#include "../core/segment.h"
#include "../functors/streams.h"
#include "ops.h"

namespace sk::phases {

constexpr int kThreads = 512;
constexpr int kChunkWords = int(kChunkSize / 32);  // mask words of a chunk
constexpr int kOwnWords = kChunkWords / kThreads;  // ... and of a thread
constexpr int kParameterBytes = 32764;             // kernel arguments, CUDA 12.1 and sm_70 or later
constexpr int kReservedBytes = 512;  // of these: the op, the outputs, the table's own header

// Where a launch leaves its results; null where the op has none.
struct Outputs {
  double* partials;  // [chunks] by number in the whole list
  int64_t* live;     // [tensors], zeroed
};

// Which 8-byte slots an op keeps per tensor: absent lists cost no room.
template <class Op, bool kMasked>
struct Slots {
  static constexpr bool kPacked = Traits<Op>::kPacked;
  static constexpr bool kBacked = backup_of<Op>() != sk::Backup::kNone;
  static constexpr int kNumel = 0;
  static constexpr int kData = 1;
  static constexpr int kMask = kData + int(Op::Lists::size);
  static constexpr int kBackup = kMask + kMasked;
  static constexpr int kRanks = kBackup + kBacked;
  static constexpr int kCapacity = kRanks + kPacked;
  static constexpr int kUid = kCapacity + kPacked;
  static constexpr int kFirst = kUid + Traits<Op>::kRandom;
  static constexpr int kInput = kFirst + Traits<Op>::kRandom;
  static constexpr int kInputNumel = kInput + Traits<Op>::kInput;
  static constexpr int kCount = kInputNumel + Traits<Op>::kInput;

  template <class Table>
  static void fill(Table& table, int row, const Segment& s) {
    const auto put = [&](int slot, const void* p) {
      table.slots[slot][row] = int64_t(reinterpret_cast<intptr_t>(p));
    };
    table.slots[kNumel][row] = s.numel;
    for (int i = 0; i < int(Op::Lists::size); ++i) put(kData + i, s.data[i]);
    if constexpr (kMasked) put(kMask, s.mask);
    if constexpr (kBacked) put(kBackup, s.backup);
    if constexpr (kPacked) put(kRanks, s.ranks);
    if constexpr (kPacked) table.slots[kCapacity][row] = s.capacity;
    if constexpr (Traits<Op>::kRandom) table.slots[kUid][row] = s.uid;
    if constexpr (Traits<Op>::kRandom) table.slots[kFirst][row] = s.first;
    if constexpr (Traits<Op>::kInput) put(kInput, s.input);
    if constexpr (Traits<Op>::kInput) table.slots[kInputNumel][row] = s.input_numel;
  }
};

// The same value, but unknown to the optimiser: what is cheap to compute or read again is then not
// kept in registers around a loop, where it would spill.
template <class T>
SK_HD T opaque(T x) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(T) == 8) {
    asm volatile("" : "+l"(x));
  } else {
    asm volatile("" : "+r"(x));
  }
#endif
  return x;
}

template <int kSlots>
struct Table {
  static constexpr int kCapacity = (kParameterBytes - kReservedBytes) / (8 * kSlots + 4);

  int64_t chunk;    // number of block 0's chunk in the whole list
  int32_t tensor;   // number of row 0's tensor in the whole list
  int32_t tensors;  // rows in use
  int64_t slots[kSlots][kCapacity];
  int32_t first_chunk[kCapacity + 1];  // prefix sum, from 0

  int32_t blocks() const { return first_chunk[tensors]; }
};

template <class Op, bool kMasked>
using TableOf = Table<Slots<Op, kMasked>::kCount>;

// Comes with masks always: a packed backup, or an op that clears where they are 0.
template <class Op>
inline constexpr bool kMaskAlways = Traits<Op>::kPacked || mask_flip<Op>() != 0;

// Masks come for all tensors of a call or for none; an empty tensor's may have no address.
inline bool any_masked(const std::vector<Segment>& segments) {
  return std::any_of(segments.begin(), segments.end(),
                     [](const Segment& s) { return s.mask != nullptr; });
}

inline bool any_packed(const std::vector<Segment>& segments) {
  return std::any_of(segments.begin(), segments.end(),
                     [](const Segment& s) { return s.ranks != nullptr; });
}

// Calls launch(table) for every table of the list that has something to do.
template <class Op, bool kMasked, class F>
void for_each_table(const std::vector<Segment>& segments, const ChunkPlan& plan, const F& launch) {
  using Rows = TableOf<Op, kMasked>;
  Rows table;
  const int total = int(segments.size());
  for (int first = 0; first < total; first += Rows::kCapacity) {
    table.chunk = plan.first_chunk[first];
    table.tensor = first;
    table.tensors = std::min(total - first, Rows::kCapacity);
    for (int row = 0; row < table.tensors; ++row) {
      Slots<Op, kMasked>::fill(table, row, segments[first + row]);
      table.first_chunk[row] = int32_t(plan.first_chunk[first + row] - table.chunk);
    }
    table.first_chunk[table.tensors] =
        int32_t(plan.first_chunk[first + table.tensors] - table.chunk);
    if (table.blocks() > 0) launch(table);
  }
}

// One block's part of a tensor. It holds no pointers: they are read from the table, which stands in
// constant memory, where they are used. Kept in registers they would push the larger ops to spill.
template <class Op, bool kMasked>
struct View {
  using S = Slots<Op, kMasked>;
  using Rows = TableOf<Op, kMasked>;

  const Rows& table;
  int32_t row;
  int64_t begin;  // first element, counted in the tensor
  int size;       // elements

  SK_HD View(const Rows& t, int32_t block)
      : table(t), row(find_tensor(t.first_chunk, t.tensors, block)) {
    begin = int64_t(block - table.first_chunk[row]) * kChunkSize;
    const int64_t left = table.slots[S::kNumel][row] - begin;
    size = int(left < kChunkSize ? left : kChunkSize);
  }
  // the same view, of which the optimiser does not know that it is the same
  SK_HD View reloaded() const {
    View copy = *this;
    copy.row = opaque(row);
    return copy;
  }

  SK_HD int32_t tensor() const { return table.tensor + row; }  // number in the whole list
  SK_HD uint32_t uid() const { return uint32_t(table.slots[S::kUid][row]); }
  SK_HD int64_t first() const { return table.slots[S::kFirst][row]; }  // index of element 0
  template <class Stream>
  SK_HD char* data(int stream) const {
    return at<typename Stream::Storage>(table.slots[S::kData + stream][row]);
  }
  SK_HD const uint32_t* mask() const {
    return reinterpret_cast<const uint32_t*>(intptr_t(table.slots[S::kMask][row])) + begin / 32;
  }
  // there is a whole backup to write
  SK_HD bool saved() const {
    if constexpr (kSaves<Op> && !Traits<Op>::kPacked) return table.slots[S::kBackup][row] != 0;
    return false;
  }
  template <class Stream>
  SK_HD char* backup() const {
    return at<typename Stream::Storage>(table.slots[S::kBackup][row]);
  }
  // a packed backup: the tensor of all entries, and the rank of the block's first one
  SK_HD char* entries() const {
    return reinterpret_cast<char*>(intptr_t(table.slots[S::kBackup][row]));
  }
  SK_HD int64_t capacity() const { return table.slots[S::kCapacity][row]; }
  SK_HD const int64_t* rank() const {
    return reinterpret_cast<const int64_t*>(intptr_t(table.slots[S::kRanks][row])) +
           begin / kRankTile;
  }
  SK_HD const char* input() const {  // of the whole tensor
    return reinterpret_cast<const char*>(intptr_t(table.slots[S::kInput][row]));
  }
  SK_HD int64_t input_numel() const { return table.slots[S::kInputNumel][row]; }
  // of ops that write words (ranked.h, mask_nm.h)
  SK_HD int64_t rows() const { return table.slots[S::kRows][row]; }
  SK_HD int64_t cols() const { return table.slots[S::kCols][row]; }
  SK_HD bool masked() const { return table.slots[S::kMask][row] != 0; }
  SK_HD uint32_t* words() const {
    return reinterpret_cast<uint32_t*>(intptr_t(table.slots[S::kWords][row])) + begin / 32;
  }

  // every stream, and a whole backup, can be accessed in groups of V elements
  template <int V>
  SK_HD bool aligned() const {
    return aligned_streams<V>(typename Op::Lists{});
  }

 private:
  template <class T>
  SK_HD char* at(int64_t slot) const {
    return reinterpret_cast<char*>(intptr_t(slot)) + begin * int64_t(sizeof(T));
  }
  template <int V, class... Ss>
  SK_HD bool aligned_streams(StreamList<Ss...>) const {
    int i = 0;
    bool all = true;
    (require<V * sizeof(typename Ss::Storage)>(data<Ss>(i++), all), ...);
    if constexpr (backup_of<Op>() != Backup::kNone && !Traits<Op>::kPacked) {
      using Saved = typename Op::Lists::template At<0>;
      if (kFromBackup<Op> || saved())
        require<V * sizeof(typename Saved::Storage)>(backup<Saved>(), all);
    }
    return all;
  }
  template <size_t kBytes>
  static SK_HD void require(const char* p, bool& all) {
    constexpr uintptr_t kAlign = kBytes < 16 ? kBytes : 16;
    if (reinterpret_cast<uintptr_t>(p) % kAlign != 0) all = false;
  }
};

}  // namespace sk::phases
