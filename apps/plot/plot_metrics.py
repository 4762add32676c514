#!/usr/bin/env python3
"""Draws the metrics of one or more training runs.

    plot_metrics.py RUN/metrics.jsonl [OTHER/metrics.jsonl ...] [--output PICTURE]

The picture has four panels over the step: loss, throughput, traffic, optimizer. Values that a file
does not have are left out. After a resume the later line of a repeated step counts.
"""

import argparse
import json
import math
import os
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend must be chosen first)

EXIT_BAD_DATA = 65


class BadMetrics(Exception):
    """What is wrong with a file, in one line."""


def read_metrics(path):
    """Returns the objects of a metrics.jsonl, one per step, by ascending step."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except OSError as error:
        raise BadMetrics(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadMetrics(f"{path}: not a text file") from error
    by_step = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines) and by_step:
                print(f"{path}:{number}: incomplete last line ignored", file=sys.stderr)
                continue
            raise BadMetrics(f"{path}:{number}: not JSON: {error.msg}") from error
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            raise BadMetrics(f"{path}:{number}: not an object with an integer 'step'")
        by_step.setdefault(record["step"], {}).update(record)
    if not by_step:
        raise BadMetrics(f"{path}: no metrics in it")
    return [by_step[step] for step in sorted(by_step)]


def series(records, key):
    """Steps and values of the records that hold a finite number under `key`."""
    points = [(r["step"], r[key]) for r in records
              if isinstance(r.get(key), (int, float)) and math.isfinite(r[key])]
    return [p[0] for p in points], [p[1] for p in points]


class Run:
    """The records of one file and how it is drawn: several runs differ by colour, one run's series
    do."""

    def __init__(self, path, number, several):
        self.records = read_metrics(path)
        self.several = several
        self.number = number
        name = os.path.basename(os.path.dirname(os.path.abspath(path)))
        self.prefix = f"{name}: " if several else ""

    def color(self, series_number):
        return f"C{self.number if self.several else series_number}"

    def draw(self, axes, key, label, series_number=0, **style):
        """Draws one series if the file has it."""
        steps, values = series(self.records, key)
        if values:
            style = {"linewidth": 1.2, "color": self.color(series_number), **style}
            axes.plot(steps, values, label=self.prefix + label, **style)


def start_at_zero(axes, headroom):
    """Makes the axis begin at 0 and end above the largest value by the factor `headroom`."""
    largest = max((max(line.get_ydata()) for line in axes.get_lines()), default=0)
    axes.set_ylim(0, headroom * largest if largest > 0 else 1)


def draw_loss(axes, runs):
    for run in runs:
        run.draw(axes, "loss", "training", alpha=0.6)
        run.draw(axes, "val_loss", "validation", 1, marker="o", markersize=4)
        steps, values = series(run.records, "val_perplexity")
        if values:
            axes.annotate(f"perplexity {values[-1]:.3g}", (steps[-1], math.log(values[-1])),
                          textcoords="offset points", xytext=(-4, 12), ha="right",
                          color=run.color(1))
    axes.set_ylabel("loss (nats per token)")


def draw_throughput(axes, runs):
    for run in runs:
        run.draw(axes, "tokens_per_second", "tokens/s")
    axes.set_ylabel("tokens per second")
    start_at_zero(axes, 1.15)


def draw_traffic(axes, runs):
    bytes_axes = axes.twinx()
    for run in runs:
        run.draw(axes, "lambda_candidate", "candidate ranks")
        run.draw(axes, "lambda_selected", "selected ranks", 1, linestyle="--")
        run.draw(bytes_axes, "bytes_per_token", "bytes per token", 2, linestyle=":")
    axes.set_ylabel("ranks per token")
    bytes_axes.set_ylabel("bytes per token (dotted)")
    start_at_zero(axes, 1.15)
    start_at_zero(bytes_axes, 1.5)
    return bytes_axes


def draw_optimizer(axes, runs):
    rate_axes = axes.twinx()
    for run in runs:
        run.draw(axes, "grad_norm", "gradient norm", alpha=0.7)
        run.draw(axes, "balance_loss", "balance loss", 1, linestyle="--")
        run.draw(rate_axes, "learning_rate", "learning rate", 2, linestyle=":", linewidth=2)
    axes.set_ylabel("gradient norm, balance loss")
    rate_axes.set_ylabel("learning rate (dotted)")
    start_at_zero(axes, 1.3)
    start_at_zero(rate_axes, 1.15)
    return rate_axes


def draw(runs, title):
    figure, panels = plt.subplots(2, 2, figsize=(12, 7.5), sharex=True)
    parts = (("Loss", draw_loss), ("Throughput", draw_throughput), ("Traffic", draw_traffic),
             ("Optimizer", draw_optimizer))
    for axes, (name, draw_panel) in zip(panels.flat, parts):
        second = draw_panel(axes, runs)
        handles, labels = axes.get_legend_handles_labels()
        if second is not None:
            more = second.get_legend_handles_labels()
            handles, labels = handles + more[0], labels + more[1]
        if handles:
            axes.legend(handles, labels, fontsize=8)
        else:
            axes.text(0.5, 0.5, "not in these metrics", ha="center", transform=axes.transAxes)
        axes.set_title(name)
        axes.grid(alpha=0.3)
    for axes in panels[1]:
        axes.set_xlabel("step")
    figure.suptitle(title)
    figure.tight_layout()
    return figure


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Draws the metrics of one or more training runs.")
    parser.add_argument("metrics", nargs="+", help="metrics.jsonl files")
    parser.add_argument("--output", help="picture to write, format by its suffix "
                        "(default: metrics.png beside the first file)")
    parser.add_argument("--title", default="airmoe training")
    options = parser.parse_args(arguments)
    output = options.output or os.path.join(os.path.dirname(options.metrics[0]), "metrics.png")
    several = len(options.metrics) > 1
    try:
        runs = [Run(path, number, several) for number, path in enumerate(options.metrics)]
    except BadMetrics as error:
        print(f"plot_metrics: {error}", file=sys.stderr)
        return EXIT_BAD_DATA
    figure = draw(runs, options.title)
    try:
        figure.savefig(output, dpi=110)
    except (OSError, ValueError) as error:
        print(f"plot_metrics: cannot write {output}: {error}", file=sys.stderr)
        return 1
    print(f"plot_metrics: wrote {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
