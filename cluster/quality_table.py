#!/usr/bin/env python3
"""The table that quality.sh prints. Usage: quality_table.py DIR MODEL..., folders of airmoe-train."""

import json
import pathlib
import statistics
import sys

COLUMNS = ("model", "experts that a token's scores are computed for", "validation loss at step",
           "overlap with the exact top K", "tokens/s")


def number(value, digits):
    return "" if value is None else f"{value:.{digits}f}"


def row(folder):
    config = json.loads((folder / "config.resolved.json").read_text())
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = ", ".join(f"{step['step']}: {step['val_loss']:.4f}" for step in steps
                       if step.get("val_loss") is not None)
    last = json.loads((folder / "summary.json").read_text())
    speeds = [step["tokens_per_second"] for step in steps if "tokens_per_second" in step]
    candidates = f"{config['shortlist']:,}" if config["moe_layers"] else ""
    return (folder.name, candidates, losses, number(last.get("overlap"), 3),
            f"{statistics.median(speeds[len(speeds) // 4 :]):,.0f}")


def main():
    folder = pathlib.Path(sys.argv[1])
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for model in sys.argv[2:]:
        print("| " + " | ".join(row(folder / model)) + " |")


if __name__ == "__main__":
    main()
