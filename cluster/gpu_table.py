#!/usr/bin/env python3
"""The table that gpu.sh prints: tests, then every measured piece of work, airmoe beside PyTorch.

Usage: gpu_table.py DIR, with tests.xml (CTest's JUnit file) and *.json of the benchmarks. A benchmark's
file holds results: [{"work", "name", "median_ms", ...}]; results of the same work are compared, as
multiples of airmoe's fastest.
"""

import json
import pathlib
import sys
import xml.etree.ElementTree


def tests(path):
    suite = xml.etree.ElementTree.parse(path).getroot()
    count = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "skipped")}
    print(f"{count['tests']} GPU tests, {count['failures']} failed, {count['skipped']} skipped")
    for case in suite.iter("testcase"):
        if case.get("status") == "fail":
            print(f"- failed: {case.get('name')}")


def cell(result):
    if "median_ms" not in result:
        return result.get("error", "")
    return f"{result['median_ms']:.3f}"


def main():
    folder = pathlib.Path(sys.argv[1])
    if (folder / "tests.xml").exists():
        tests(folder / "tests.xml")
    works, devices = {}, set()
    for path in sorted(folder.glob("*.json")):
        report = json.loads(path.read_text())
        program = "PyTorch" if report.get("benchmark") == "torch_baselines" else "airmoe"
        devices.add(f"{path.name}: {report.get('device', '')}; {report.get('data', '')}")
        for result in report.get("results", ()):
            if "work" in result:
                works.setdefault(result["work"], []).append((program, result))
    for device in sorted(devices):
        print(device)
    print("\n| work | | way | ms | x airmoe | tokens/s | note |\n|---|---|---|---|---|---|---|")
    for work, results in works.items():
        ours = [r["median_ms"] for program, r in results if program == "airmoe" and "median_ms" in r]
        for program, result in sorted(results, key=lambda r: r[0] != "airmoe"):
            ratio = f"{result['median_ms'] / min(ours):.2f}" if ours and "median_ms" in result else ""
            speed = result.get("tokens_per_second")
            print(f"| {work} | {program} | {result['name']} | {cell(result)} | {ratio} | "
                  f"{f'{speed:,.0f}' if speed else ''} | {result.get('note', '')} |")


if __name__ == "__main__":
    main()
