// Tensors of the cases in hot_cases.cpp: the same numbers on every machine, from a counter.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstring>
#include <vector>

#include "../../csrc/core/mask.h"
#include "../../csrc/core/types.h"

namespace hot {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using TensorList = std::vector<Tensor>;

constexpr ScalarType kInt = ScalarType::Int, kLong = ScalarType::Long;

inline ScalarType math_of(ScalarType t) { return t == ScalarType::Double ? t : ScalarType::Float; }

inline void put(const Tensor& t, int64_t i, double x) {
  switch (t.scalar_type()) {
    case ScalarType::Double:
      static_cast<double*>(t.data_ptr())[i] = x;
      break;
    case ScalarType::Half:
      static_cast<sk::f16*>(t.data_ptr())[i] = sk::store<sk::f16>(float(x));
      break;
    case ScalarType::BFloat16:
      static_cast<sk::bf16*>(t.data_ptr())[i] = sk::store<sk::bf16>(float(x));
      break;
    default:
      static_cast<float*>(t.data_ptr())[i] = float(x);
  }
}

// What a case is made for, and everything it made.
struct Inputs {
  std::vector<int64_t> sizes;  // one tensor of each
  ScalarType type;
  int64_t offset;     // elements between an aligned address and every tensor
  TensorList made{};  // hashed after the call
  uint64_t counter = 0;

  // the 32 middle bits of splitmix64
  uint32_t random() {
    uint64_t z = (counter += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return uint32_t(z >> 16);
  }
  Tensor tensor(int64_t numel, ScalarType t) { return made.emplace_back(numel, t, offset); }

  // uniform in [low, high); one in 16 is 0
  Tensor numbers(int64_t numel, ScalarType t, double low, double high) {
    Tensor x = tensor(numel, t);
    for (int64_t i = 0; i < numel; ++i) {
      const uint32_t r = random();
      put(x, i, r % 16 == 0 ? 0.0 : low + (high - low) * double(r) * 0x1p-32);
    }
    return x;
  }
  TensorList lists(ScalarType t, double low = -1, double high = 1) {
    TensorList out;
    for (const int64_t n : sizes) out.push_back(numbers(n, t, low, high));
    return out;
  }
  TensorList params() { return lists(type); }
  TensorList zeros(ScalarType t) {
    TensorList out;
    for (const int64_t n : sizes) out.push_back(tensor(n, t));
    return out;
  }
  Tensor scalars(std::vector<double> values, ScalarType t) {
    Tensor x = tensor(int64_t(values.size()), t);
    for (size_t i = 0; i < values.size(); ++i) put(x, int64_t(i), values[i]);
    return x;
  }
  Tensor integers(std::vector<int64_t> values) {
    Tensor x = tensor(int64_t(values.size()), kLong);
    std::copy(values.begin(), values.end(), static_cast<int64_t*>(x.data_ptr()));
    return x;
  }
  // one number per tensor
  Tensor each(double value, ScalarType t) {
    return scalars(std::vector<double>(sizes.size(), value), t);
  }
  std::vector<int64_t> numbered() const {
    std::vector<int64_t> out;
    for (size_t i = 0; i < sizes.size(); ++i) out.push_back(int64_t(i) + 3);
    return out;
  }

  // half of the bits 1, in runs of whole words now and then; sparse: 1 in 16, with words of 0
  TensorList masks(bool sparse = false) {
    TensorList out;
    for (const int64_t n : sizes) {
      Tensor x = tensor(sk::words_of(n), kInt);
      auto* words = static_cast<uint32_t*>(x.data_ptr());
      for (int64_t w = 0; w < x.numel(); ++w) {
        uint32_t bits = random();
        if (sparse) bits &= random() & random() & random();
        if (!sparse && bits % 16 == 0) bits = ~0u;
        words[w] = sk::existing_bits(bits, n - 32 * w);
      }
      out.push_back(x);
    }
    return out;
  }
  // Tables of ranks of masks, and in `ones` the number of their ones.
  TensorList ranks(const TensorList& masks, int64_t& ones) {
    TensorList out;
    ones = 0;
    for (size_t t = 0; t < sizes.size(); ++t) {
      Tensor x = tensor(sk::tiles_of(sizes[t]), kLong);
      const auto* words = static_cast<const uint32_t*>(masks[t].data_ptr());
      for (int64_t tile = 0; tile < x.numel(); ++tile) {
        static_cast<int64_t*>(x.data_ptr())[tile] = ones;
        const int64_t first = tile * sk::kRankTile;
        ones += sk::count_ones(words + first / 32, std::min(sizes[t] - first, sk::kRankTile));
      }
      out.push_back(x);
    }
    return out;
  }
};

// A mask with its ranks and a packed tensor of its entries.
struct Packed {
  TensorList masks, ranks, entries;

  Packed(Inputs& in, bool filled) : masks(in.masks()) {
    int64_t ones = 0;
    ranks = in.ranks(masks, ones);
    entries = {filled ? in.numbers(ones, in.type, -1, 1) : in.tensor(ones, in.type)};
  }
};

// FNV-1a over the bytes.
inline uint64_t hashed(const TensorList& tensors) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const Tensor& t : tensors) {
    const auto* bytes = static_cast<const unsigned char*>(t.data_ptr());
    for (size_t i = 0; i < size_t(t.numel()) * t.element_size(); ++i) {
      hash = (hash ^ bytes[i]) * 0x100000001b3u;
    }
  }
  return hash;
}

}  // namespace hot
