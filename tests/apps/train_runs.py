"""What the end-to-end tests share: a small model, a text folder, runs of the built programs.

Usage of a test: <name>_test.py [DIRECTORY OF THE PROGRAMS [MPIEXEC]] [unittest options]
"""

import concurrent.futures
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import unittest

import h5py
import numpy as np

TOP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
APPS = os.path.join(TOP, "build", "release", "apps")
MPIEXEC = "mpirun"
# Open MPI waits a second for the ranks that are left when one has failed, and there are many runs.
QUICK_MPIRUN = {"OMPI_MCA_odls_base_sigkill_timeout": "0"}
SMALL_MODEL = """--layers 2 --dim 32 --heads 4 --kv-heads 2 --ffn-dim 64 --context 32 --experts 256
    --active 8 --shortlist 32 --codewords 8""".split()
SMALL_RUN = SMALL_MODEL + "--batch 6 --eval-sequences 4 --progress never".split()
SECONDS_FOR_A_RUN = 60
# Traces of a crash that no user should ever see.
CRASHES = ("terminate called", "Segmentation fault", "HDF5-DIAG", "Traceback", "*** Process received")


def main():
    global APPS, MPIEXEC
    words = [a for a in sys.argv[1:3] if os.path.exists(a)]
    if words:
        APPS = words[0]
    if len(words) > 1:
        MPIEXEC = words[1]
    unittest.main(argv=[sys.argv[0]] + sys.argv[1 + len(words):])


def write_text(folder, characters=100_000, seed=7):
    """Words of a small vocabulary with a little grammar: learnable, and the same everywhere."""
    rng = random.Random(seed)
    words = ["".join(rng.choice("abcdefghijklmno") for _ in range(rng.randint(2, 7)))
             for _ in range(120)]
    follows = {w: rng.sample(words, 5) for w in words}
    os.makedirs(folder, exist_ok=True)
    for part in range(4):
        text, word = [], words[part]
        size = 0
        while size < characters // 4:
            text.append(word)
            size += len(word) + 1
            word = rng.choice(follows[word])
        with open(os.path.join(folder, f"part{part}.txt"), "w", encoding="ascii") as file:
            file.write(" ".join(text))


class Run:
    """A finished run of airmoe-train."""

    def __init__(self, code, stdout, stderr, output_dir, seconds):
        self.code, self.stdout, self.stderr = code, stdout, stderr
        self.output_dir, self.seconds = output_dir, seconds

    def metrics(self):
        with open(os.path.join(self.output_dir, "metrics.jsonl"), encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    def losses(self):
        """Loss by step."""
        return {m["step"]: m["loss"] for m in self.metrics()}

    def summary(self):
        with open(os.path.join(self.output_dir, "summary.json"), encoding="utf-8") as file:
            return json.load(file)

    def checkpoint(self, step):
        return os.path.join(self.output_dir, "checkpoints", f"step-{step:09}.h5")

    def our_lines(self):
        """Lines on stderr that are the program's, not mpirun's."""
        return [line for line in self.stderr.splitlines() if line.startswith("airmoe-train:")]

    def __str__(self):
        return f"exit code {self.code} after {self.seconds:.1f} s\n{self.stdout}\n{self.stderr}"


def merged(options):
    """Of an option that is named twice, the later one: the program itself refuses such a line."""
    values = {}
    for word in map(str, options):
        if word.startswith("--"):
            name = word
            values.pop(name, None)
            values[name] = []
        else:
            values[name].append(word)
    return [word for name, rest in values.items() for word in (name, *rest)]


def command(ranks, options):
    """ranks 0: one process, without mpirun."""
    mpirun = [MPIEXEC, "-n", str(ranks)] if ranks > 0 else []
    return [*mpirun, os.path.join(APPS, "airmoe-train"), *map(str, options)]


def airmoe_inspect(*options):
    return subprocess.run([os.path.join(APPS, "airmoe-inspect"), *options], capture_output=True,
                          text=True, timeout=SECONDS_FOR_A_RUN)


def datasets(path):
    """Every dataset of an HDF5 file but the checksums, by name."""
    found = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset) and not name.startswith("integrity/"):
            found["/" + name] = item[()]
    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return found


def in_parallel(jobs, threads=2):
    """Runs callables a few at a time; their results, in order."""
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        return [future.result() for future in [pool.submit(job) for job in jobs]]


class TrainTest(unittest.TestCase):
    """A temporary directory with a text folder, and assertions about runs."""

    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory(prefix="airmoe-e2e-")
        cls.data = cls.path("data")
        write_text(cls.data)
        # A network where only bytes count: with it, placements of small models make copies.
        cls.slow_network = cls.path("network.json")
        with open(cls.slow_network, "w", encoding="utf-8") as file:
            file.write('{"latency_s": 1e-12, "bandwidth_bytes_per_s": 1e6, '
                       '"memory_bandwidth_bytes_per_s": 1e15, "flops": 1e18}')

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    @classmethod
    def path(cls, *names):
        return os.path.join(cls.temporary.name, *names)

    @classmethod
    def finish(cls, words, output_dir, **options):
        start = time.monotonic()
        done = subprocess.run(words, capture_output=True, text=True, errors="replace",
                              timeout=SECONDS_FOR_A_RUN, cwd=cls.temporary.name, **options)
        return Run(done.returncode, done.stdout, done.stderr, output_dir, time.monotonic() - start)

    @classmethod
    def start(cls, ranks, name, *options):
        """The small model on the text folder, output in the folder `name`."""
        return cls.finish(command(ranks, cls.small_run(name, *options)), cls.path(name),
                          env=os.environ | QUICK_MPIRUN)

    @classmethod
    def small_run(cls, name, *options):
        return merged([*SMALL_RUN, "--data", cls.data, "--output-dir", cls.path(name), *options])

    def train(self, ranks, name, *options):
        """The same, and it must succeed without a word on stderr."""
        run = self.start(ranks, name, *options)
        self.assertEqual(run.code, 0, run)
        self.assertEqual(run.stderr, "", run)
        return run

    def assert_same_file(self, path, other):
        """Bit for bit."""
        a, b = datasets(path), datasets(other)
        self.assertEqual(set(a), set(b))
        for name, values in a.items():
            self.assertEqual(values.shape, b[name].shape, name)
            self.assertEqual(values.tobytes(), b[name].tobytes(), f"{name} of {path} and {other}")

    def assert_close_losses(self, run, other, tolerance):
        a, b = run.losses(), other.losses()
        self.assertEqual(list(a), list(b))
        worst = max(a, key=lambda step: abs(a[step] - b[step]) / abs(b[step]))
        difference = abs(a[worst] - b[worst]) / abs(b[worst])
        self.assertLessEqual(difference, tolerance,
                             f"step {worst}: {run.output_dir} {a[worst]}, "
                             f"{other.output_dir} {b[worst]}")

    def assert_refused(self, run, code, *words):
        """That exit code, one line of ours that holds the words, no crash, no long wait."""
        self.assertEqual(run.code, code, run)
        self.assertEqual(len(run.our_lines()), 1, run)
        for word in words:
            self.assertIn(word, run.our_lines()[0])
        for crash in CRASHES:
            self.assertNotIn(crash, run.stderr)
        self.assertLess(run.seconds, 20, run)

    def assert_good_file(self, path):
        done = airmoe_inspect("--verify", path)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("good", done.stdout)


def relative_error(values, reference):
    """Largest difference over the largest magnitude."""
    return float(np.max(np.abs(values - reference)) / max(1e-30, np.max(np.abs(reference))))
