#include "scheduler/residency/expert_residency.hpp"

#include <algorithm>
#include <cstring>

#include "comm/base/error.hpp"

namespace airmoe::scheduler {

namespace {

// Buffer::ensure, but what was there stays. Room for an eighth more, since the number of copies
// changes a little from step to step.
template <class T>
void resize_keeping(Buffer<T>& buffer, int64_t size) {
  if (size * static_cast<int64_t>(sizeof(T)) > buffer.capacity_bytes()) {
    Buffer<T> larger(size + size / 8);
    if (buffer.size() > 0) {
      std::memcpy(larger.data(), buffer.data(),
                  static_cast<std::size_t>(buffer.size()) * sizeof(T));
    }
    buffer.swap(larger);
  }
  buffer.ensure(size);
}

}  // namespace

ExpertResidency::ExpertResidency(comm::Communicator& comm, int64_t experts, SumPrecision sums)
    : comm_(comm),
      sums_(sums),
      blocks_{experts, comm.size()},
      home_(static_cast<std::size_t>(experts)),
      row_of_expert_(static_cast<std::size_t>(experts), -1),
      fetch_(comm),
      give_(comm) {
  owned_ = blocks_.size(comm.rank());
  take_blocks();
}

template <class T>
void ExpertResidency::add(std::vector<RowArray<T>>& arrays, Buffer<T>& array, int64_t row_size) {
  AIRMOE_CHECK(row_size >= 1 && array.size() == owned_ * row_size,
               "an array of {} elements does not hold {} experts of {} elements", array.size(),
               owned_, row_size);
  AIRMOE_CHECK(copies() == 0, "arrays are added before there are copies, there are {}", copies());
  arrays.push_back({&array, row_size});
}

void ExpertResidency::add_values(Buffer<float>& array, int64_t row_size, Fetch when) {
  add(values_, array, row_size);
  (when == Fetch::at_once ? early_ : late_).push_back(values_.back());
}
void ExpertResidency::add_gradients(Buffer<double>& array, int64_t row_size) {
  add(gradients_, array, row_size);
}
void ExpertResidency::add_owned(Buffer<float>& array, int64_t row_size) {
  add(owned_arrays_, array, row_size);
}

void ExpertResidency::take_blocks() {
  for (int r = 0; r < comm_.size(); ++r) {
    std::fill(home_.begin() + blocks_.begin(r), home_.begin() + blocks_.end(r), r);
  }
  in_blocks_ = true;
  index_owned();
}

// From home_: which experts have rows here and where. There are no copies.
void ExpertResidency::index_owned() {
  for (const int32_t e : expert_of_row_) row_of_expert_[e] = -1;
  expert_of_row_.clear();
  for (int32_t e = 0; e < experts(); ++e) {
    if (home_[e] != comm_.rank()) continue;
    row_of_expert_[e] = static_cast<int32_t>(rows());
    expert_of_row_.push_back(e);
  }
}

void ExpertResidency::reset_homes() {
  AIRMOE_CHECK(copies() == 0, "there are {} copies, drop them before homes change", copies());
  take_blocks();
}

void ExpertResidency::resize_arrays(int64_t rows) {
  for (const auto& a : values_) resize_keeping(*a.buffer, rows * a.row_size);
  for (const auto& a : gradients_) resize_keeping(*a.buffer, rows * a.row_size);
}

void ExpertResidency::drop_copies() {
  AIRMOE_CHECK(!acquiring_, "copies are dropped between begin_acquire and finish_acquire");
  AIRMOE_CHECK(touched_experts_.empty(), "{} copies still hold gradients", touched_experts_.size());
  for (int64_t row = owned_; row < rows(); ++row) row_of_expert_[expert_of_row_[row]] = -1;
  expert_of_row_.resize(static_cast<std::size_t>(owned_));
  touched_.clear();
  complete_.clear();
  resize_arrays(owned_);
}

}  // namespace airmoe::scheduler
