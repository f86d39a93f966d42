// Cases of the ops on masks, entries and groups.
#include "hot_cases.h"
#include "hot_ops.h"

namespace hot {

namespace {

using namespace sk::cpu;

using Maybe = std::optional<Tensor>;
using Numbers = std::vector<int64_t>;

// Where numel is a multiple of neither, one row.
int64_t cols_of(int64_t numel) {
  return numel % 64 == 0 ? 64 : numel % 3 == 0 ? 3 : std::max<int64_t>(1, numel);
}

Call apply(Inputs& in) {
  const TensorList tensors = in.params(), masks = in.masks();
  return [=] { return mask_apply_cpu(tensors, masks), TensorList{}; };
}
Call count(Inputs& in) {
  const TensorList words = in.masks();
  TensorList counts;
  for (const Tensor& w : words) counts.push_back(in.tensor((w.numel() + 255) / 256, kLong));
  return [=] { return mask_count_cpu(words, counts), TensorList{}; };
}
TensorList flags(Inputs& in) {
  TensorList out = in.zeros(ScalarType::Bool);
  for (const Tensor& t : out) {
    for (int64_t i = 0; i < t.numel(); ++i) static_cast<bool*>(t.data_ptr())[i] = in.random() % 2;
  }
  return out;
}
Call pack(Inputs& in) {
  const TensorList masks = flags(in), words = in.masks();
  return [=] { return mask_pack_cpu(masks, words), TensorList{}; };
}
Call unpack(Inputs& in) {
  const TensorList words = in.masks(), masks = in.zeros(ScalarType::Bool);
  return [=] { return mask_unpack_cpu(words, masks), TensorList{}; };
}
Call live(Inputs& in) {
  const TensorList duals = in.params(), words = in.masks();
  return [=] { return live_mask_cpu(duals, words, 0.5, false), TensorList{}; };
}
template <bool kSparse>
Call index(Inputs& in) {
  const TensorList words = in.masks(kSparse);
  int64_t ones = 0;
  const TensorList ranks = in.ranks(words, ones);
  TensorList out;
  for (size_t t = 0; t < words.size(); ++t) {
    const auto* bits = static_cast<const uint32_t*>(words[t].data_ptr());
    out.push_back(in.tensor(sk::count_ones(bits, in.sizes[t]), kInt));
  }
  return [=] { return mask_index_cpu(words, ranks, out), TensorList{}; };
}

// About every second run.
template <bool kScatter, int kRun>
Call entries(Inputs& in) {
  TensorList tensors, index, values;
  for (const int64_t n : in.sizes) {
    const int64_t runs = n / kRun, count = runs / 2;
    tensors.push_back(in.numbers(runs * kRun, in.type, -1, 1));
    index.push_back(in.tensor(count, kInt));
    for (int64_t i = 0; i < count; ++i) {
      static_cast<uint32_t*>(index.back().data_ptr())[i] = uint32_t(2 * i + in.random() % 2);
    }
    values.push_back(in.numbers(count * kRun, in.type, -1, 1));
  }
  const Numbers runs(in.sizes.size(), kRun);
  const auto move = kScatter ? scatter_entries_cpu : gather_entries_cpu;
  return [=] { return move(tensors, index, runs, values), TensorList{}; };
}

template <bool kRows>
Call nm(Inputs& in) {
  const TensorList scores = in.params(), words = in.masks();
  Numbers rows, cols;
  for (const int64_t n : in.sizes) {
    cols.push_back(cols_of(n));
    rows.push_back(n / cols.back());
  }
  return [=] {
    return mask_nm_cpu(scores, "abs", {}, {}, rows, cols, 2, 4, kRows, words), TensorList{};
  };
}

enum class By { kValue, kRandom };

// What a selection of scores takes; keys are those of core/ranked.h.
template <By kBy>
struct Scores {
  TensorList scores, among;
  std::string kind = kBy == By::kRandom ? "random" : "value";
  Maybe key;
  bool wide;  // keys of 64 bits

