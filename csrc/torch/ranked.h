// The schemas' arguments of a selection, checked and put into keys and segments.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "../functors/ranked.h"
#include "dispatch.h"
#include "op_checks.h"
#include "segments.h"

namespace sk {

// f(keys) for what `kind` ranks by
template <bool kDouble, class F>
auto dispatch_keys(const char* op, const std::string& kind, const std::optional<Tensor>& key,
                   ScalarType dtype, const F& f) {
  if (kind == "random") return f(RandomKeys{static_cast<const int64_t*>(key->data_ptr())});
  const bool magnitude = kind == "abs";
  return dispatch_float<kDouble>(op, dtype, [&]<class T>() { return f(score_keys<T>(magnitude)); });
}

inline int64_t bits_of_key(const std::string& kind, const TensorList& scores) {
  return kind != "random" && scores[0].scalar_type() == ScalarType::Double ? 64 : 32;
}

// Scores with candidates and words where there are any.
inline std::vector<Segment> ranked_segments(const TensorList& scores, const TensorList& among,
                                            const TensorList& words,
                                            const std::vector<int64_t>& firsts,
                                            const std::vector<int64_t>* cols = nullptr) {
  auto segments = make_segments({&scores, &words}, among, {});
  for (size_t t = 0; t < firsts.size(); ++t) segments[t].first = firsts[t];
  for (size_t t = 0; cols && t < cols->size(); ++t) segments[t].cols = (*cols)[t];
  return segments;
}

}  // namespace sk
