#!/usr/bin/env python3
"""The table that gpu.sh prints: tests, then every measured piece of work, airmoe beside PyTorch.

Usage: gpu_table.py DIR, with tests.xml (CTest's JUnit file), JSON files of airmoe-bench (router,
layer-gpu) and of torch_baselines.py (million-*.json: a million experts), and folders train-*/ of
airmoe-train. The column of ratios says how many times the milliseconds of airmoe's fastest way of
the same work.
"""

import json
import pathlib
import statistics
import sys
import xml.etree.ElementTree

#: results of airmoe-bench that do the same work as a group of torch_baselines.py
SAME_WORK = {
    "routing (all of it)": "routing",
    "list rebuild": "list rebuild",
    "evaluation forward": "layer forward",
    "training forward and backward": "layer both ways",
}


def print_tests(path):
    suite = xml.etree.ElementTree.parse(path).getroot()
    count = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "skipped")}
    print(f"{count['tests']} GPU tests, {count['failures']} failed, {count['skipped']} skipped")
    for case in suite.iter("testcase"):
        if case.get("status") == "fail":
            print(f"- failed: {case.get('name')}")
    print()


def bench_rows(report):
    """(work, program, row) of an airmoe-bench file or of torch_baselines.py's."""
    if report["benchmark"] == "torch_baselines":
        for result in report["results"]:
            yield result["work"], "PyTorch", result
        return
    for name, times in report.get("milliseconds", {}).items():
        work = SAME_WORK.get(name, f"{report['benchmark']}: part")
        yield work, "airmoe", {"name": name, **times}


def steady_speed(folder):
    """Tokens per second, median over the steps behind the first quarter, which allocates and tunes."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    speeds = [step["tokens_per_second"] for step in map(json.loads, lines)
              if "tokens_per_second" in step]
    return statistics.median(speeds[len(speeds) // 4 :])


def train_row(folder):
    config = json.loads((folder / "config.resolved.json").read_text())
    summary = json.loads((folder / "summary.json").read_text())
    tokens = config["batch"] * config["context"]
    kind = "MoE layer" if config["moe_layers"] else "dense FFN"
    speed = steady_speed(folder)
    return {"name": f"{kind}, {config['batch']} x {config['context']} tokens",
            "median_ms": tokens / speed * 1e3,
            "tokens_per_second": speed,
            "note": f"{summary.get('peak_device_bytes', 0) / 2**30:.1f} GiB of device memory"}


def describe(report):
    device = report.get("device", "")
    if isinstance(device, dict):
        device = device.get("name", "")
    return f"{device}; {report.get('data', '')}"


def collect(folder):
    works, about = {}, []
    for path in sorted(folder.glob("*.json")):
        report = json.loads(path.read_text())
        if "benchmark" not in report:
            continue
        about.append(f"{path.name}: {describe(report)}")
        shape = ", a million experts" if path.name.startswith("million-") else ""
        for work, program, row in bench_rows(report):
            if shape and program == "airmoe":
                row["note"] = report["data"]
            works.setdefault(work + shape, []).append((program, row))
    for path in sorted(folder.glob("train-*/summary.json")):
        works.setdefault("training step", []).append(("airmoe", train_row(path.parent)))
    return works, about


def cells(program, row, fastest):
    time = f"{row['median_ms']:.3f}" if "median_ms" in row else row.get("error", "")
    ratio = f"{row['median_ms'] / fastest:.2f}" if fastest and "median_ms" in row else ""
    speed = f"{row['tokens_per_second']:,.0f}" if "tokens_per_second" in row else ""
    if "rate" in row:
        speed = f"{row['rate']:,.0f} {row['unit']}"
    return " | ".join((program, row["name"], time, ratio, speed, row.get("note", "")))


def main():
    folder = pathlib.Path(sys.argv[1])
    if (folder / "tests.xml").exists():
        print_tests(folder / "tests.xml")
    works, about = collect(folder)
    print("\n".join(about))
    print("\n| work | | way | ms | ratio | rate, tokens/s | |\n|---|---|---|---|---|---|---|")
    for work, rows in works.items():
        ours = [row["median_ms"] for program, row in rows if program == "airmoe"]
        compared = len(ours) < len(rows) and work != "training step"
        for program, row in sorted(rows, key=lambda r: r[0] != "airmoe"):
            print(f"| {work} | {cells(program, row, min(ours) if ours and compared else 0)} |")


if __name__ == "__main__":
    main()
