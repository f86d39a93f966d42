// Tensor lists to the segments that the drivers walk.
#pragma once

#include <initializer_list>
#include <optional>
#include <vector>

#include "../core/segment.h"
#include "check.h"

namespace sk {

// Absent (empty) lists are left out, so the streams of an op are its present lists in order.
inline std::vector<Segment> make_segments(std::initializer_list<const TensorList*> lists,
                                          const TensorList& masks, const TensorList& backup,
                                          const std::vector<int64_t>* uids = nullptr) {
  const TensorList& lead = **lists.begin();
  std::vector<Segment> segments(lead.size());
  for (size_t i = 0; i < lead.size(); ++i) {
    Segment& s = segments[i];
    s.numel = lead[i].numel();
    size_t stream = 0;
    for (const TensorList* list : lists) {
      if (!list->empty()) s.data[stream++] = (*list)[i].data_ptr();
    }
    if (!masks.empty()) s.mask = static_cast<const uint32_t*>(masks[i].data_ptr());
    if (!backup.empty()) s.backup = backup[i].data_ptr();
    if (uids) s.uid = uint32_t((*uids)[i]);
  }
  return segments;
}

template <class T>
const T* data_or_null(const std::optional<Tensor>& t) {
  return t.has_value() ? static_cast<const T*>(t->data_ptr()) : nullptr;
}

}  // namespace sk
