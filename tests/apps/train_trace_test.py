"""A trace, recomputed with h5py and numpy from the file alone."""

import math

import h5py
import numpy as np

import train_runs
from train_runs import TrainTest, airmoe_inspect, in_parallel, relative_error

ROUNDING = 2e-5
erf = np.vectorize(math.erf)
ACTIVATIONS = {
    "gelu": lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2))),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "relu": lambda x: np.maximum(x, 0),
}


def read_layer(path, step, layer):
    with h5py.File(path, "r") as file:
        group = file[f"step_{step:06}/layer_{layer:02}"]
        arrays = {name: item[()] for name, item in group.items()}
        attributes = dict(group.attrs)
    return arrays, attributes


def unit_rows(matrix):
    matrix = matrix.astype(np.float64)
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def expert_outputs(a, activation, tokens, experts):
    """One vector per pair (token, expert).  Shape: [pairs, d]"""
    h = a["hidden"].astype(np.float64)[tokens]
    up, down = a["up"].astype(np.float64)[experts], a["down"].astype(np.float64)[experts]
    hidden_units = np.einsum("pd,pmd->pm", h, up)
    if activation == "swiglu":
        gate = np.einsum("pd,pmd->pm", h, a["gate_proj"].astype(np.float64)[experts])
        hidden_units = ACTIVATIONS["silu"](gate) * hidden_units
    else:
        hidden_units = ACTIVATIONS[activation](hidden_units)
    return np.einsum("pm,pmd->pd", hidden_units, down)


