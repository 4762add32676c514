#pragma once
// What every backend of Communicator must do. A backend's test file instantiates
// CollectiveContract, ExchangeContract and SparseContract with one or more Backends.

#include "tests/comm/collective_contract.hpp"
#include "tests/comm/exchange_contract.hpp"
#include "tests/comm/sparse_contract.hpp"
