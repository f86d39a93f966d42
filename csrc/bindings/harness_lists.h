// Lists of tensors for the sanitized harness, and what it compares.
#pragma once

#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "harness.h"

namespace sk::harness {

// Around a chunk; main goes on with more tensors than any table holds.
inline std::vector<int64_t> list_sizes{0, 1, 7, 65535, 65536, 65537};
inline bool many_tensors() { return list_sizes.size() > 6; }
inline int failures = 0;

// A list of tensors, each in an allocation of exactly its size, so that one byte beyond is caught.
template <class T>
struct List {
  std::vector<std::vector<char>> memory;
  int shift;

  List(int shift_bytes, std::mt19937& random) : shift(shift_bytes) {
    for (const int64_t n : list_sizes) {
      memory.emplace_back(size_t(n) * sizeof(T) + size_t(shift));
      for (int64_t i = 0; i < n; ++i) {
        const float x = float(int32_t(random())) * 0x1p-30f;
        if constexpr (std::is_integral_v<T>) {
          at(memory.size() - 1, i) = T(random());
        } else {
          at(memory.size() - 1, i) = store<T>(x);
        }
      }
    }
  }
  T* data(size_t t) { return reinterpret_cast<T*>(memory[t].data() + shift); }
  T& at(size_t t, int64_t i) { return data(t)[i]; }
};

struct Masks {
  std::vector<std::vector<uint32_t>> words;
  explicit Masks(std::mt19937& random) {
    for (const int64_t n : list_sizes) {
      auto& w = words.emplace_back(size_t(words_of(n)));
      for (auto& word : w) word = random() % 3 == 0 ? 0u : (random() % 3 == 0 ? ~0u : random());
      if (n % 32) w.back() &= (1u << (n % 32)) - 1u;
    }
  }
};

template <class T>
std::string name_of() {
  return sizeof(T) == 4 ? "float32" : (std::is_same_v<T, bf16> ? "bfloat16" : "float16");
}

inline void expect(bool same, const std::string& what) {
  if (same) return;
  ++failures;
  std::printf("differs: %s\n", what.c_str());
}

template <class... T>
Run run_of(Masks* masks, List<T>&... lists) {
  Run run;
  for (size_t t = 0; t < list_sizes.size(); ++t) {
    Segment s;
    s.numel = list_sizes[t];
    int i = 0;
    ((s.data[i++] = lists.data(t)), ...);
    if (masks) s.mask = masks->words[t].data();
    s.uid = uint32_t(t);
    run.segments.push_back(s);
  }
  return run;
}

// f(tensor, element) for all entries whose mask bit is set
template <class F>
void each_live(const Masks* masks, const F& f) {
  for (size_t t = 0; t < list_sizes.size(); ++t) {
    for (int64_t i = 0; i < list_sizes[t]; ++i) {
      if (!masks || mask_bit(masks->words[t].data(), i)) f(t, i);
    }
  }
}

}  // namespace sk::harness