  Scores(Inputs& in, bool masked) : scores(in.params()), wide(in.type == kDouble) {
    if (masked) among = in.masks();
    if (kBy == By::kRandom) key = in.integers({0x123456789abcdef});
  }
  int64_t half() const { return wide ? int64_t(0xbfe0000000000000u) : int64_t(0xbf000000u); }
  int64_t zero() const { return wide ? int64_t(uint64_t(1) << 63) : int64_t(0x80000000u); }
};

template <By kBy, bool kFirstDigit>
Call histogram(Inputs& in) {
  const Scores<kBy> s(in, !kFirstDigit);
  const int64_t top = s.wide ? 53 : 21;
  const Tensor prefix = in.integers({kFirstDigit ? 0 : int64_t(uint64_t(s.half()) >> top)});
  return [=] {
    return TensorList{topk_histogram_cpu(s.scores, s.kind, s.key, {}, s.among, false, prefix,
                                         kFirstDigit ? top : top - 11, 11)};
  };
}
template <By kBy, bool kMasked>
Call write(Inputs& in) {
  const Scores<kBy> s(in, kMasked);
  const TensorList words = in.masks();
  const Tensor threshold = in.integers({s.half()});
  return [=] {
    return TensorList{
        topk_write_cpu(s.scores, s.kind, s.key, {}, s.among, false, threshold, words, kMasked)};
  };
}
Call ties(Inputs& in) {
  const Scores<By::kValue> s(in, false);
  const TensorList words = in.masks();
  int64_t chunks = 0;
  for (const int64_t n : in.sizes) chunks += (n + 65535) / 65536;
  const Tensor threshold = in.integers({s.zero()}), take = in.integers({int64_t(1) << 40}),
               counts = in.integers(Numbers(size_t(chunks), 1)),
               before = in.integers(Numbers(size_t(chunks), 0));
  return [=] {
    topk_ties_cpu(s.scores, s.kind, s.key, {}, {}, false, threshold, counts, before, take, words);
    return TensorList{};
  };
}

enum class Of { kRows, kTiles, kColumns, kWhole };

template <Of kOf>
Call prox(Inputs& in) {
  const ScalarType math = math_of(in.type);
  const TensorList params = in.params(), duals = in.lists(math);
  Numbers cols, heights, widths;
  for (const int64_t n : in.sizes) {
    const int64_t wide = kOf == Of::kWhole ? std::max<int64_t>(1, n) : cols_of(n);
    cols.push_back(wide);
    heights.push_back(kOf == Of::kTiles ? 4 : kOf == Of::kColumns ? std::max<int64_t>(1, n) : 1);
    widths.push_back(kOf == Of::kTiles     ? std::min<int64_t>(8, wide)
                     : kOf == Of::kColumns ? 1
                                           : wide);
  }
  const Tensor thresholds =
      in.scalars(std::vector<double>(4 * in.sizes.size(), kOf == Of::kTiles ? 2.0 : 0.5), math);
  return [=] {
    const auto [live, groups, value] =
        prox_group_cpu(params, duals, {}, cols, heights, widths, thresholds, 0.1, 1.5, false);
    return TensorList{live, groups};  // value is summed in an order of the clone's own
  };
}

}  // namespace

std::vector<Case> selection_cases() {
  return {
      {"mask_apply_", kFloats, apply},
      {"mask_count_", kOne, count},
      {"mask_pack_", kOne, pack},
      {"mask_unpack_", kOne, unpack},
      {"live_mask_", {kSingle, kDouble}, live},
      {"mask_index_/half", kOne, index<false>},
      {"mask_index_/sparse", kOne, index<true>},
      {"gather_entries_/1", kFloats, entries<false, 1>},
      {"gather_entries_/4", kFloats, entries<false, 4>},
      {"scatter_entries_/1", kFloats, entries<true, 1>},
      {"scatter_entries_/9", kFloats, entries<true, 9>},
      {"scatter_entries_/32", kFloats, entries<true, 32>},
      {"mask_nm_/rows", kFloats, nm<true>},
      {"mask_nm_/columns", kFloats, nm<false>},
      {"topk_histogram/first", kFloats, histogram<By::kValue, true>},
      {"topk_histogram/second", kFloats, histogram<By::kValue, false>},
      {"topk_histogram/random", kOne, histogram<By::kRandom, true>},
      {"topk_write_/value", kFloats, write<By::kValue, false>},
      {"topk_write_/masked", kFloats, write<By::kValue, true>},
      {"topk_write_/random", kOne, write<By::kRandom, false>},
      {"topk_ties_", kFloats, ties},
      {"prox_group_/rows", kFloats, prox<Of::kRows>, true},
      {"prox_group_/tiles", kFloats, prox<Of::kTiles>},
      {"prox_group_/columns", kFloats, prox<Of::kColumns>},
      {"prox_group_/whole", kFloats, prox<Of::kWhole>},
  };
}

}  // namespace hot
