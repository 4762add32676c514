#!/usr/bin/env bash
# Builds with CUDA, runs every test that needs a GPU, then the GPU benchmarks and, where python3 has
# PyTorch, the same work in PyTorch on the same data. One table at the end; everything is kept in the
# output folder. Packages come from the system's package manager; where that cannot be, put what
# packages.sh names elsewhere, name the places in CMAKE_PREFIX_PATH, and skip packages.
#   gpu.sh [OPTIONS] [-- TORCH_BASELINES OPTIONS]
#   --output-dir DIR   results: *.json, logs and table.md (runs/gpu)
#   --build-dir DIR    (build/gpu)
#   --arch LIST        CUDA architectures (those of CMake's presets: sm_80, sm_90 and PTX)
#   --data PATH        text for training runs (airmoe-train's own choice)
#   --skip LIST        of packages,build,tests,benchmarks,torch
#   --help
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
output=$root/runs/gpu build=$root/build/gpu arch="" skip=""

fail() {
  echo "gpu: $*" >&2
  exit 1
}

torch_options=() text=()
while [ $# -gt 0 ]; do
  case "$1" in
    --) shift; torch_options=("$@"); break ;;
    -h | --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 0 ;;
  esac
  [ $# -ge 2 ] || fail "$1: an option and its value are needed; --help lists them"
  case "$1" in
    --output-dir) output=$2 ;;
    --build-dir) build=$2 ;;
    --arch) arch=$2 ;;
    --data) text=(--data "$2") ;;
    --skip) skip=$2 ;;
    *) fail "$1 is not an option; --help lists them" ;;
  esac
  shift 2
done
for part in ${skip//,/ }; do
  case "$part" in packages | build | tests | benchmarks | torch) ;;
    *) fail "--skip: $part is not one of packages, build, tests, benchmarks, torch" ;;
  esac
done
wanted() { [[ ",$skip," != *",$1,"* ]]; }

nvidia-smi -L >/dev/null 2>&1 || fail "no NVIDIA GPU is visible (nvidia-smi -L); nothing to run"
mkdir -p "$output"
output=$(cd "$output" && pwd)
cd "$root"
source cluster/environment.sh

if wanted build && wanted packages; then
  echo "== packages"
  bash cluster/packages.sh || fail "not all packages could be installed (above: which are missing);" \
    "have them installed, or name in CMAKE_PREFIX_PATH where they are, then: --skip packages"
fi

if wanted build; then
  echo "== configure and build ($build)"
  options=(-DAIRMOE_WITH_CUDA=ON)
  [ -z "$arch" ] || options+=("-DCMAKE_CUDA_ARCHITECTURES=$arch")
  cmake --preset release -B "$build" "${options[@]}" >"$output/configure.log" 2>&1 ||
    { tail -n 30 "$output/configure.log" >&2; fail "configuring failed: $output/configure.log"; }
  cmake --build "$build" -j"$(nproc)" >"$output/build.log" 2>&1 ||
    { tail -n 30 "$output/build.log" >&2; fail "the build failed: $output/build.log"; }
fi

tests=0
if wanted tests; then
  echo "== tests (label gpu)"
  ctest --test-dir "$build" -L gpu --no-tests=error --output-on-failure \
    --output-log "$output/tests.log" --output-junit "$output/tests.xml" || tests=$?
fi

# Runs a command; one that fails is named at the end and does not stop the others.
failed=()
measure() {
  local name=$1
  shift
  echo "== $name: $*"
  "$@" 2>&1 | tee "$output/$name.log" || failed+=("$name")
}

million=(--dim 1024 --experts 1048576 --shortlist 4096 --codewords 4096 --clusters 4096)
bench=$build/apps/airmoe-bench train=$build/apps/airmoe-train
if wanted benchmarks; then
  rm -f "$output"/states-*.npy
  measure router "$bench" router --export "$output/states" --json "$output/router.json"
  for centroids in clustered normal; do
    measure million-router-$centroids "$bench" router "${million[@]}" --centroids "$centroids" \
      --cluster-groups 32 --codebook-batches 8 --json "$output/million-router-$centroids.json"
  done
  measure layer "$bench" layer-gpu --json "$output/layer.json"
  for batch in 8 32; do
    for layers in middle none; do
      name=train-$layers-$batch model=()
      [ "$layers" = middle ] || model=(--moe-layers none)
      measure "$name" "$train" --device cuda --preset small --batch "$batch" --steps 40 \
        --eval-every 0 --no-checkpoint "${model[@]}" "${text[@]}" --output-dir "$output/$name"
    done
  done
fi

if wanted torch; then
  if python3 -c 'import torch' 2>/dev/null; then
    data=()
    [ ! -e "$output/states-hidden.npy" ] || data=(--data "$output/states")
    measure torch python3 -B apps/bench/torch_baselines.py "${data[@]}" "${torch_options[@]}" \
      --json "$output/torch.json"
    measure million-torch python3 -B apps/bench/torch_baselines.py "${million[@]}" --parts routing \
      --only "full scoring" --sets 1 --json "$output/million-torch.json"
  else
    echo "== torch: python3 has no PyTorch, its baselines are left out"
  fi
fi

echo
python3 -B cluster/gpu_table.py "$output" | tee "$output/table.md"
for name in "${failed[@]}"; do echo "failed: $name, see $output/$name.log"; done
[ "$tests" -eq 0 ] || fail "tests failed: $output/tests.log"
[ ${#failed[@]} -eq 0 ]
