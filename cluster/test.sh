#!/usr/bin/env bash
# Installs the packages, builds everything and runs every test that needs no GPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash cluster/packages.sh
source cluster/environment.sh

echo "== configure and build (build/release)"
architectures=()
if [ ! -e /dev/nvidia0 ] && [ ! -e build/release/CMakeCache.txt ]; then
  # Kernels are compiled, not run: one architecture tells whether they compile.
  architectures=(-DCMAKE_CUDA_ARCHITECTURES=90a-real)
fi
cmake --preset release "${architectures[@]}"
cmake --build --preset release -j"$(nproc)"

echo "== test"
ctest --preset release -LE gpu -j"$(nproc)"
