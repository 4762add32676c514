#!/usr/bin/env python3
"""Draws what airmoe-study counted.

    plot_study.py STUDY.csv [--output DIR]

Writes to DIR (default: the folder of the file), for each batch size in the file:
bytes_TOKENS.png   bytes per token against ranks, per strategy
cover_TOKENS.png   ranks per token and bytes against the copy budget, per rank count
and, where the file has several batch sizes, crossover.png: bytes of gather and of the best cover
against tokens per rank and step.
"""

import argparse
import csv
import os
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend must be chosen first)

EXIT_BAD_DATA = 65
NUMBERS = ("ranks", "tokens_per_rank", "budget", "best", "synthetic", "candidate_ranks",
           "selected_ranks", "total_bytes", "list_bytes", "copy_bytes", "rows_max", "seconds")


class BadStudy(Exception):
    """What is wrong with a file, in one line."""


def read_study(path):
    """Returns the comment lines without '#', and the rows with their numbers as floats."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            lines = file.read().splitlines()
    except OSError as error:
        raise BadStudy(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadStudy(f"{path}: not a text file") from error
    comments = [line[1:].strip() for line in lines if line.startswith("#")]
    reader = csv.DictReader(line for line in lines if not line.startswith("#"))
    missing = [name for name in ("strategy", "placement", *NUMBERS)
               if name not in (reader.fieldnames or ())]
    if missing:
        raise BadStudy(f"{path}: no column {missing[0]}; `airmoe-study --csv FILE` writes such files")
    rows = []
    for number, row in enumerate(reader, 1):
        try:
            rows.append({**row, **{name: float(row[name]) for name in NUMBERS}})
        except (TypeError, ValueError) as error:
            raise BadStudy(f"{path}: row {number}: {error}") from error
    if not rows:
        raise BadStudy(f"{path}: no rows in it")
    return comments, rows


def label_of(row):
    """The line that a row belongs to in the plot of bytes; None for those that have none."""
    if row["strategy"] == "cover":
        if row["budget"] == 1:
            return "cover, no copies"
        return "cover, best budget" if row["best"] else None
    if row["strategy"] in ("deduplicated",):
        return f"deduplicated, {row['placement']}"
    names = {"per-expert": "copy per expert", "all-gather": "all-gather of tokens",
             "replicated": "replicate everything"}
    return names.get(row["strategy"], row["strategy"])


def series_of(rows, x, y, label):
    """{label: (xs, ys)} of the rows with positive y, by ascending x."""
    points = {}
    for row in rows:
        name = label(row)
        if name is not None and row[y] > 0:
            points.setdefault(name, {})[row[x]] = row[y]
    return {name: (sorted(p), [p[k] for k in sorted(p)]) for name, p in points.items()}


def finish(axes, x_label, y_label, title):
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    if axes.get_lines():
        axes.legend(fontsize=8)


def draw_bytes(rows, title):
    figure, axes = plt.subplots(figsize=(8, 5.5))
    baselines = ("deduplicated", "copy per", "all-gather", "replicate")
    for name, (xs, ys) in series_of(rows, "ranks", "total_bytes", label_of).items():
        style = {"linestyle": "--", "alpha": 0.8} if name.startswith(baselines) else {}
        if name == "auto":
            style = {"color": "black", "linestyle": ":", "linewidth": 2.5}
        axes.plot(xs, ys, marker="o", markersize=3.5, label=name, **style)
    axes.set_yscale("log")
    finish(axes, "ranks", "bytes per token and step, sent", title)
    figure.tight_layout()
    return figure


def draw_cover(rows, title):
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5))
    covers = [row for row in rows if row["strategy"] == "cover"]
    by_ranks = lambda row: f"{row['ranks']:g} ranks"  # noqa: E731
    for axes, y, y_label in ((left, "candidate_ranks", "candidate ranks per token"),
                             (right, "total_bytes", "bytes per token and step, sent")):
        for name, (xs, ys) in series_of(covers, "budget", y, by_ranks).items():
            axes.plot(xs, ys, marker="o", markersize=3.5, label=name)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        finish(axes, "copy budget (rows per rank over E / ranks)", y_label, "")
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    return figure


def draw_crossover(rows, title):
    figure, axes = plt.subplots(figsize=(8, 5.5))
    kept = [row for row in rows if row["strategy"] == "gather"
            or (row["strategy"] == "cover" and row["best"])]
    label = lambda row: f"{row['strategy']}, {row['ranks']:g} ranks"  # noqa: E731
    lines = series_of(kept, "tokens_per_rank", "total_bytes", label)
    ranks = sorted({row["ranks"] for row in kept})
    for name in sorted(lines, key=lambda n: (n.split(",")[1], n)):
        xs, ys = lines[name]
        color = f"C{ranks.index(float(name.split(',')[1].split()[0]))}"
        axes.plot(xs, ys, marker="o", markersize=3.5, label=name, color=color,
                  linestyle="--" if name.startswith("gather") else "-")
    axes.set_yscale("log")
    finish(axes, "tokens per rank and step", "bytes per token and step, sent", title)
    figure.tight_layout()
    return figure


def draw_all(comments, rows):
    """{file name: figure}"""
    title = " - ".join(comments[:2])
    if any(row["synthetic"] for row in rows) and "synthetic" not in title.lower():
        title = f"SYNTHETIC {title}"
    sizes = sorted({row["tokens_per_rank"] for row in rows})
    figures = {}
    for size in sizes:
        some = [row for row in rows if row["tokens_per_rank"] == size]
        here = f"{title}\n{size:g} tokens per rank"
        figures[f"bytes_{size:g}.png"] = draw_bytes(some, here)
        figures[f"cover_{size:g}.png"] = draw_cover(some, here)
    if len(sizes) > 1:
        figures["crossover.png"] = draw_crossover(rows, title)
    return figures


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Draws what airmoe-study counted.")
    parser.add_argument("study", help="CSV file of airmoe-study")
    parser.add_argument("--output", help="folder for the pictures (default: that of the file)")
    options = parser.parse_args(arguments)
    output = options.output or os.path.dirname(options.study) or "."
    try:
        comments, rows = read_study(options.study)
    except BadStudy as error:
        print(f"plot_study: {error}", file=sys.stderr)
        return EXIT_BAD_DATA
    try:
        os.makedirs(output, exist_ok=True)
        for name, figure in draw_all(comments, rows).items():
            path = os.path.join(output, name)
            figure.savefig(path, dpi=110)
            plt.close(figure)
            print(f"plot_study: wrote {path}")
    except OSError as error:
        print(f"plot_study: cannot write to {output}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
