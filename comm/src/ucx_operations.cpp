#include "comm/src/ucx_operations.hpp"

#include <algorithm>

namespace airmoe::comm {

UcxOperations::UcxOperations(UcxWorker& worker) : worker_(worker) {
  worker_.operations_.push_back(this);
}

UcxOperations::~UcxOperations() {
  std::erase(worker_.operations_, this);
}

void UcxOperations::clear() {
  AIRMOE_ASSERT(open_ == 0);
  used_ = 0;
  wrong_ = nullptr;
}

UcxOperations::Operation& UcxOperations::add(int peer, bool is_recv, std::size_t bytes) {
  if (used_ == operations_.size()) operations_.emplace_back();
  Operation& operation = operations_[used_++];
  operation = {};
  operation.set = this;
  operation.peer = peer;
  operation.is_recv = is_recv;
  operation.open = true;
  operation.bytes = bytes;
  ++open_;
  return operation;
}

ucp_request_param_t UcxOperations::send_param(Operation& operation) {
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  param.user_data = &operation;
  param.cb.send = [](void*, ucs_status_t status, void* data) {
    end(*static_cast<Operation*>(data), status, 0);
  };
  return param;
}

// Always by the callback: where a receive may end at once, UCX 1.13 does not tell the size of a
// message that came in several packets.
ucp_request_param_t UcxOperations::recv_param(Operation& operation) {
  ucp_request_param_t param{};
  param.op_attr_mask =
      UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FLAG_NO_IMM_CMPL;
  param.user_data = &operation;
  param.cb.recv = [](void*, ucs_status_t status, const ucp_tag_recv_info_t* got, void* data) {
    auto& ended = *static_cast<Operation*>(data);
    if (ended.peer == kAnyPeer && status == UCS_OK) ended.peer = sender_of(got->sender_tag);
    end(ended, status, status == UCS_OK ? got->length : 0);
  };
  return param;
}

void UcxOperations::send(int peer, uint32_t channel, ConstBytes data) {
  const ucp_ep_h endpoint = worker_.endpoint(peer);
  Operation& operation = add(peer, false, data.size());
  const ucp_request_param_t param = send_param(operation);
  started(operation, ucp_tag_send_nbx(endpoint, data.data(), data.size(),
                                      ucx_tag(worker_.rank(), channel), &param));
}

void UcxOperations::recv(int peer, uint32_t channel, Bytes data) {
  post_recv(add(peer, true, data.size()), ucx_tag(peer, channel), kAllOfTag, data);
}

void UcxOperations::recv_any(uint32_t channel, Bytes room) {
  Operation& operation = add(kAnyPeer, true, room.size());
  operation.exact = false;
  post_recv(operation, ucx_tag(0, channel), kChannelOfTag, room);
}

void UcxOperations::post_recv(Operation& operation, ucp_tag_t tag, ucp_tag_t mask, Bytes data) {
  const ucp_request_param_t param = recv_param(operation);
  started(operation,
          ucp_tag_recv_nbx(worker_.handle(), data.data(), data.size(), tag, mask, &param));
}

void UcxOperations::started(Operation& operation, ucs_status_ptr_t request) {
  if (UCS_PTR_IS_ERR(request)) {
    end(operation, UCS_PTR_STATUS(request), 0);
  } else if (request == nullptr) {  // ended at once, without a callback
    end(operation, UCS_OK, operation.bytes);
  } else if (operation.open) {
    operation.request = request;
  } else {  // ended at once, with a callback
    ucp_request_free(request);
  }
}

// An operation that failed with its connection stays open: its peer is missing, and a wait says so.
void UcxOperations::end(Operation& operation, ucs_status_t status, std::size_t received) noexcept {
  UcxOperations& set = *operation.set;
  if (operation.request != nullptr) ucp_request_free(operation.request);
  operation.request = nullptr;
  operation.received = received;
  const bool other_size =
      operation.is_recv && (status == UCS_ERR_MESSAGE_TRUNCATED ||
                            (status == UCS_OK && operation.exact && received != operation.bytes));
  if (other_size && set.wrong_ == nullptr) set.wrong_ = &operation;
  if (status == UCS_OK || other_size || status == UCS_ERR_CANCELED) {
    operation.open = false;
    --set.open_;
  } else {
    if (operation.peer != kAnyPeer) set.worker_.note_loss(operation.peer, status);
  }
}

void UcxOperations::check(const char* phase, const char* operation) const {
  if (wrong_ == nullptr) return;
  fail(ExitCode::failure, "rank {}: phase {}: {}: rank {} sent {} bytes, {} were expected",
       worker_.rank(), phase, operation, wrong_->peer,
       wrong_->received > 0 ? std::to_string(wrong_->received) : "more", wrong_->bytes);
}

std::set<int> UcxOperations::open_peers(bool of_receives) const {
  std::set<int> peers;
  for (std::size_t i = 0; i < used_; ++i) {
    if (operations_[i].open && operations_[i].is_recv == of_receives) {
      peers.insert(operations_[i].peer);
    }
  }
  return peers;
}

std::string UcxOperations::missing() const {
  const std::set<int> senders = open_peers(true);
  const std::set<int> receivers = open_peers(false);
  std::string text;
  if (!senders.empty()) text += fmt::format("rank {} (to send)", fmt::join(senders, ", "));
  if (!senders.empty() && !receivers.empty()) text += " and ";
  if (!receivers.empty()) text += fmt::format("rank {} (to receive)", fmt::join(receivers, ", "));
  return text;
}

void UcxOperations::cancel() noexcept {
  for (std::size_t i = 0; i < used_; ++i) {
    Operation& operation = operations_[i];
    if (operation.is_recv && operation.request != nullptr) {
      ucp_request_cancel(worker_.handle(), operation.request);
    }
  }
}

}  // namespace airmoe::comm
