// Tensor lists to the segments that the drivers walk.
#pragma once

#include <initializer_list>
#include <optional>
#include <vector>

#include "../core/segment.h"
#include "check.h"

namespace sk {

// Absent (empty) lists are left out, so the streams of an op are its present lists in order. With
// ranks, backup is the one packed tensor of all.
inline std::vector<Segment> make_segments(std::initializer_list<const TensorList*> lists,
                                          const TensorList& masks, const TensorList& backup,
                                          const TensorList& ranks = {}) {
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
    if (!ranks.empty()) {
      s.backup = backup[0].data_ptr();
      s.capacity = backup[0].numel();
      s.ranks = static_cast<const int64_t*>(ranks[i].data_ptr());
    } else if (!backup.empty()) {
      s.backup = backup[i].data_ptr();
    }
  }
  return segments;
}

// prox_group: streams params, duals and, where it is wanted, alive.
inline std::vector<Segment> tiled_segments(const TensorList& params, const TensorList& duals,
                                           const TensorList& alive,
                                           const std::vector<int64_t>& cols,
                                           const std::vector<int64_t>& heights,
                                           const std::vector<int64_t>& widths) {
  auto segments = make_segments({&params, &duals, &alive}, {}, {});
  for (size_t t = 0; t < segments.size(); ++t) {
    segments[t].cols = cols[t];
    segments[t].height = heights[t];
    segments[t].width = widths[t];
  }
  return segments;
}

// On the CPU, where the ranks can be read: the packed tensor has room for the ones of every mask.
inline void check_capacity(const char* op, const std::vector<Segment>& segments) {
  for (const Segment& s : segments) {
    if (!s.ranks || s.numel == 0) continue;
    const int64_t tile = (s.numel - 1) / kRankTile;
    const int64_t ones = count_ones(s.mask + tile * kRankTile / 32, s.numel - tile * kRankTile);
    STD_TORCH_CHECK(s.ranks[0] >= 0 && places_exist(s.ranks[tile], ones, s.capacity), op,
                    ": the packed backup has ", s.capacity, " entries, too few for its ranks");
  }
}

template <class T>
const T* data_or_null(const std::optional<Tensor>& t) {
  return t.has_value() ? static_cast<const T*>(t->data_ptr()) : nullptr;
}

}  // namespace sk
