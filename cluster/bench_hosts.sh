#!/usr/bin/env bash
# Step time of the exchange strategies over several hosts with slow links, all on this machine
# (netns.sh). Trains a model of one MoE layer a few steps with each strategy, from the same seed, and
# prints medians; bench.json, bench.txt and each run's metrics stay in the output folder.
#   bench_hosts.sh [OPTIONS] [-- AIRMOE-TRAIN OPTIONS]
#   --hosts N           hosts, one rank each (4)
#   --rate RATE         of each link, in tc's words (1gbit)
#   --delay TIME        one way, where the kernel can (none)
#   --copy-budget X     of the strategies with copies: experts on a rank, in E / ranks (2.5)
#   --strategies LIST   of copies,cover,selected,gather,auto (copies,cover,selected,gather)
#   --steps N           per strategy (12)
#   --skip N            first steps that do not count (4)
#   --output-dir DIR    (runs/hosts)
#   --program FILE      (build/release/apps/airmoe-train)
# copies is cover with the copy budget, cover is cover without copies.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

hosts=4 rate=1gbit delay=- budget=2.5 strategies=copies,cover,selected,gather
steps=12 skip=4 output=runs/hosts program=$here/../build/release/apps/airmoe-train
# One layer, so that the exchange is most of the step; 8,192 tokens a step over all hosts.
model=(--layers 1 --dim 256 --heads 4 --kv-heads 1 --ffn-dim 256 --experts 16384 --active 32
       --shortlist 512 --codewords 128 --context 128 --batch 64)

fail() {
  echo "bench_hosts: $*" >&2
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
    --hosts) hosts=$2 ;;
    --rate) rate=$2 ;;
    --delay) delay=$2 ;;
    --copy-budget) budget=$2 ;;
    --strategies) strategies=$2 ;;
    --steps) steps=$2 ;;
    --skip) skip=$2 ;;
    --output-dir) output=$2 ;;
    --program) program=$2 ;;
    *) fail "$1 is not an option; --help lists them" ;;
  esac
  shift 2
done
for number in "$steps" "$skip"; do
  [[ $number =~ ^[0-9]+$ ]] || fail "--steps and --skip: $number is not a number"
done
[ "$steps" -gt "$skip" ] || fail "--steps $steps: give more than --skip $skip"
IFS=, read -r -a names <<<"$strategies"
for name in "${names[@]}"; do
  case "$name" in copies | cover | selected | gather | auto) ;;
    *) fail "--strategies: $name is not one of copies, cover, selected, gather, auto" ;;
  esac
done
[ "$(id -u)" -eq 0 ] || fail "needs root for network namespaces: run it as root (sudo $0 ...)"
[ -x "$program" ] ||
  fail "$program is missing: build it (cmake --build --preset release), or give --program"
program=$(realpath "$program")
# shellcheck source=cluster/environment.sh
source "$here/environment.sh"

training=
finish() {
  trap '' INT TERM
  [ -z "$training" ] || kill -TERM "$training" 2>/dev/null || true
  [ -z "$training" ] || wait "$training" 2>/dev/null || true
  bash "$here/netns.sh" down
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
bash "$here/netns.sh" up "$hosts" "$rate" "$delay" || {
  trap - EXIT  # nothing is up, or it is not ours
  exit 1
}

for name in "${names[@]}"; do
  case "$name" in
    copies) exchange=(--exchange cover --copy-budget "$budget") ;;
    cover) exchange=(--exchange cover --copy-budget 1) ;;
    selected) exchange=(--exchange selected) ;;
    *) exchange=(--exchange "$name" --copy-budget "$budget") ;;
  esac
  run=$output/$name
  mkdir -p "$run"
  rm -f "$run"/metrics*.jsonl "$run/summary.json"
  echo "== $name: airmoe-train ${exchange[*]}"
  # In the background, so that a signal ends it at once.
  bash "$here/netns.sh" run "$program" "${model[@]}" --steps "$steps" --schedule-steps 1000 \
    --eval-every 0 --eval-sequences 0 --no-checkpoint --progress never --output-dir "$run" \
    "${exchange[@]}" "${more[@]}" >"$run/log.txt" 2>&1 &
  training=$!
  wait "$training" ||
    fail "$name failed: $(grep -m1 '^airmoe-train: ' "$run/log.txt" || echo "see $run/log.txt")"
  training=
done

"$AIRMOE_PYTHON" "$here/hosts_table.py" "$output" --strategies "$strategies" --skip "$skip" \
  --hosts "$hosts" --rate "$rate" --delay "$delay" --copy-budget "$budget"
