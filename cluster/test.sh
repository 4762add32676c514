#!/usr/bin/env bash
# Installs the packages, builds everything and runs every test that needs no GPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash cluster/packages.sh
source cluster/environment.sh

echo "== configure and build (build/release)"
cmake --preset release
cmake --build --preset release -j"$(nproc)"

echo "== test"
ctest --preset release -LE gpu -j"$(nproc)"
