// What csrc/cpu and csrc/torch use of libtorch, with nothing behind it: tensors are named memory, a
// parallel loop runs its tasks one after the other. With it the CPU ops become a program that needs
// no libtorch, for sanitizers and for counting instructions. test_hot_loops.py puts it in the place
// of torch's headers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace torch::headeronly {

enum class ScalarType { Byte, Bool, Int, Long, Half, BFloat16, Float, Double };

inline size_t size_of(ScalarType t) {
  constexpr size_t kSizes[] = {1, 1, 4, 8, 2, 2, 4, 8};
  return kSizes[int(t)];
}

}  // namespace torch::headeronly

namespace torch::stable {

using headeronly::ScalarType;

class Tensor {
 public:
  // `offset` elements past an address that is a multiple of 4,096; nothing lies behind the last one
  Tensor(int64_t numel, ScalarType type, int64_t offset = 0) : numel_(numel), type_(type) {
    const size_t bytes = size_t(offset + numel) * size_of(type);
    void* memory = nullptr;
    if (posix_memalign(&memory, 4096, std::max<size_t>(bytes, 1)) != 0) throw std::bad_alloc();
    memory_.reset(static_cast<char*>(memory), std::free);
    std::fill(memory_.get(), memory_.get() + bytes, char(0));
    data_ = memory_.get() + size_t(offset) * size_of(type);
  }
  void* data_ptr() const { return data_; }
  int64_t numel() const { return numel_; }
  ScalarType scalar_type() const { return type_; }
  size_t element_size() const { return size_of(type_); }
  bool is_contiguous() const { return true; }
  const Tensor* get() const { return this; }
  bool same_shape(const Tensor& o) const { return numel_ == o.numel_; }  // one dimension
  int device() const { return 0; }

 private:
  int64_t numel_;
  ScalarType type_;
  std::shared_ptr<char> memory_;
  char* data_;
};

inline int64_t numel_of(const std::vector<int64_t>& sizes) {
  int64_t numel = 1;
  for (const int64_t size : sizes) numel *= size;
  return numel;
}
inline Tensor empty(const std::vector<int64_t>& sizes, ScalarType type) {
  return {numel_of(sizes), type};
}
inline Tensor new_zeros(const Tensor&, const std::vector<int64_t>& sizes, ScalarType type) {
  return {numel_of(sizes), type};
}

inline int64_t threads = 2;
inline void (*around_task_1)(const std::function<void()>& task) = nullptr;

inline int64_t get_num_threads() { return threads; }
template <class F>
void parallel_for(int64_t begin, int64_t end, int64_t, const F& f) {
  for (int64_t i = begin; i < end; ++i) {
    if (i == 1 && around_task_1) {
      around_task_1([&] { f(i, i + 1); });
    } else {
      f(i, i + 1);
    }
  }
}

}  // namespace torch::stable

// The C functions under the accessors; none of them fails.
#define TORCH_ERROR_CODE_CHECK(call) static_cast<void>(call)
inline int32_t aoti_torch_device_type_cpu() { return 0; }
inline int aoti_torch_get_device_type(const torch::stable::Tensor*, int32_t* out) {
  return *out = 0;
}
inline int aoti_torch_get_device_index(const torch::stable::Tensor*, int32_t* out) {
  return *out = 0;
}
inline int aoti_torch_get_dtype(const torch::stable::Tensor* t, int32_t* out) {
  return *out = int32_t(t->scalar_type()), 0;
}
#define SK_DTYPE(name, type) \
  inline int32_t aoti_torch_dtype_##name() { return int32_t(torch::headeronly::ScalarType::type); }
SK_DTYPE(float32, Float)
SK_DTYPE(float64, Double)
SK_DTYPE(bfloat16, BFloat16)
SK_DTYPE(float16, Half)
SK_DTYPE(int32, Int)
SK_DTYPE(int64, Long)
SK_DTYPE(bool, Bool)
#undef SK_DTYPE

template <class... Parts>
std::runtime_error refused(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return std::runtime_error(text.str());
}
#define STD_TORCH_CHECK(condition, ...) ((condition) ? void() : throw refused(__VA_ARGS__))
#define TORCH_BOX(function) function
#define STABLE_TORCH_LIBRARY_IMPL(library, key, m) [[maybe_unused]] static void register_ops(auto m)
