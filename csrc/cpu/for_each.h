// The CPU's one elementwise driver: a plan over all tensors of a call, threads from torch's pool,
// a vectorised loop per block, the summation order of core/reduce.h.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../core/chunk_plan.h"
#include "../core/mask.h"
#include "../core/reduce.h"
#include "../core/segment.h"
#include "backup.h"
#include "block.h"

namespace sk::cpu {

// Working sets above this are streamed past the caches; below, the next op may still find them
// there.
constexpr int64_t kStreamBytes = int64_t(32) << 20;
constexpr int64_t kMinTaskElements = 32768;  // below this a thread costs more than it brings

// Per-thread memory of a call. Aligned: a 64-byte access across two cache lines costs double.
template <class Op>
struct Scratch {
  static constexpr bool kSums = Op::kReduce == Reduce::kSum;
  alignas(kStreamAlign) typename Op::Math lanes[kSums ? kLanes : 1];
  std::vector<uint32_t> words;  // sign bits of the current tile, see generate.h
  int64_t tile = -1;
};

template <class Op>
struct Partial {
  typename Op::Math sum = 0;
  int64_t count = 0;
};

template <class Op, bool kMasked>
using BackupOf =
    std::conditional_t<backup_of<Op>() == Backup::kNone, NoBackup, ChunkBackup<Op, kMasked>>;

// How many of a block's n entries raised their flag.
template <bool kSkips>
SK_HD int32_t count_flags(const int32_t* flags, int n, [[maybe_unused]] const uint32_t* keep) {
  int32_t live = 0;
#pragma omp simd reduction(+ : live)
  for (int i = 0; i < n; ++i) live += kSkips ? flags[i] & int32_t(keep[kSkips ? i : 0]) : flags[i];
  return live;
}

// Asks for the memory of a later block of the tensor where the processor, which follows plain
// walks, would come too late: beside random numbers or a packed backup, and before a mere restore.
// Sums and steps over several streams gain nothing or get slower by it.
template <class Op, bool kMasked, class Streams>
SK_HD void fetch_ahead([[maybe_unused]] const Segment& segment, [[maybe_unused]] int64_t first,
                       [[maybe_unused]] bool enabled,
                       [[maybe_unused]] const BackupOf<Op, kMasked>& backup) {
  constexpr bool kPacks = kMasked && kSaves<Op>;
  if constexpr (kRestores<Op> || kPacks || (Op::kGenerated && Op::Lists::size > 0)) {
    using Storage = typename Op::Lists::template At<0>::Storage;
    const int64_t ahead = first + kAheadBytes / int(sizeof(Storage));
    if (ahead + kBlock > segment.numel) return;
    if constexpr (kRestores<Op>) {
      if (!enabled) backup.fetch_ahead(ahead);
    } else {
      if constexpr (kPacks) {
        if (!Op::kGenerated && !backup.packed()) return;
      }
      if constexpr (kMasked) {
        if (!any_bit(segment.mask + ahead / 32, kBlock, mask_flip<Op>())) return;
      }
      if constexpr (kFromBackup<Op>) backup.fetch_ahead(ahead);
      Streams::fetch_ahead(segment.data, ahead);
    }
  }
}

template <class Op, bool kMasked, bool kFull>
SK_HD void run_block(const Op& op, const typename Op::Functor& functor, const Segment& segment,
                     int64_t tensor, int64_t first, int count, StreamCopy stream,
                     BackupOf<Op, kMasked>& backup, Scratch<Op>& scratch, Partial<Op>& partial) {
  using Math = typename Op::Math;
  constexpr bool kCounts = Op::kReduce == Reduce::kCount;
  constexpr bool kSums = Op::kReduce == Reduce::kSum;
  const int n = kFull ? kBlock : count;  // a constant trip count for all blocks but the last

  // a step from the backup moves every entry: its mask is a matter of the backup alone
  constexpr bool kSkips = kMasked && !kRestores<Op>;
  alignas(kStreamAlign) uint32_t keep[kSkips ? kBlock : 1];
  const uint32_t* words = kMasked ? segment.mask + first / 32 : nullptr;
  const bool any = !kMasked || any_bit(words, n, mask_flip<Op>());
  using Streams = BlockStreams<typename Op::Lists, kSkips, kFromBackup<Op>>;
  if constexpr (kFull) fetch_ahead<Op, kMasked, Streams>(segment, first, functor.enabled(), backup);
  if constexpr (kSaves<Op>) {
    if (any || !backup.packed()) backup.save(first, n);
  }
  if (!any && !(kRestores<Op> && functor.enabled())) return;
  if constexpr (kSkips) expand_mask(words, n, keep, mask_flip<Op>());
  // around the caches only if nothing of what is written was read: with a mask, stream 0 was
  const StreamCopy past = kMasked && kFromBackup<Op> ? nullptr : stream;
  BlockContext block{n, kSkips ? keep : nullptr, past, nullptr};
  typename BackupOf<Op, kMasked>::Buffer original;
  if constexpr (kRestores<Op>) {
    if (!functor.enabled()) return backup.restore(first, n);
  } else {
    if (!functor.enabled()) return;
  }
  if constexpr (kFromBackup<Op>) block.source = backup.unperturbed(first, n, original);
  Streams streams;
  streams.open(segment.data, first, block);

  const auto run = [&](auto out) SK_INLINED {
    if constexpr (Op::kGenerated) {
      alignas(kStreamAlign) Math generated[kBlock];
      op.generate(tensor, segment, first, n, generated, scratch);
      streams.run(functor, n, static_cast<const Math*>(generated), out);
    } else {
      streams.run(functor, n, static_cast<const void*>(nullptr), out);
    }
    streams.close(block);
  };
  if constexpr (kCounts) {
    alignas(kStreamAlign) int32_t flags[kBlock];
    run(Flags{flags});
    partial.count += count_flags<kSkips>(flags, n, keep);
  } else if constexpr (kSums) {
    run(Lanes<Math, kSkips>{scratch.lanes + first % kLanes, keep});
  } else {
    run(NoResults{});
  }
}

template <class Op, bool kMasked>
SK_CLONES void run_chunk(const Op& op, const Segment& segment, int64_t tensor, int64_t begin,
                         int64_t end, StreamCopy stream, Scratch<Op>& scratch,
                         Partial<Op>& partial) {
  BackupOf<Op, kMasked> backup(segment, begin, end, stream);
  if (!backup.fits()) return;
  const auto functor = op.bind(tensor);
  if constexpr (Op::kReduce == Reduce::kSum)
    std::fill(scratch.lanes, scratch.lanes + kLanes, typename Op::Math(0));
  int64_t first = begin;
  for (; first + kBlock <= end; first += kBlock) {
    run_block<Op, kMasked, true>(op, functor, segment, tensor, first, kBlock, stream, backup,
                                 scratch, partial);
  }
  if (first < end) {
    run_block<Op, kMasked, false>(op, functor, segment, tensor, first, int(end - first), stream,
                                  backup, scratch, partial);
  }
  backup.finish();
  if constexpr (Op::kReduce == Reduce::kSum) partial.sum = join_lanes(scratch.lanes);
}

// Runs f(first chunk, last chunk, part) over `parts` ranges of about equal element counts.
template <class F>
void parallel_chunks(const ChunkPlan& plan, const std::vector<int64_t>& numels, const F& f) {
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t parts = std::clamp(plan.elements / kMinTaskElements, int64_t(1), threads);
  if (parts == 1) return f(int64_t(0), plan.chunks());
  std::vector<int64_t> bounds{0};
  int64_t seen = 0;
  for (int t = 0; t < plan.tensors(); ++t) {
    for (int64_t c = 0; c < chunks_of(numels[t]); ++c) {
      seen += std::min(kChunkSize, numels[t] - c * kChunkSize);
      const int64_t due = plan.elements * int64_t(bounds.size()) / parts;
      if (seen >= due && int64_t(bounds.size()) < parts)
        bounds.push_back(plan.first_chunk[t] + c + 1);
    }
  }
  bounds.push_back(plan.chunks());
  torch::stable::parallel_for(0, int64_t(bounds.size()) - 1, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) f(bounds[p], bounds[p + 1]);
  });
}

