#!/usr/bin/env bash
# Validation loss of AIR, of exact routing (one codeword whose list holds every expert) and of a dense
# FFN in the MoE layer's place: the same model, steps and data, one run after the other on one GPU.
#   quality.sh [OPTIONS] [-- AIRMOE-TRAIN OPTIONS]
#   --steps N          optimizer steps of 8,192 tokens (1200)
#   --experts N        E, at most 65536 (65536)
#   --active N         K (512)
#   --shortlist N      M of AIR (2048)
#   --codewords N      G of AIR (512)
#   --models LIST      of air,exact,dense (all)
#   --output-dir DIR   a folder per model, and table.md (runs/quality)
#   --build-dir DIR    (build/gpu, as gpu.sh makes it)
#   --help
# What follows -- goes to all runs, for example: -- --seed 2 --data FOLDER
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
steps=1200 experts=65536 active=512 shortlist=2048 codewords=512 models=air,exact,dense
output=$root/runs/quality build=$root/build/gpu

fail() {
  echo "quality: $*" >&2
  exit 1
}

more=()
while [ $# -gt 0 ]; do
  case "$1" in
    --) shift; more=("$@"); break ;;
    -h | --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 0 ;;
  esac
  [ $# -ge 2 ] || fail "$1: an option and its value are needed; --help lists them"
  case "$1" in
    --steps) steps=$2 ;;
    --experts) experts=$2 ;;
    --active) active=$2 ;;
    --shortlist) shortlist=$2 ;;
    --codewords) codewords=$2 ;;
    --models) models=$2 ;;
    --output-dir) output=$2 ;;
    --build-dir) build=$2 ;;
    *) fail "$1 is not an option; --help lists them" ;;
  esac
  shift 2
done
train=$build/apps/airmoe-train
[ -x "$train" ] || fail "$train is not there: build it with cluster/gpu.sh, or name --build-dir"
mkdir -p "$output"
output=$(cd "$output" && pwd)
cd "$root"
source cluster/environment.sh

for model in ${models//,/ }; do
  case "$model" in
    air) shape=(--moe-layers 2 --codewords "$codewords" --shortlist "$shortlist") ;;
    exact) shape=(--moe-layers 2 --codewords 1 --shortlist "$experts") ;;
    dense) shape=(--moe-layers none) ;;
    *) fail "--models: $model is not one of air, exact, dense" ;;
  esac
  echo "== $model"
  "$train" --device cuda --layers 4 --dim 256 --heads 4 --kv-heads 1 --ffn-dim 768 --context 256 \
    --batch 32 --experts "$experts" --active "$active" --lr 1e-3 --steps "$steps" \
    --eval-every $(((steps + 3) / 4)) --eval-sequences 128 --no-checkpoint "${shape[@]}" \
    --output-dir "$output/$model" "${more[@]}"
done
echo
python3 -B cluster/quality_table.py "$output" ${models//,/ } | tee "$output/table.md"
