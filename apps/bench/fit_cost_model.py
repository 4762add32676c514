#!/usr/bin/env python3
"""Fits the constants of experts/cost_model.hpp.

Usage: fit_cost_model.py FILE, with FILE from `airmoe-bench expert-paths --json FILE`. Prints the two
lines to put into the header. Least squares of predicted / measured against 1, constants >= 0.
"""

import itertools
import json
import sys

import numpy


def fit(units, seconds):
    """Non-negative least squares over every subset of the columns (there are at most five)."""
    scaled = units / seconds[:, None]
    best, best_error = None, numpy.inf
    for size in range(1, units.shape[1] + 1):
        for columns in map(list, itertools.combinations(range(units.shape[1]), size)):
            solution = numpy.linalg.lstsq(scaled[:, columns], numpy.ones(len(seconds)), rcond=None)[0]
            error = numpy.sum((scaled[:, columns] @ solution - 1) ** 2)
            if solution.min() >= 0 and error < best_error:
                best, best_error = numpy.zeros(units.shape[1]), error
                best[columns] = solution
    return best, numpy.sqrt(best_error / len(seconds))


def main():
    results = json.load(open(sys.argv[1]))["results"]
    for path in ("dense", "grouped"):
        units = numpy.array([r[path + "_units"] for r in results])
        constants, error = fit(units, numpy.array([r[path + "_seconds"] for r in results]))
        values = ", ".join(f"{c:.2e}" for c in constants)
        print(f"inline constexpr {path.capitalize()}Units k{path.capitalize()}Seconds = {{{values}}};  // rms error {error:.0%}")


if __name__ == "__main__":
    main()
