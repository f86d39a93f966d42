// The schemas' arguments of live_mask_, mask_index_, gather_entries_ and scatter_entries_, checked
// and put into segments.
#pragma once

#include <vector>

#include "op_checks.h"
#include "segments.h"

namespace sk {

inline ScalarType check_live_mask(const TensorList& duals, const TensorList& words) {
  constexpr const char* kOp = "live_mask_";
  const ScalarType dtype = duals[0].scalar_type();
  STD_TORCH_CHECK(dtype == math_type(dtype), kOp, ": duals must be float32 or float64");
  check_list(kOp, "duals", duals, duals, dtype);
  check_output_words(kOp, words, duals);
  return dtype;
}

// An index of a tensor's entries or runs.
inline void check_index(const char* op, const TensorList& index, const TensorList& lead) {
  STD_TORCH_CHECK(index.size() == lead.size(), op, ": index has ", index.size(),
                  " tensors, expected ", lead.size());
  for (size_t i = 0; i < index.size(); ++i) {
    STD_TORCH_CHECK(index[i].scalar_type() == ScalarType::Int && index[i].is_contiguous() &&
                        index[i].device() == lead[i].device(),
                    op, ": index[", i, "] must be int32 and contiguous, on its tensor's device");
  }
}

inline void check_mask_index(const TensorList& words, const TensorList& ranks,
                             const TensorList& index) {
  constexpr const char* kOp = "mask_index_";
  check_list(kOp, "words", words, words, ScalarType::Int);
  check_tables(kOp, "ranks", ranks, words);
  check_index(kOp, index, words);
  for (size_t i = 0; i < words.size(); ++i) {
    STD_TORCH_CHECK(words[i].numel() < int64_t(1) << 26, kOp, ": words[", i,
                    "] has 2^31 entries or more");
  }
}

// gather_entries_ and scatter_entries_
inline void check_entries(const char* op, const TensorList& tensors, const TensorList& index,
                          const std::vector<int64_t>& runs, const TensorList& values) {
  const ScalarType dtype = tensors[0].scalar_type();
  check_list(op, "tensors", tensors, tensors, dtype);
  check_index(op, index, tensors);
  STD_TORCH_CHECK(runs.size() == tensors.size() && values.size() == tensors.size(), op,
                  ": tensors, runs and values differ in length");
  for (size_t i = 0; i < tensors.size(); ++i) {
    STD_TORCH_CHECK(runs[i] >= 1 && tensors[i].numel() % runs[i] == 0, op, ": runs[", i, "] ",
                    runs[i], " does not divide ", tensors[i].numel(), " elements");
    STD_TORCH_CHECK(values[i].scalar_type() == dtype && values[i].numel() % runs[i] == 0 &&
                        values[i].numel() / runs[i] == index[i].numel() &&
                        values[i].is_contiguous() && values[i].device() == tensors[i].device(),
                    op, ": values[", i, "] must be contiguous like its tensor, with ", runs[i],
                    " elements for each of ", index[i].numel(), " entries");
  }
}

// Streams: the tensors, then the values, by whose elements a call is divided; the index beside
// them.
inline std::vector<Segment> entry_segments(const TensorList& tensors, const TensorList& index,
                                           const std::vector<int64_t>& runs,
                                           const TensorList& values) {
  auto segments = make_segments({&tensors, &values}, {}, {});
  for (size_t i = 0; i < segments.size(); ++i) {
    segments[i].numel = values[i].numel();
    segments[i].input = index[i].data_ptr();
    segments[i].input_numel = tensors[i].numel() / runs[i];
    segments[i].cols = runs[i];
  }
  return segments;
}

// The masks, numbered by their entries, and the indices to fill.
inline std::vector<Segment> index_segments(const TensorList& words, const TensorList& ranks,
                                           const TensorList& index) {
  auto segments = make_segments({&index}, words, {});
  for (size_t i = 0; i < segments.size(); ++i) {
    segments[i].numel = 32 * words[i].numel();
    segments[i].capacity = index[i].numel();
    segments[i].ranks = static_cast<const int64_t*>(ranks[i].data_ptr());
  }
  return segments;
}

}  // namespace sk
