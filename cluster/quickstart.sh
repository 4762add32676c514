#!/usr/bin/env bash
# Installs the packages, builds, trains the default model on two ranks and draws a plot.
# Everything it leaves is in runs/quickstart; an earlier run is moved aside, never deleted.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
run=runs/quickstart

bash cluster/packages.sh
source cluster/environment.sh

echo "== build (build/release)"
cmake --preset release
cmake --build --preset release -j"$(nproc)" --target airmoe-train airmoe-inspect airmoe-info

if [ -e "$run" ]; then
  n=1
  while [ -e "$run.$n" ]; do n=$((n + 1)); done
  mv "$run" "$run.$n"
  echo "== the earlier $run is now $run.$n"
fi

echo "== train on 2 ranks"
mpirun -n 2 build/release/apps/airmoe-train --preset tiny --output-dir "$run"

echo "== plot"
"$AIRMOE_PYTHON" apps/plot/plot_metrics.py "$run/metrics.jsonl" --output "$run/plot.png"

echo "== done"
"$AIRMOE_PYTHON" - "$run" <<'PYTHON'
import glob, json, sys
run = sys.argv[1]
with open(f"{run}/summary.json") as file:
    summary = json.load(file)
for key in ("steps", "ranks", "tokens_per_second", "loss_first", "loss_last", "val_loss",
            "val_perplexity", "overlap", "lambda_candidate", "lambda_selected", "dead_fraction",
            "peak_rss_bytes"):
    value = summary[key]
    print(f"  {key:18} {format(value, '.5g') if isinstance(value, float) else value}")
for what, path in (("checkpoints", f"{run}/checkpoints"), ("metrics", f"{run}/metrics.jsonl"),
                   ("summary", f"{run}/summary.json"), ("plot", f"{run}/plot.png")):
    names = sorted(glob.glob(f"{path}/step-*.h5")) if what == "checkpoints" else [path]
    print(f"  {what:18} {', '.join(names)}")
PYTHON
