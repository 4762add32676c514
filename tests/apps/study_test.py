"""airmoe-study on small routings: the table, its files, its refusals. Usage: study_test.py PROGRAMS MPIEXEC

The routing is made here, so bytes of some rows are counted here too.
"""

import csv
import os
import random
import subprocess
import sys
import tempfile
import unittest

import h5py
import numpy

TOP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
sys.path.insert(0, os.path.join(TOP, "apps", "plot"))
import plot_study  # noqa: E402

MPIEXEC = sys.argv.pop(2)
PROGRAMS = sys.argv.pop(1)
E, K, M, G, T, D = 60, 4, 20, 6, 96, 16


def make_routing(seed=1):
    source = random.Random(seed)
    lists = [source.sample(range(E), M) for _ in range(G)]
    codeword = [min(source.randrange(G), source.randrange(G)) for _ in range(T)]
    expert = [sorted(source.sample(lists[g], K)) for g in codeword]
    return {"codeword": numpy.array(codeword, "i4"), "expert": numpy.array(expert, "i4"),
            "shortlist": numpy.array(lists, "i4")}


class Study(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = directory.name
        self.trace = self.path("trace.h5")
        self.routing = make_routing()
        self.write_trace(self.trace, self.routing)

    def path(self, name):
        return os.path.join(self.directory, name)

    def write_trace(self, path, arrays, **attributes):
        with h5py.File(path, "w") as file:
            group = file.create_group("step_000007/layer_02")
            for name, values in arrays.items():
                group.create_dataset(name, data=values, compression="gzip")
            group.attrs["jitter"] = 0.0
            for name, value in attributes.items():
                group.attrs[name] = value

    def study(self, *options, code=0):
        run = subprocess.run([os.path.join(PROGRAMS, "airmoe-study"), *options],
                             capture_output=True, text=True, timeout=200)
        self.assertEqual(run.returncode, code, run.stdout + run.stderr)
        return run.stderr if code else run.stdout

    def rows(self, *options):
        path = self.path("study.csv")
        self.study(*options, "--csv", path)
        with open(path, encoding="utf-8") as file:
            return list(csv.DictReader(line for line in file if not line.startswith("#")))

    def common(self, *more):
        return ("--trace", self.trace, "--experts", str(E), "--dim", str(D), *more)

    def find(self, rows, strategy, placement=None, **where):
        found = [r for r in rows if r["strategy"] == strategy
                 and placement in (None, r["placement"])
                 and all(float(r[k]) == v for k, v in where.items())]
        self.assertEqual(len(found), 1, (strategy, placement, where))
        return found[0]

    def test_counts_of_libraries(self):
        rows = self.rows(*self.common("--ranks", "1,3", "--tokens-per-rank", "0"))
        owner = lambda e: int(e) // (E // 3)  # noqa: E731
        dedup = per_expert = ranks = 0
        for t in range(T):
            home = t // (T // 3)
            there = [owner(e) for e in self.routing["expert"][t] if owner(e) != home]
            ranks += len({owner(e) for e in self.routing["expert"][t]})
            dedup += len(set(there)) * 4 * 4 * D + 12 * len(there)
            per_expert += len(there) * 4 * 4 * D
        block = self.find(rows, "deduplicated", "block", ranks=3)
        self.assertAlmostEqual(float(block["total_bytes"]), dedup / T, places=3)
        self.assertAlmostEqual(float(block["selected_ranks"]), ranks / T, places=4)
        gathered = self.find(rows, "all-gather", ranks=3)
        self.assertAlmostEqual(float(gathered["total_bytes"]), 2 * 4 * 4 * D, places=3)
        values = 3 * D
        replicated = self.find(rows, "replicated", ranks=3)
        self.assertAlmostEqual(float(replicated["copy_bytes_per_step"]), 4 * E * values * 4)
        for row in rows:
            if float(row["ranks"]) == 1:
                self.assertEqual(float(row["total_bytes"]), 0, row)

    def test_rows_and_files_agree(self):
        stored = self.path("study.h5")
        rows = self.rows(*self.common("--ranks", "2,4", "--copy-budget", "1.5,4",
                                      "--tokens-per-rank", "50,200", "--micro-batches", "2",
                                      "--hdf5", stored))
        self.assertEqual({(r["ranks"], r["tokens_per_rank"]) for r in rows},
                         {(r, n) for r in "24" for n in ("50", "200")})
        for row in rows:
            channels = sum(float(v) for k, v in row.items() if k.startswith("channel_"))
            parts = sum(float(row[k]) for k in
                        ("forward_bytes", "backward_bytes", "copy_bytes", "list_bytes"))
            self.assertAlmostEqual(channels, float(row["total_bytes"]), delta=1e-3)
            self.assertAlmostEqual(parts, float(row["total_bytes"]), delta=1e-3)
            self.assertGreaterEqual(float(row["candidate_ranks"]) + 1e-6,
                                    float(row["selected_ranks"]))
        one = self.find(rows, "cover", ranks=4, tokens_per_rank=200, budget=1)
        self.assertEqual(float(one["copy_bytes"]), 0)
        full = self.find(rows, "cover", ranks=4, tokens_per_rank=200, budget=4)
        self.assertLess(float(full["candidate_ranks"]), float(one["candidate_ranks"]))
        chosen = self.find(rows, "auto", ranks=4, tokens_per_rank=200)
        self.assertIn(chosen["placement"], ("cover", "selected", "gather"))
        with h5py.File(stored) as file:
            group = file["study"]
            self.assertEqual(group["ranks"].shape, (len(rows),))
            names = group.attrs["strategies"].split(",")
            self.assertEqual([names[i] for i in group["strategy"]], [r["strategy"] for r in rows])
            self.assertEqual(group["bytes_per_token"].shape[1],
                             len(group.attrs["channels"].split(",")))
            self.assertTrue(numpy.allclose(group["bytes_per_token"][...].sum(axis=1),
                                           [float(r["total_bytes"]) for r in rows]))

    def test_same_numbers_every_time(self):
        options = self.common("--ranks", "4", "--tokens-per-rank", "100", "--seed", "5")
        drop = lambda rows: [{k: v for k, v in r.items() if k != "plan_seconds"}  # noqa: E731
                             for r in rows]
        self.assertEqual(drop(self.rows(*options)), drop(self.rows(*options)))

    def test_synthetic_is_labelled_everywhere(self):
        stored, csv_path = self.path("s.h5"), self.path("s.csv")
        text = self.study("--synthetic", "--experts", "200", "--active", "4", "--shortlist", "30",
                          "--codewords", "12", "--tokens", "100", "--ranks", "4",
                          "--tokens-per-rank", "64", "--hdf5", stored, "--csv", csv_path)
        self.assertIn("SYNTHETIC", text)
        comments, rows = plot_study.read_study(csv_path)
        self.assertIn("SYNTHETIC", " ".join(comments))
        self.assertTrue(all(r["synthetic"] == 1 for r in rows))
        with h5py.File(stored) as file:
            self.assertEqual(file["study"].attrs["synthetic"], 1)

    def test_plots(self):
        text = self.study(*self.common("--ranks", "2,4", "--tokens-per-rank", "20,80",
                                       "--plots", self.path("plots")))
        self.assertIn("plot_study.py", text)
        comments, rows = plot_study.read_study(self.path("plots/study.csv"))
        figures = plot_study.draw_all(comments, rows)
        self.assertEqual(sorted(figures), ["bytes_20.png", "bytes_80.png", "cover_20.png",
                                           "cover_80.png", "crossover.png"])
        lines = {line.get_label(): line for line in figures["bytes_80.png"].axes[0].get_lines()}
        self.assertEqual(list(lines["gather"].get_xdata()), [2, 4])
        self.assertIn("deduplicated, random", lines)
        self.assertIn("cover, no copies", lines)
        self.assertEqual(plot_study.main([self.path("plots/study.csv")]), 0)
        self.assertTrue(os.path.exists(self.path("plots/crossover.png")))
        self.assertEqual(plot_study.main([self.trace]), plot_study.EXIT_BAD_DATA)

    def run_on(self, ranks, *options, code=0):
        run = subprocess.run([MPIEXEC, "-n", str(ranks), os.path.join(PROGRAMS, "airmoe-study"),
                              *options], capture_output=True, text=True, timeout=200)
        self.assertEqual(run.returncode, code, run.stdout + run.stderr)
        return run.stdout + run.stderr

    def test_measured_is_predicted(self):
        small = ("--experts", "600", "--active", "8", "--shortlist", "60", "--codewords", "20",
                 "--dim", "12", "--tokens-per-rank", "40", "--run-steps", "1")
        for ranks, more in ((2, ("--micro-batches", "3")), (3, ("--sum-precision", "f32")),
                            (4, ("--expert-activation", "swiglu", "--expert-dim", "2")),
                            (8, ("--copy-budget", "1.5,3,8", "--jitter", "0"))):
            path = self.path(f"run{ranks}.csv")
            text = self.run_on(ranks, "--run", *small, *more, "--csv", path)
            self.assertIn("SYNTHETIC", text)
            self.assertNotIn("DIFFERENT", text)
            with open(path, encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            for row in rows:
                self.assertEqual(row["measured_bytes"], row["predicted_bytes"], row)
            total = {r["strategy"]: int(r["measured_bytes"]) for r in rows if r["phase"] == "total"}
            self.assertLessEqual({"cover, blocks", "cover, no copies", "cover, budget "
                                  + ("3" if ranks == 8 else "2"), "gather", "selected"},
                                 set(total))
            self.assertTrue(all(total.values()), total)

    def test_ranks_are_for_run(self):
        text = self.run_on(2, *self.common("--ranks", "2"), code=64)
        self.assertEqual(text.count("airmoe-study: error:"), 1, text)
        self.assertIn("--run", text)

    def refused(self, *options, code, text):
        error = self.study(*options, code=code)
        self.assertEqual(error.count("\n"), 1, error)
        self.assertIn(text, error)

    def test_refusals(self):
        self.refused(code=64, text="--trace FILE or --synthetic")
        self.refused("--trace", self.trace, code=64, text="--experts")
        self.refused(*self.common("--step", "8"), code=64, text="has the steps 7")
        self.refused(*self.common("--layer", "1"), code=64, text="has the layers 2")
        self.refused(*self.common("--ranks", "2,x"), code=64, text="--ranks 2,x")
        self.refused(*self.common("--ranks", "0"), code=64, text="not between 1 and")
        self.refused(*self.common("--copy-budget", "0.5"), code=64, text="--copy-budget 0.5")
        self.refused(*self.common("--objective", "fun"), code=64, text="--objective fun")
        self.refused(*self.common("--sum-precision", "f16"), code=64, text="--sum-precision f16")
        self.refused(*self.common("--bandwidth", "0"), code=64, text="bandwidth")
        self.refused(*self.common("--zipf", "1"), code=64, text="--zipf")
        self.refused(*self.common("--synthetic"), code=64, text="--synthetic")
        self.refused(*self.common("--network", self.trace), code=65, text=self.trace)
        self.refused(*self.common("--csv", self.path("none/study.csv")), code=74, text="none")
        self.refused("--synthetic", "--experts", "10", code=64, text="--shortlist 2048")
        self.refused("--trace", self.path("none.h5"), code=74, text="none.h5")
        self.refused(*self.common("--run"), code=64, text="--run")
        self.refused(*self.common("--deadline", "3"), code=64, text="--run")
        self.refused("--run", "--tokens-per-rank", "0", code=64, text="--tokens-per-rank 0")
        self.refused("--run", "--hdf5", "x.h5", code=64, text="--hdf5")

    def test_bad_traces(self):
        bad = self.path("bad.h5")
        options = ("--trace", bad, "--experts", str(E), "--dim", str(D))
        with open(bad, "w", encoding="utf-8") as file:
            file.write("no HDF5")
        self.refused(*options, code=65, text="bad.h5")
        self.write_trace(bad, {k: v for k, v in self.routing.items() if k != "shortlist"})
        self.refused(*options, code=65, text="/step_000007/layer_02/shortlist is missing")
        self.write_trace(bad, {**self.routing, "codeword": self.routing["codeword"] + G})
        self.refused(*options, code=65, text="codeword")
        self.write_trace(bad, {**self.routing, "expert": self.routing["expert"][:-1]})
        self.refused(*options, code=65, text="rows of experts")
        self.write_trace(bad, {**self.routing, "expert": self.routing["expert"].astype("f4")})
        self.refused(*options, code=65, text="does not hold integers")


if __name__ == "__main__":
    unittest.main()
