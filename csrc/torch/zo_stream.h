// The schema's arguments of the random stream, checked and put into Directions and segments.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "../functors/zo_combine.h"
#include "segments.h"

namespace sk {

template <class Math>
Directions<Math> make_directions(const char* op, const Tensor* coef, int64_t q, const Tensor& key,
                                 const std::optional<Tensor>& directions, int64_t first_direction,
                                 const std::string& distribution, int64_t rounds,
                                 const std::string& math, const TensorList& tensors) {
  STD_TORCH_CHECK(q >= 1, op, ": at least one direction is needed");
  STD_TORCH_CHECK(rounds == 7 || rounds == 10, op, ": rounds must be 7 or 10");
  const bool signs = distribution == "rademacher";
  STD_TORCH_CHECK(signs || distribution == "normal", op, ": unknown distribution ", distribution);
  const bool fast = math == "fast";
  STD_TORCH_CHECK(fast || math == "portable", op, ": unknown math ", math);
  check_scalars(op, "key", key, 1, ScalarType::Long, tensors);
  if (directions) check_scalars(op, "directions", *directions, q, ScalarType::Long, tensors);
  if (coef) check_scalars(op, "coef", *coef, q, math_type(tensors[0].scalar_type()), tensors);
  Directions<Math> stream;
  stream.key = static_cast<const int64_t*>(key.data_ptr());
  stream.coef = coef ? static_cast<const Math*>(coef->data_ptr()) : nullptr;
  stream.directions = directions ? static_cast<const int64_t*>(directions->data_ptr()) : nullptr;
  stream.first_direction = first_direction;
  stream.q = int32_t(q);
  stream.rounds = int32_t(rounds);
  stream.signs = signs;
  stream.fast = fast;
  return stream;
}

// The segments of `tensors`, the first of the lists, each with its place in the random stream.
inline std::vector<Segment> drawn_segments(const char* op,
                                           std::initializer_list<const TensorList*> lists,
                                           const TensorList& masks, const TensorList& backup,
                                           const TensorList& ranks,
                                           const std::vector<int64_t>& uids,
                                           const std::vector<int64_t>& firsts) {
  const size_t count = (*lists.begin())->size();
  STD_TORCH_CHECK(uids.size() == count, op, ": one uid per tensor is needed");
  STD_TORCH_CHECK(firsts.empty() || firsts.size() == count, op,
                  ": one first index per tensor is needed");
  auto segments = make_segments(lists, masks, backup, ranks);
  for (size_t i = 0; i < count; ++i) {
    segments[i].uid = uint32_t(uids[i]);
    if (firsts.empty()) continue;
    STD_TORCH_CHECK(firsts[i] >= 0 && firsts[i] <= int64_t(1) << 62, op, ": firsts[", i,
                    "] is out of range");
    segments[i].first = firsts[i];
  }
  return segments;
}

// With ranks the entries of the tensors are packed: into the backup, or without one the source.
inline bool from_entries(const TensorList& backup, const TensorList& ranks) {
  return !ranks.empty() && backup.empty();
}

// f.operator()<S>() for where zo_combine_ of T starts from, see ZoCombine.
template <class T, class F>
void dispatch_source(const TensorList& src, const TensorList& backup, const TensorList& ranks,
                     ScalarType dtype, const F& f) {
  if (from_entries(backup, ranks)) return f.template operator()<FromEntries>();
  if (src.empty()) return f.template operator()<InPlace>();
  if constexpr (!std::is_same_v<T, opmath_t<T>>) {
    if (src[0].scalar_type() != dtype) return f.template operator()<opmath_t<T>>();
  }
  f.template operator()<T>();
}

}  // namespace sk
