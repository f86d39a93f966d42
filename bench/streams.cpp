// The roof of a kernel: one that moves the same streams and computes nothing. Loaded by _roofs.py.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "../csrc/core/macros.h"
#include "../csrc/core/simd_store.h"
#include "../csrc/torch/check.h"

namespace sk::bench {

constexpr int64_t kLine = kStreamAlign;    // bytes
constexpr int64_t kWords = kLine / 8;      // of 64 bits in a line
constexpr int64_t kLinesPerTurn = 32;      // of the widest stream, before the next one's turn
constexpr uint64_t kAdded = 1;             // to every word that is updated
constexpr uint64_t kWritten = 0x01010101;  // into every word that is only written

struct Stream {
  uint64_t* words;
  int64_t lines;
  // lines before a turn: streams of any widths advance side by side
  int64_t before(int64_t turn, int64_t turns) const {
    return turn == turns ? lines : int64_t(double(lines) / double(turns) * double(turn));
  }
};
using Streams = std::vector<Stream>;

Streams streams_of(const TensorList& tensors) {
  Streams found;
  for (const auto& t : tensors) {
    const int64_t lines = t.numel() * int64_t(t.element_size()) / kLine;
    STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(t.data_ptr()) % kLine == 0, "streams: alignment");
    found.push_back({static_cast<uint64_t*>(t.data_ptr()), lines});
  }
  return found;
}

// Turns [begin, end) of all streams; the lines moved. The sum keeps the reads alive.
SK_CLONES int64_t move_lines(const Streams& read, const Streams& update, const Streams& write,
                             int64_t begin, int64_t end, int64_t turns, StreamCopy past,
                             uint64_t& sum) {
  alignas(kStreamAlign) uint64_t source[kLinesPerTurn * kWords];
  std::fill(source, source + kLinesPerTurn * kWords, kWritten);
  int64_t moved = 0;
  uint64_t total = 0;
  for (int64_t turn = begin; turn < end; ++turn) {
    for (const Stream& s : read) {
      const int64_t first = s.before(turn, turns), last = s.before(turn + 1, turns);
      const uint64_t* SK_RESTRICT words = s.words;
#pragma omp simd reduction(+ : total)
      for (int64_t i = first * kWords; i < last * kWords; ++i) total += words[i];
      moved += last - first;
    }
    for (const Stream& s : update) {
      const int64_t first = s.before(turn, turns), last = s.before(turn + 1, turns);
      uint64_t* SK_RESTRICT words = s.words;
#pragma omp simd
      for (int64_t i = first * kWords; i < last * kWords; ++i) words[i] += kAdded;
      moved += 2 * (last - first);
    }
    for (const Stream& s : write) {
      const int64_t first = s.before(turn, turns), last = s.before(turn + 1, turns);
      uint64_t* SK_RESTRICT words = s.words + first * kWords;
      if (past) {
        past(words, source, size_t((last - first) * kLine));
      } else {
        std::fill(words, words + (last - first) * kWords, kWritten);
      }
      moved += last - first;
    }
  }
  sum = total;
  return moved;
}

// Reads, updates and writes whole lines of the tensors, past the caches where asked to. Returns
// the bytes moved: an update counts twice.
int64_t move_streams(TensorList read, TensorList update, TensorList write, bool past) {
  static const StreamCopy stream_copy = pick_stream_copy();
  static volatile uint64_t kept;
  const Streams reads = streams_of(read), updates = streams_of(update), writes = streams_of(write);
  int64_t widest = 0;
  for (const Streams* list : {&reads, &updates, &writes})
    for (const Stream& s : *list) widest = std::max(widest, s.lines);
  const int64_t turns = (widest + kLinesPerTurn - 1) / kLinesPerTurn;
  const int64_t parts = std::min<int64_t>(torch::stable::get_num_threads(), turns);
  std::vector<int64_t> moved(parts);
  torch::stable::parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
    for (int64_t p = first; p < last; ++p) {
      uint64_t sum = 0;
      moved[p] = move_lines(reads, updates, writes, turns * p / parts, turns * (p + 1) / parts,
                            turns, past ? stream_copy : nullptr, sum);
      if (past) stream_fence();
      kept = sum;
    }
  });
  int64_t lines = 0;
  for (int64_t m : moved) lines += m;
  return lines * kLine;
}

STABLE_TORCH_LIBRARY(sparse_kernels_bench, m) {
  m.def("move_streams(Tensor[] read, Tensor(a!)[] update, Tensor(b!)[] write, bool past) -> int");
}
STABLE_TORCH_LIBRARY_IMPL(sparse_kernels_bench, CompositeExplicitAutograd, m) {
  m.impl("move_streams", TORCH_BOX(&move_streams));
}

}  // namespace sk::bench
