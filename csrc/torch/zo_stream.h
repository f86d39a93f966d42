// The schema's arguments of the random stream, checked and put into Directions.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "../functors/zo_combine.h"
#include "check.h"

namespace sk {

template <class Math>
Directions<Math> make_directions(const char* op, const Tensor* coef, int64_t q, const Tensor& key,
                                 const std::optional<Tensor>& directions, int64_t first_direction,
                                 const std::vector<int64_t>& uids, const std::string& distribution,
                                 int64_t rounds, const TensorList& tensors) {
  STD_TORCH_CHECK(q >= 1, op, ": at least one direction is needed");
  STD_TORCH_CHECK(uids.size() == tensors.size(), op, ": one uid per tensor is needed");
  STD_TORCH_CHECK(rounds == 7 || rounds == 10, op, ": rounds must be 7 or 10");
  const bool signs = distribution == "rademacher";
  STD_TORCH_CHECK(signs || distribution == "normal", op, ": unknown distribution ", distribution);
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
  return stream;
}

}  // namespace sk
