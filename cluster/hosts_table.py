#!/usr/bin/env python3
"""Medians of the runs of bench_hosts.sh: a table on stdout and in bench.txt, numbers in bench.json.

Usage: hosts_table.py DIRECTORY --strategies LIST [--skip STEPS] [what was asked, for the record]

Reads DIRECTORY/<strategy>/{metrics.jsonl,config.resolved.json}. step s is the whole step, layer s the
part in MoE layers, hidden the share of the time of token messages that no rank waited for. Bytes are
per step, sent to other ranks, all ranks together: for tokens (forward and backward), for copies and
their gradients, and for lists and placements.
"""

import argparse
import json
import os
import statistics


def read_run(folder, skip):
    with open(os.path.join(folder, "metrics.jsonl"), encoding="utf-8") as file:
        steps = [json.loads(line) for line in file]
    with open(os.path.join(folder, "config.resolved.json"), encoding="utf-8") as file:
        config = json.load(file)
    tokens = config["batch"] * config["context"]
    counted = [step for step in steps if step["step"] > skip]
    seconds = [tokens / step["tokens_per_second"] for step in counted]

    def median(key):
        return statistics.median(step[key] for step in counted)

    # bytes_per_token is dispatch, select, combine and backward together.
    phases = [key for key in counted[0] if key.startswith("bytes_") and key != "bytes_per_token"]
    sent = {key.removeprefix("bytes_"): median(key) * tokens for key in sorted(phases)}
    return {
        "steps": len(counted),
        "tokens_per_step": tokens,
        "step_seconds": statistics.median(seconds),
        "step_seconds_min": min(seconds),
        "step_seconds_max": max(seconds),
        "all_step_seconds": seconds,
        "layer_seconds": median("layer_seconds"),
        "hidden_share": median("hidden_share"),
        "bytes_per_step": sent,
        "token_bytes_per_step": median("bytes_per_token") * tokens,
        "lambda_candidate": median("lambda_candidate"),
        "lambda_selected": median("lambda_selected"),
        "loss": [step["loss"] for step in steps],
    }


def table(runs, first):
    rows = [("strategy", "step s", "min", "max", "against " + first, "layer s", "hidden",
             "tokens MB", "copies MB", "lists MB", "ranks / token")]
    base = runs[first]["step_seconds"]
    for name, run in runs.items():
        sent = run["bytes_per_step"]
        megabytes = [run["token_bytes_per_step"], sent["copies"], sent["lists"]]
        rows.append((name, f"{run['step_seconds']:.3f}", f"{run['step_seconds_min']:.3f}",
                     f"{run['step_seconds_max']:.3f}", f"{run['step_seconds'] / base:.2f}",
                     f"{run['layer_seconds']:.3f}", f"{run['hidden_share']:.0%}",
                     *(f"{b / 1e6:.2f}" for b in megabytes), f"{run['lambda_candidate']:.2f}"))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) if i == 0 else cell.rjust(width)
                               for i, (cell, width) in enumerate(zip(row, widths)))
                     for row in rows)


def loss_spread(runs):
    """Largest relative difference of the losses of a step between strategies."""
    spread = 0.0
    for losses in zip(*(run["loss"] for run in runs.values())):
        spread = max(spread, (max(losses) - min(losses)) / abs(min(losses)))
    return spread


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory")
    parser.add_argument("--strategies", required=True)
    parser.add_argument("--skip", type=int, default=0)
    for asked in ("hosts", "rate", "delay", "copy-budget"):
        parser.add_argument("--" + asked, default=None)
    options = parser.parse_args()
    names = options.strategies.split(",")
    runs = {name: read_run(os.path.join(options.directory, name), options.skip) for name in names}
    spread = loss_spread(runs)
    text = table(runs, names[0])
    text += (f"\nmedians of {runs[names[0]]['steps']} steps of "
             f"{runs[names[0]]['tokens_per_step']} tokens on {options.hosts} hosts, links: "
             f"{options.rate}; losses of the strategies differ by {spread:.1e} at most\n")
    print(text, end="")
    with open(os.path.join(options.directory, "bench.txt"), "w", encoding="utf-8") as file:
        file.write(text)
    with open(os.path.join(options.directory, "bench.json"), "w", encoding="utf-8") as file:
        json.dump({"hosts": options.hosts, "rate": options.rate, "delay": options.delay,
                   "copy_budget": options.copy_budget, "skipped_steps": options.skip,
                   "loss_spread": spread, "runs": runs}, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
