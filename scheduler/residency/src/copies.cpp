// Copies of experts: fetched, their gradients given back, their counts added up.

#include <algorithm>
#include <cstring>

#include "comm/base/error.hpp"
#include "scheduler/residency/expert_residency.hpp"
#include "scheduler/residency/src/message_tags.hpp"

namespace airmoe::scheduler {

template <class T>
int64_t ExpertResidency::width(const std::vector<RowArray<T>>& arrays) {
  int64_t sum = 0;
  for (const auto& a : arrays) sum += a.row_size;
  return sum;
}

// Gives every expert of `ids` that has none a row; the new ones by owner, ascending.
void ExpertResidency::add_missing_rows(std::span<const int32_t> ids) {
  constexpr int32_t kSeen = -2;
  missing_.clear();
  for (const int32_t e : ids) {
    AIRMOE_CHECK(e >= 0 && e < experts(), "expert {} is not one of {}", e, experts());
    if (row_of_expert_[e] != -1) continue;
    row_of_expert_[e] = kSeen;
    missing_.push_back(e);
  }
  fetch_.group(missing_, home_);
  const int64_t before = rows();
  for (const int32_t e : fetch_.ids()) {
    row_of_expert_[e] = static_cast<int32_t>(rows());
    expert_of_row_.push_back(e);
  }
  touched_.resize(static_cast<std::size_t>(copies()), 0);
  complete_.resize(static_cast<std::size_t>(copies()), 0);
  resize_arrays(rows());
  for (const auto& a : gradients_) std::fill(a.row(before), a.row(rows()), 0.0);
}

// Owners' rows of `arrays` to the ranks that announced, into value_in_.
comm::Ticket ExpertResidency::send_values(OwnerExchange& round,
                                          const std::vector<RowArray<float>>& arrays) {
  const int64_t size = width(arrays);
  value_out_.ensure(round.arrived() * size);
  float* to = value_out_.data();
  for (const int32_t e : round.announced()) {
    const int32_t row = owned_row(e);
    for (const auto& a : arrays) to = std::copy_n(a.row(row), a.row_size, to);
  }
  return round.from_owners(value_out_, value_in_, size, kTagCopies);
}

void ExpertResidency::take_values(const OwnerExchange& round,
                                  const std::vector<RowArray<float>>& arrays) {
  const float* from = value_in_.data();
  for (const int32_t e : round.ids()) {
    for (const auto& a : arrays) {
      std::copy_n(from, a.row_size, a.row(row_of_expert_[e]));
      from += a.row_size;
    }
  }
}

void ExpertResidency::begin_acquire(std::span<const int32_t> ids) {
  AIRMOE_CHECK(!acquiring_, "begin_acquire without finish_acquire");
  const comm::ScopedPhase phase(comm_, "copies");
  add_missing_rows(ids);
  fetch_.announce();
  fetching_ = send_values(fetch_, early_);
  acquiring_ = true;
}

void ExpertResidency::finish_acquire() {
  AIRMOE_CHECK(acquiring_, "finish_acquire without begin_acquire");
  const comm::ScopedPhase phase(comm_, "copies");
  fetching_.wait();
  acquiring_ = false;
  take_values(fetch_, early_);
}

void ExpertResidency::fetch_used(std::span<const int32_t> rows) {
  AIRMOE_CHECK(!acquiring_, "fetch_used between begin_acquire and finish_acquire");
  const comm::ScopedPhase phase(comm_, "copies");
  missing_.clear();
  for (const int32_t row : rows) {
    if (!lacks_values(row)) continue;
    complete_[static_cast<std::size_t>(row - owned_)] = 1;
    missing_.push_back(expert_of_row_[static_cast<std::size_t>(row)]);
  }
  fetch_.group(missing_, home_);
  fetch_.announce();
  send_values(fetch_, late_).wait();
  take_values(fetch_, late_);
}

// The row of an expert that another rank takes for ours.
int32_t ExpertResidency::owned_row(int32_t expert) const {
  AIRMOE_CHECK(expert >= 0 && expert < experts() && home_[expert] == comm_.rank(),
               "another rank takes expert {} for one of rank {}'s", expert, comm_.rank());
  return row_of_expert_[expert];
}

template <class T>
void ExpertResidency::return_rows(Buffer<T>& out, Buffer<T>& in) {
  const int64_t size = width(gradients_);
  out.ensure(std::ssize(give_.ids()) * size);
  T* to = out.data();
  for (const int32_t e : give_.ids()) {
    for (const auto& a : gradients_) {
      double* from = a.row(row_of_expert_[e]);
      for (int64_t i = 0; i < a.row_size; ++i) to[i] = static_cast<T>(from[i]);
      std::fill_n(from, a.row_size, 0.0);
      to += a.row_size;
    }
  }
  give_.to_owners(out, in, size, kTagCopyGradients).wait();
  const T* from = in.data();
  for (const int32_t e : give_.announced()) {
    const int32_t row = owned_row(e);
    for (const auto& a : gradients_) {
      double* sum = a.row(row);
      for (int64_t i = 0; i < a.row_size; ++i) sum[i] += static_cast<double>(from[i]);
      from += a.row_size;
    }
  }
}

void ExpertResidency::return_gradients() {
  AIRMOE_CHECK(!acquiring_, "return_gradients between begin_acquire and finish_acquire");
  const comm::ScopedPhase phase(comm_, "copy_gradients");
  give_.group(touched_experts_, home_);
  give_.announce();
  if (sums_ == SumPrecision::f64) {
    return_rows(gradient_out_, gradient_in_);
  } else {
    return_rows(float_out_, float_in_);
  }
  std::fill(touched_.begin(), touched_.end(), uint8_t{0});
  touched_experts_.clear();
}

void ExpertResidency::share_counts(Buffer<int32_t>& count, std::vector<int32_t>& rows) {
  const comm::ScopedPhase phase(comm_, "usage");
  AIRMOE_CHECK(count.size() >= this->rows(), "{} counts for {} rows", count.size(), this->rows());
  listed_.resize(static_cast<std::size_t>(this->rows()), 0);
  counted_.clear();
  for (const int32_t row : rows) {
    listed_[row] = 1;
    if (row >= owned_) counted_.push_back(expert_of_row_[row]);
  }
  give_.group(counted_, home_);
  words_.clear();
  for (const int32_t e : give_.ids()) {
    words_.push_back(e);
    words_.push_back(count[row_of_expert_[e]]);
  }
  give_.announce(words_, 2);
  const std::span<const int32_t> words = give_.announced();
  for (std::size_t i = 0; i < words.size(); i += 2) {
    const int32_t row = owned_row(words[i]);
    count[row] += words[i + 1];
    if (listed_[row] == 0 && count[row] != 0) {
      listed_[row] = 1;
      rows.push_back(row);
    }
  }
  totals_out_.ensure(give_.arrived());
  for (std::size_t i = 0; i < words.size(); i += 2) {
    totals_out_[static_cast<int64_t>(i / 2)] = count[row_of_expert_[words[i]]];
  }
  give_.from_owners(totals_out_, totals_in_, 1, kTagUsage).wait();
  const std::span<const int32_t> ids = give_.ids();
  for (std::size_t i = 0; i < ids.size(); ++i) {
    count[row_of_expert_[ids[i]]] = totals_in_[static_cast<int64_t>(i)];
  }
  for (const int32_t row : rows) listed_[row] = 0;
}

}  // namespace airmoe::scheduler