struct Reduction {
  double sum = 0;             // of all chunks, added in (tensor, chunk) order
  std::vector<int64_t> live;  // per tensor
};

// Calls f(tensor, first element, last element, chunk) for every chunk, in parallel, with scratch of
// type S made once per task.
template <class S, class F>
void for_each_chunk(const ChunkPlan& plan, const std::vector<int64_t>& numels, const F& f) {
  parallel_chunks(plan, numels, [&](int64_t begin_chunk, int64_t end_chunk) {
    if (begin_chunk == end_chunk) return;
    S scratch;
    int t = find_tensor(plan.first_chunk.data(), plan.tensors(), begin_chunk);
    for (int64_t chunk = begin_chunk; chunk < end_chunk; ++chunk) {
      while (plan.first_chunk[t + 1] <= chunk) ++t;
      const int64_t begin = (chunk - plan.first_chunk[t]) * kChunkSize;
      f(t, begin, std::min(numels[t], begin + kChunkSize), chunk, scratch);
    }
  });
}

template <class... S>
constexpr int64_t bytes_per_element(StreamList<S...>) {
  return (int64_t(0) + ... + int64_t(sizeof(typename S::Storage)));
}

template <class Op>
Reduction for_each(const Op& op, const std::vector<Segment>& segments) {
  static const StreamCopy stream_copy = pick_stream_copy();
  const std::vector<int64_t> numels = numels_of(segments);
  const ChunkPlan plan(numels);
  int64_t bytes = bytes_per_element(typename Op::Lists{});
  if constexpr (kFromBackup<Op>)
    bytes += int64_t(sizeof(typename Op::Lists::template At<0>::Storage));
  const bool large = plan.elements * bytes > kStreamBytes;
  const StreamCopy stream = large ? stream_copy : nullptr;
  std::vector<Partial<Op>> partials(Op::kReduce == Reduce::kNone ? 0 : plan.chunks());
  for_each_chunk<Scratch<Op>>(
      plan, numels, [&](int t, int64_t begin, int64_t end, int64_t chunk, Scratch<Op>& scratch) {
        Partial<Op> unused;
        Partial<Op>& partial = partials.empty() ? unused : partials[chunk];
        scratch.tile = -1;
        if (segments[t].mask) {
          run_chunk<Op, true>(op, segments[t], t, begin, end, stream, scratch, partial);
        } else {
          run_chunk<Op, false>(op, segments[t], t, begin, end, stream, scratch, partial);
        }
        if (stream) stream_fence();
      });
  Reduction total;
  if constexpr (Op::kReduce == Reduce::kSum) {
    for (const auto& p : partials) total.sum += double(p.sum);
  }
  if constexpr (Op::kReduce == Reduce::kCount) {
    total.live.assign(segments.size(), 0);
    for (size_t t = 0; t < segments.size(); ++t) {
      for (int64_t c = plan.first_chunk[t]; c < plan.first_chunk[t + 1]; ++c) {
        total.live[t] += partials[c].count;
      }
    }
  }
  return total;
}

}  // namespace sk::cpu
