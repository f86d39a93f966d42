// Cases of the ops that walk parameters.
#include "hot_cases.h"
#include "hot_ops.h"

namespace hot {

namespace {

using namespace sk::cpu;

using Maybe = std::optional<Tensor>;

template <bool kMasked, bool kWeighted>
Call norm(Inputs& in) {
  const TensorList grads = in.params(), masks = kMasked ? in.masks() : TensorList{},
                   weights = kWeighted ? in.params() : TensorList{};
  return [=] { return TensorList{grad_norm_cpu(grads, masks, weights, 0.25, true)}; };
}

enum class Saved { kNot, kWhole, kPacked };

template <bool kMasked, Saved kSaved, bool kAdaptive = false>
Call perturb(Inputs& in) {
  const TensorList params = in.params(), grads = in.params();
  const Tensor norm = in.scalars({2.5}, math_of(in.type));
  TensorList masks, backup, ranks;
  if constexpr (kSaved == Saved::kPacked) {
    const Packed packed(in, false);
    masks = packed.masks, backup = packed.entries, ranks = packed.ranks;
  } else {
    if (kMasked) masks = in.masks();
    if (kSaved == Saved::kWhole) backup = in.zeros(in.type);
  }
  return [=] {
    masked_perturb_cpu(params, grads, norm, 0.05, masks, backup, ranks, kAdaptive, 0.01, 1e-12, {});
    return TensorList{};
  };
}

// The three lists of a backup that an op reads.
struct Unperturbed {
  TensorList masks, backup, ranks;

