// The one summation order. Within a chunk of kChunkSize elements, lane (index mod kLanes) adds its
// values in index order; a binary tree joins the lanes; chunks are added in double, in
// (tensor, chunk) order. No result depends on grid or thread count.
// Twin: chunk_sums in sparse_kernels/reference/_common.py.
#pragma once

#include "macros.h"

namespace sk {

// `count` lanes, a power of two; the lanes left out hold +0.0.
template <class T>
SK_HD T join_lanes(T* lanes, int count = kLanes) {
  for (int width = count / 2; width > 0; width /= 2) {
#pragma omp simd
    for (int i = 0; i < width; ++i) lanes[i] = lanes[i] + lanes[i + width];
  }
  return lanes[0];
}

}  // namespace sk