class Trace(TrainTest):
    def assert_top(self, scores, chosen, what):
        """Each row of `chosen` names the largest scores of that row, up to rounding."""
        for row, ids in zip(scores, chosen):
            self.assertEqual(len(set(ids)), len(ids), what)
            rest = np.delete(row, ids)
            if len(rest):
                slack = ROUNDING * np.max(np.abs(row))
                self.assertGreaterEqual(row[ids].min(), rest.max() - slack, what)

    def check_codewords(self, a):
        cosines = unit_rows(a["hidden"]) @ a["codebook"].astype(np.float64).T
        self.assertLess(np.max(np.abs(np.linalg.norm(a["codebook"], axis=1) - 1)), 1e-6)
        self.assert_top(cosines, a["codeword"][:, None], "codeword")

    def check_routing(self, a, k):
        unit = unit_rows(a["centroid"])
        list_scores = a["codebook"].astype(np.float64) @ unit.T
        self.assert_top(list_scores, a["shortlist"], "shortlist")
        in_order = np.take_along_axis(list_scores, a["shortlist"].astype(int), 1)
        self.assertLess(np.max(np.diff(in_order, axis=1)), ROUNDING, "shortlist is not descending")
        scores = a["hidden"].astype(np.float64) @ unit.T
        outside = np.ones_like(scores, dtype=bool)
        np.put_along_axis(outside, a["shortlist"][a["codeword"]].astype(int), False, 1)
        self.assertFalse(np.take_along_axis(outside, a["expert"].astype(int), 1).any())
        self.assert_top(np.where(outside, scores.min() - 1, scores), a["expert"], "selection")
        selected = np.take_along_axis(scores, a["expert"].astype(int), 1)
        gates = np.exp(selected - selected.max(axis=1, keepdims=True))
        gates /= gates.sum(axis=1, keepdims=True)
        self.assertLess(relative_error(a["gate"], gates), ROUNDING)
        self.assertEqual(a["expert"].shape[1], k)

    def check_output(self, a, activation):
        tokens, k = a["expert"].shape
        pairs = expert_outputs(a, activation, np.repeat(np.arange(tokens), k), a["expert"].ravel())
        output = np.einsum("tk,tkd->td", a["gate"].astype(np.float64), pairs.reshape(tokens, k, -1))
        self.assertLess(relative_error(a["output"], output), ROUNDING)

    def check_file(self, path, steps, layers, activation, ranks, tokens=6 * 32):
        with h5py.File(path, "r") as file:
            names = [n for n in file if n != "integrity"]
            self.assertEqual(names, [f"step_{s:06}" for s in steps])
            self.assertEqual(file.attrs["format"], b"airmoe-trace"
                             if isinstance(file.attrs["format"], bytes) else "airmoe-trace")
        for step in steps:
            for layer in layers:
                with self.subTest(path=path, step=step, layer=layer):
                    a, attributes = read_layer(path, step, layer)
                    self.assertEqual(a["hidden"].shape, (tokens, 32))
                    self.assertEqual(int(attributes["active"]), 8)
                    self.check_codewords(a)
                    self.check_routing(a, 8)
                    self.check_output(a, activation)
                    self.assertEqual(list(a["home_rank"]), self.homes(tokens // 32, ranks))
                    self.assertTrue((np.diff(a["expert"], axis=1) > 0).all(), "ascending by id")
        self.assert_good_file(path)

    @staticmethod
    def homes(sequences, ranks):
        """Consecutive sequences to each rank, the first ranks one more."""
        counts = [sequences // ranks + (r < sequences % ranks) for r in range(ranks)]
        return [r for r, n in enumerate(counts) for _ in range(n * 32)]

    def traced(self, ranks, name, *options):
        return self.train(ranks, name, "--steps", 4, "--lr", 0.02, "--no-checkpoint", "--jitter", 0,
                          "--trace", self.path(name + ".h5"), "--trace-steps", "1,4", *options)

    def test_every_activation(self):
        jobs = [(2, "gelu", 1), (1, "silu", 2), (3, "relu", 1), (3, "swiglu", 3)]
        in_parallel([lambda r=ranks, n=name, m=m: self.traced(
            r, n, "--expert-activation", n, "--expert-dim", m) for ranks, name, m in jobs])
        for ranks, name, _ in jobs:
            self.check_file(self.path(name + ".h5"), [1, 4], [1], name, ranks)

    def test_two_layers_grouped_more_ranks_than_sequences(self):
        self.traced(7, "many", "--moe-layers", "0,1", "--expert-path", "grouped", "--experts", 257)
        self.check_file(self.path("many.h5"), [1, 4], [0, 1], "gelu", 7)

    def test_first_micro_batch_of_an_accumulated_step(self):
        self.traced(2, "micro", "--accumulate", 2)
        self.check_file(self.path("micro.h5"), [1, 4], [1], "gelu", 2, tokens=3 * 32)

    def test_tokens_are_in_global_order(self):
        self.traced(1, "one")
        self.traced(4, "four")
        for step in (1, 4):
            a, _ = read_layer(self.path("one.h5"), step, 1)
            b, _ = read_layer(self.path("four.h5"), step, 1)
            self.assertLess(relative_error(b["hidden"], a["hidden"]), ROUNDING)
            self.assertLess(relative_error(b["output"], a["output"]), 10 * ROUNDING)
            steps = np.abs(np.diff(a["hidden"], axis=0)).max(axis=1)
            self.assertGreater(np.mean(steps > 1e-3), 0.9, "alike: their order would not show")

    def test_jitter(self):
        self.traced(3, "jitter", "--jitter", 0.3)
        for step in (1, 4):
            a, attributes = read_layer(self.path("jitter.h5"), step, 1)
            self.assertAlmostEqual(float(attributes["jitter"]), 0.3, places=6)
            self.check_codewords(a)
            self.check_output(a, "gelu")
            candidates = a["shortlist"][a["codeword"]]
            for token, experts in enumerate(a["expert"]):
                self.assertEqual(len(set(experts)), 8)
                self.assertLessEqual(set(experts), set(candidates[token]))
            self.assertLess(np.max(np.abs(a["gate"].astype(np.float64).sum(axis=1) - 1)), 1e-6)
            self.assertGreater(a["gate"].min(), 0)
            scores = a["hidden"].astype(np.float64) @ unit_rows(a["centroid"]).T
            exact = np.argsort(-np.take_along_axis(scores, candidates.astype(int), 1), axis=1)[:, :8]
            exact = np.sort(np.take_along_axis(candidates, exact, 1), axis=1)
            self.assertTrue((exact != a["expert"]).any(), "the noise changed no selection")
        self.assert_good_file(self.path("jitter.h5"))

    def test_resume_extends_the_trace(self):
        options = ["--jitter", 0, "--trace", self.path("grow.h5"), "--schedule-steps", 4]
        self.train(2, "grow", "--steps", 2, *options, "--trace-steps", 2)
        self.train(3, "grow", "--steps", 4, *options, "--trace-steps", 3, "--resume", "auto")
        for step, ranks in ((2, 2), (3, 3)):
            a, _ = read_layer(self.path("grow.h5"), step, 1)
            self.check_routing(a, 8)
            self.check_output(a, "gelu")
            self.assertEqual(list(a["home_rank"]), self.homes(6, ranks))
        self.assert_good_file(self.path("grow.h5"))

    def test_inspect_finds_a_wrong_trace(self):
        self.traced(1, "bent", "--trace-steps", "1")
        with h5py.File(self.path("bent.h5"), "r+") as file:
            file["step_000001/layer_01/gate"][5] *= 1.01
        done = airmoe_inspect("--verify", self.path("bent.h5"))
        self.assertEqual(done.returncode, 65, done.stdout + done.stderr)
        self.assertIn("/step_000001/layer_01/gate", done.stdout + done.stderr)


if __name__ == "__main__":
    train_runs.main()