  Unperturbed(Inputs& in, bool masked, Saved saved) {
    if (saved == Saved::kPacked) {
      const Packed packed(in, true);
      masks = packed.masks, backup = packed.entries, ranks = packed.ranks;
    } else {
      if (masked) masks = in.masks();
      backup = in.params();
    }
  }
};

template <bool kMasked, Saved kSaved>
Call restore(Inputs& in) {
  const TensorList params = in.params();
  const Unperturbed from(in, kMasked, kSaved);
  return [=] {
    restore_cpu(params, from.masks, from.backup, from.ranks);
    return TensorList{};
  };
}

template <bool kMomentum, bool kMasked, Saved kSaved>
Call sgd(Inputs& in) {
  const TensorList params = in.params(), grads = in.params(),
                   buffers = kMomentum ? in.params() : TensorList{};
  const Unperturbed from(in, kMasked, kSaved);
  return [=] {
    restore_sgd_cpu(params, grads, buffers, from.masks, from.backup, from.ranks, 0.1, 0.9, 0.0,
                    false, 5e-4, false, false, {}, {}, {});
    return TensorList{};
  };
}

template <bool kMasked, Saved kSaved>
Call adamw(Inputs& in) {
  const ScalarType math = math_of(in.type);
  const TensorList params = in.params(), grads = in.params(), a = in.params(),
                   u = in.lists(in.type, 0.01, 1);
  const Unperturbed from(in, kMasked, kSaved);
  const Tensor step_sizes = in.each(0.01, math), bias2 = in.each(0.5, math);
  return [=] {
    restore_adamw_cpu(params, grads, a, u, from.masks, from.backup, from.ranks, step_sizes, bias2,
                      0.01, 0.9, 0.999, 1e-8, 0.01, true, false, {}, {}, {});
    return TensorList{};
  };
}

enum class With { kOwn, kShrunk, kGiven };

template <With kDual, bool kMomentum, bool kMasked = false, bool kRests = false>
Call linbreg(Inputs& in) {
  const ScalarType math = math_of(in.type);
  const TensorList params = in.params(), grads = in.params(),
                   duals = kDual == With::kOwn ? TensorList{} : in.lists(math),
                   buffers = kMomentum ? in.lists(math) : TensorList{},
                   active = kMasked ? in.masks() : TensorList{};
  return [=] {
    return TensorList{linbreg_step_cpu(params, grads, duals, buffers, active, 0.1, 0.3, 1.5, 0.9,
                                       "ema", false, 1e-4, false, false, kDual != With::kGiven,
                                       kRests ? 0.01 : 0.0, kRests ? 2.0 : 1.0, {})};
  };
}

template <With kDual, bool kCounts>
Call adabreg(Inputs& in) {
  const ScalarType math = math_of(in.type);
  const TensorList params = in.params(), grads = in.params(),
                   duals = kDual == With::kOwn ? TensorList{} : in.lists(math), a = in.lists(math),
                   u = in.lists(math, 0.01, 1), counts = kCounts ? in.zeros(kInt) : TensorList{};
  Maybe step_sizes, bias2;
  if (kCounts) {
    step_sizes = in.scalars({0, 0.1, 0.05, 0.04}, math);
    bias2 = in.scalars({1, 0.1, 0.2, 0.3}, math);
  }
  return [=] {
    return TensorList{adabreg_step_cpu(params, grads, duals, a, u, counts, {}, 0.1, 0.3, 1.5, 0.9,
                                       0.999, 1e-8, 1e-4, false, false, kDual != With::kGiven, 0.0,
                                       1.0, 7, step_sizes, bias2, {})};
  };
}

}  // namespace

std::vector<Case> step_cases() {
  return {
      {"grad_norm/dense", kFloats, norm<false, false>},
      {"grad_norm/masked", kFloats, norm<true, false>},
      {"grad_norm/weighted", kFloats, norm<false, true>},
      {"masked_perturb_/plain", kFloats, perturb<false, Saved::kNot>},
      {"masked_perturb_/adaptive", kFloats, perturb<false, Saved::kNot, true>},
      {"masked_perturb_/backup", kFloats, perturb<false, Saved::kWhole>, true},
      {"masked_perturb_/masked", kFloats, perturb<true, Saved::kNot>},
      {"masked_perturb_/masked_backup", kFloats, perturb<true, Saved::kWhole>},
      {"masked_perturb_/packed", kFloats, perturb<true, Saved::kPacked>, true},
      {"restore_/whole", kFloats, restore<false, Saved::kWhole>, true},
      {"restore_/masked", kFloats, restore<true, Saved::kWhole>},
      {"restore_/packed", kFloats, restore<true, Saved::kPacked>},
      {"restore_sgd_/plain", kFloats, sgd<false, false, Saved::kWhole>},
      {"restore_sgd_/momentum", kFloats, sgd<true, false, Saved::kWhole>, true},
      {"restore_sgd_/masked", kFloats, sgd<true, true, Saved::kWhole>},
      {"restore_sgd_/packed", kFloats, sgd<true, true, Saved::kPacked>},
      {"restore_adamw_/whole", kFloats, adamw<false, Saved::kWhole>, true},
      {"restore_adamw_/packed", kFloats, adamw<true, Saved::kPacked>},
      {"linbreg_step_/own", kFloats, linbreg<With::kOwn, false>},
      {"linbreg_step_/own_momentum", kFloats, linbreg<With::kOwn, true>},
      {"linbreg_step_/shrunk", kFloats, linbreg<With::kShrunk, false>, true},
      {"linbreg_step_/rests", kFloats, linbreg<With::kShrunk, false, false, true>},
      {"linbreg_step_/momentum", kFloats, linbreg<With::kShrunk, true>, true},
      {"linbreg_step_/masked", kFloats, linbreg<With::kShrunk, true, true>},
      {"linbreg_step_/given", kFloats, linbreg<With::kGiven, false>},
      {"linbreg_step_/given_momentum", kFloats, linbreg<With::kGiven, true>},
      {"adabreg_step_/own", kFloats, adabreg<With::kOwn, false>},
      {"adabreg_step_/shrunk", kFloats, adabreg<With::kShrunk, false>, true},
      {"adabreg_step_/counts", kFloats, adabreg<With::kShrunk, true>},
      {"adabreg_step_/given", kFloats, adabreg<With::kGiven, false>},
  };
}

}  // namespace hot
