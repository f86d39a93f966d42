// A list argument of an op: torch's handles, owned by the list. A vector of torch::stable::Tensor
// costs an allocation more per tensor, a quarter of what it takes to hand a list over.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

// Of Python's stable ABI; absent where torch runs without Python.
extern "C" {
__attribute__((weak)) void* PyGILState_GetThisThreadState();
__attribute__((weak)) int PyGILState_Ensure();
__attribute__((weak)) void PyGILState_Release(int);
}

namespace sk {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

#if defined(TORCH_STABLE_ONLY)

// One tensor of a list, valid as long as the list. Torch is asked once for what checks and segments
// want of every tensor: a question to its C interface is a call.
class Listed {
 public:
  explicit Listed(AtenTensorHandle handle) : handle_(handle) {}
  void look() {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(handle_, &dim_));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(handle_, &sizes_));
    for (int64_t d = 0; d < dim_; ++d) numel_ *= sizes_[d];
  }
  operator Tensor() const {  // a handle of its own
    AtenTensorHandle copy;
    TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(handle_, &copy));
    return Tensor(copy);
  }

  AtenTensorHandle get() const { return handle_; }
  void* data_ptr() const {
    if (!data_) TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(handle_, &data_));
    return data_;
  }
  int64_t numel() const { return numel_; }
  bool same_shape(const Listed& o) const {
    return dim_ == o.dim_ && std::equal(sizes_, sizes_ + dim_, o.sizes_);
  }
  bool is_contiguous() const {
    bool contiguous;
    TORCH_ERROR_CODE_CHECK(aoti_torch_is_contiguous(handle_, &contiguous));
    return contiguous;
  }
  ScalarType scalar_type() const { return Tensor(*this).scalar_type(); }
  size_t element_size() const { return Tensor(*this).element_size(); }
  auto device() const { return Tensor(*this).device(); }
  int32_t get_device() const { return Tensor(*this).get_device(); }

 private:
  AtenTensorHandle handle_;
  int64_t dim_ = 0, *sizes_ = nullptr, numel_ = 1;
  mutable void* data_ = nullptr;
};

// The interpreter's lock, for a thread that came from Python. Dropping the last reference but the
// Python object's takes it, tensor by tensor, which costs less where the thread has it already.
// Such a thread takes it on its way back in any case, so that nobody can wait for it who does not
// already.
class PythonLock {
 public:
  PythonLock()
      : held_(PyGILState_GetThisThreadState && PyGILState_GetThisThreadState()),
        state_(held_ ? PyGILState_Ensure() : 0) {}
  PythonLock(const PythonLock&) = delete;
  PythonLock& operator=(const PythonLock&) = delete;
  ~PythonLock() {
    if (held_) PyGILState_Release(state_);
  }

 private:
  bool held_;
  int state_;
};

class TensorList {
 public:
  TensorList() = default;
  // takes the handles of a list that torch hands over, and the list itself
  explicit TensorList(StableListHandle list) : TensorList() {
    size_t size = 0;
    TORCH_ERROR_CODE_CHECK(torch_list_size(list, &size));
    tensors_.reserve(size);
    for (size_t i = 0; i < size; ++i) {
      StableIValue item;
      TORCH_ERROR_CODE_CHECK(torch_list_get_item(list, i, &item));
      tensors_.emplace_back(torch::stable::detail::to<AtenTensorHandle>(item));
      tensors_.back().look();
    }
    TORCH_ERROR_CODE_CHECK(torch_delete_list(list));
  }
  TensorList(TensorList&& o) noexcept : tensors_(std::exchange(o.tensors_, {})) {}
  TensorList& operator=(TensorList&& o) noexcept {
    std::swap(tensors_, o.tensors_);
    return *this;
  }
  ~TensorList() {
    if (tensors_.empty()) return;
    const PythonLock lock;
    for (const Listed& t : tensors_) aoti_torch_delete_tensor_object(t.get());
  }

  size_t size() const { return tensors_.size(); }
  bool empty() const { return tensors_.empty(); }
  const Listed& operator[](size_t i) const { return tensors_[i]; }
  auto begin() const { return tensors_.begin(); }
  auto end() const { return tensors_.end(); }

 private:
  std::vector<Listed> tensors_;
};

#else  // without libtorch, see tests/build/hot_torch.h

using Listed = Tensor;
using TensorList = std::vector<Tensor>;

#endif

}  // namespace sk

#if defined(TORCH_STABLE_ONLY)
template <>
struct torch::stable::detail::ToImpl<sk::TensorList> {
  static sk::TensorList call(StableIValue value, uint64_t, bool) {
    return sk::TensorList(torch::stable::detail::to<StableListHandle>(value));
  }
};
#endif
