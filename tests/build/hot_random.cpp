// Cases of the ops that draw random directions.
#include "hot_cases.h"
#include "hot_ops.h"

namespace hot {

namespace {

using namespace sk::cpu;

using Maybe = std::optional<Tensor>;
using Numbers = std::vector<int64_t>;

enum class Into { kItself, kMasked, kBackup, kPacked, kFromList, kFromEntries, kSquares, kShifted };

template <bool kSigns, int kDirections, int kRounds = 10, Into kInto = Into::kItself>
Call combine(Inputs& in) {
  const ScalarType math = math_of(in.type);
  const TensorList tensors = in.params();
  TensorList src, masks, backup, ranks;
  Maybe sumsq;
  Numbers firsts;
  if constexpr (kInto == Into::kPacked || kInto == Into::kFromEntries) {
    const Packed packed(in, kInto == Into::kFromEntries);
    masks = packed.masks, ranks = packed.ranks;
    (kInto == Into::kPacked ? backup : src) = packed.entries;
  }
  if (kInto == Into::kMasked) masks = in.masks();
  if (kInto == Into::kBackup) backup = in.zeros(in.type);
  if (kInto == Into::kFromList) src = in.params();
  if (kInto == Into::kSquares) sumsq = in.tensor(1, kDouble);
  if (kInto == Into::kShifted) firsts = Numbers(in.sizes.size(), 4097);
  const Tensor coef = in.numbers(kDirections, math, 0.5, 1), key = in.integers({0x5eed});
  const Numbers uids = in.numbered();
  const std::string distribution = kSigns ? "rademacher" : "normal";
  return [=] {
    zo_combine_cpu(tensors, src, coef, key, {}, 2, uids, firsts, distribution, kRounds, "portable",
                   masks, backup, ranks, {}, {}, sumsq);
    return TensorList{};
  };
}
template <bool kSigns>
Call squares(Inputs& in) {
  const TensorList tensors = in.params();
  const Tensor coef = in.numbers(2, math_of(in.type), 0.5, 1), key = in.integers({0x5eed});
  const Numbers uids = in.numbered();
  const std::string distribution = kSigns ? "rademacher" : "normal";
  return [=] {
    return TensorList{
        zo_norm2_cpu(tensors, coef, key, {}, 2, uids, {}, distribution, 10, "portable", {})};
  };
}
template <bool kSigns>
Call gram(Inputs& in) {
  const TensorList tensors = in.params(), masks = in.masks();
  const Tensor key = in.integers({0x5eed});
  const Numbers uids = in.numbered();
  const std::string distribution = kSigns ? "rademacher" : "normal";
  return [=] {
    return TensorList{
        zo_gram_cpu(tensors, 3, key, {}, 2, uids, {}, distribution, 10, "portable", masks)};
  };
}

}  // namespace

std::vector<Case> random_cases() {
  return {
      {"zo_combine_/normal", kFloats, combine<false, 1>},
      {"zo_combine_/normal_7", kFloats, combine<false, 1, 7>},
      {"zo_combine_/normal_q4", kFloats, combine<false, 4>},
      {"zo_combine_/shifted", kFloats, combine<false, 1, 10, Into::kShifted>},
      {"zo_combine_/signs", kFloats, combine<true, 1>},
      {"zo_combine_/signs_q4", kFloats, combine<true, 4>},
      {"zo_combine_/masked", kFloats, combine<true, 1, 10, Into::kMasked>},
      {"zo_combine_/backup", kFloats, combine<true, 1, 10, Into::kBackup>},
      {"zo_combine_/packed", kFloats, combine<true, 1, 10, Into::kPacked>},
      {"zo_combine_/from_list", kFloats, combine<true, 1, 10, Into::kFromList>, true},
      {"zo_combine_/from_entries", kFloats, combine<true, 1, 10, Into::kFromEntries>},
      {"zo_combine_/sumsq", kFloats, combine<true, 1, 10, Into::kSquares>},
      {"zo_norm2/normal", kFloats, squares<false>},
      {"zo_norm2/signs", kFloats, squares<true>},
      {"zo_gram/normal", kFloats, gram<false>},
      {"zo_gram/signs", kFloats, gram<true>},
  };
}

}  // namespace hot
