"""What a run leaves behind: checkpoints, metrics.jsonl, summary.json."""

import math
import os
import shutil
import subprocess
import sys
import unittest

import h5py
import numpy as np

import train_runs
from train_runs import TrainTest, airmoe_inspect, datasets

E, D, G, M, V, FFN = 256, 32, 8, 32, 256, 64
MOE = {"/moe/centroid": (E, D), "/moe/up": (E, 1, D), "/moe/down": (E, 1, D),
       "/moe_norm/gain": (D,), "/moe_norm/bias": (D,)}
ROUTER = {"/router/codebook": (G, D), "/router/counts": (G,), "/router/sums": (G, D),
          "/router/shortlist": (G, M)}
DENSE = {"/ffn/gate": (FFN, D), "/ffn/up": (FFN, D), "/ffn/down": (D, FFN)}
BLOCK = {"/attention_norm": (D,), "/ffn_norm": (D,), "/attention/wq": (D, D),
         "/attention/wk": (16, D), "/attention/wv": (16, D), "/attention/wo": (D, D)}
SUMMARY = """steps ranks tokens_per_second loss_first loss_last val_loss lambda_candidate
    lambda_selected bytes_dispatch bytes_select bytes_combine overlap topk_mass_ratio mass_recall
    mass_recall_bound dead_fraction entropy_experts max_violation_rank codewords_revived
    peak_rss_bytes""".split()


def expected_datasets(moe_extra=()):
    """Names and shapes of the small model: layer 0 dense, layer 1 with experts."""
    parameters = {"/embedding": (V, D), "/final_norm": (D,)}
    for layer, parts in (("/layers/00", DENSE), ("/layers/01", MOE | dict(moe_extra))):
        parameters |= {layer + name: shape for name, shape in (BLOCK | parts).items()}
    expected = parameters | {"/layers/01" + name: shape for name, shape in ROUTER.items()}
    for moment in ("moment1", "moment2"):
        expected |= {f"/optimizer/{moment}{name}": shape for name, shape in parameters.items()}
    return expected


def exact_top(codebook, centroids, m):
    unit = centroids.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    scores = codebook.astype(np.float64) @ unit.T
    return np.argsort(-scores, axis=1, kind="stable")[:, :m], scores


class Checkpoint(TrainTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.run_of_ten = cls.start(3, "ten", "--steps", 10, "--lr", 0.02, "--checkpoint-every", 2,
                                   "--keep", 2)

    def setUp(self):
        self.assertEqual(self.run_of_ten.code, 0, self.run_of_ten)
        self.file = self.run_of_ten.checkpoint(10)

    def test_names_shapes_and_types(self):
        found = datasets(self.file)
        self.assertEqual({name: a.shape for name, a in found.items()}, expected_datasets())
        for name, values in found.items():
            self.assertEqual(values.dtype, np.int32 if name.endswith("shortlist") else np.float32)
        with h5py.File(self.file, "r") as file:
            self.assertEqual(int(file.attrs["step"]), 10)
            self.assertEqual(int(file.attrs["samples"]), 60)
            self.assertEqual(int(file.attrs["tokens"]), 60 * 32)
            self.assertEqual(int(file.attrs["sealed"]), 1)

    def test_gated_experts_have_a_third_matrix(self):
        run = self.train(2, "gated", "--steps", 2, "--expert-activation", "swiglu")
        self.assertEqual({name: a.shape for name, a in datasets(run.checkpoint(2)).items()},
                         expected_datasets({"/moe/gate_proj": (E, 1, D)}))
        self.assert_good_file(run.checkpoint(2))

    def test_shortlist_is_the_exact_top(self):
        found = datasets(self.file)
        stored = found["/layers/01/router/shortlist"]
        exact, scores = exact_top(found["/layers/01/router/codebook"],
                                  found["/layers/01/moe/centroid"], M)
        for row, (ours, theirs) in enumerate(zip(stored, exact)):
            np.testing.assert_allclose(scores[row][ours], scores[row][theirs], rtol=0, atol=1e-6)
            if scores[row][theirs[-1]] - np.delete(scores[row], theirs).max() > 1e-6:
                self.assertEqual(set(ours), set(theirs))

    def test_codebook_is_the_unit_vector_of_its_sums(self):
        found = datasets(self.file)
        sums = found["/layers/01/router/sums"].astype(np.float64)
        unit = sums / np.linalg.norm(sums, axis=1, keepdims=True)
        np.testing.assert_allclose(found["/layers/01/router/codebook"], unit, atol=1e-6)

    @unittest.skipUnless(shutil.which("h5dump"), "h5dump is not installed")
    def test_h5dump_reads_it(self):
        done = subprocess.run(["h5dump", "-H", self.file], capture_output=True, text=True,
                              timeout=60)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn('DATASET "shortlist"', done.stdout)

    def test_rotation_and_latest(self):
        folder = self.path("ten", "checkpoints")
        self.assertEqual(sorted(os.listdir(folder)),
                         ["latest", "step-000000008.h5", "step-000000010.h5"])
        with open(os.path.join(folder, "latest"), encoding="ascii") as file:
            name, size, digest = file.read().split()
        self.assertEqual(name, "step-000000010.h5")
        self.assertEqual(int(size), os.path.getsize(self.file))
        with h5py.File(self.file, "r") as file:
            stored = file.attrs["root_digest"]
        self.assertEqual(stored.decode() if isinstance(stored, bytes) else stored, digest)

    def test_inspect(self):
        self.assert_good_file(self.file)
        self.assert_good_file(self.run_of_ten.checkpoint(8))
        done = airmoe_inspect(self.file)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("/layers/01/moe/centroid", done.stdout)

    def test_inspect_finds_every_kind_of_damage(self):
        size = os.path.getsize(self.file)
        with h5py.File(self.file, "r") as file:
            data = file["/layers/01/moe/up"].id.get_offset() + 1000
        for position in (data, 9, 200, size // 2, size - 3):
            copy = self.path("damaged.h5")
            shutil.copyfile(self.file, copy)
            with open(copy, "r+b") as file:
                file.seek(position)
                byte = file.read(1)[0]
                file.seek(position)
                file.write(bytes([byte ^ 0x10]))
            done = airmoe_inspect("--verify", copy)
            with self.subTest(position=position):
                if done.returncode == 0:  # a byte that no reader uses
                    self.assertNotEqual(position, data)
                    self.assertEqual({k: v.tobytes() for k, v in datasets(copy).items()},
                                     {k: v.tobytes() for k, v in datasets(self.file).items()})
                else:
                    self.assertEqual(done.returncode, 65, done.stdout + done.stderr)
                    self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)


class Output(TrainTest):
    def check_summary(self, run, ranks, steps):
        summary = run.summary()
        self.assertLessEqual(set(SUMMARY), set(summary))
        for key in SUMMARY:
            self.assertTrue(math.isfinite(summary[key]), key)
        for key in ("overlap", "topk_mass_ratio", "mass_recall", "mass_recall_bound",
                    "dead_fraction", "entropy_experts"):
            self.assertTrue(0 <= summary[key] <= 1 + 1e-9, f"{key} {summary[key]}")
        self.assertEqual(summary["steps"], steps)
        self.assertEqual(summary["ranks"], ranks)
        self.assertLessEqual(summary["mass_recall_bound"], summary["mass_recall"])
        self.assertGreater(summary["tokens_per_second"], 0)
        self.assertTrue(1 <= summary["lambda_selected"] <= summary["lambda_candidate"] <= ranks)
        self.assertGreater(summary["peak_rss_bytes"], ranks * (5 << 20))
        self.assertLess(summary["peak_rss_bytes"], ranks * (500 << 20))
        for key in ("bytes_dispatch", "bytes_select", "bytes_combine"):
            self.assertEqual(summary[key] > 0, ranks > 1, key)
        return summary

    def test_metrics_summary_and_falling_loss(self):
        for ranks in (1, 2):
            run = self.train(ranks, f"fall{ranks}", "--steps", 60, "--lr", 0.01, "--eval-every", 20,
                             "--no-checkpoint")
            metrics = run.metrics()
            self.assertEqual([m["step"] for m in metrics], list(range(1, 61)))
            for m in metrics:
                self.assertTrue(math.isfinite(m["loss"]))
                self.assertGreater(m["tokens_per_second"], 0)
                self.assertEqual("val_loss" in m, m["step"] % 20 == 0)
            summary = self.check_summary(run, ranks, 60)
            self.assertEqual(summary["loss_first"], metrics[0]["loss"])
            self.assertEqual(summary["loss_last"], metrics[-1]["loss"])
            self.assertEqual(summary["val_loss"], metrics[-1]["val_loss"])
            self.assertAlmostEqual(metrics[0]["loss"], math.log(256), delta=0.3)
            self.assertLess(summary["loss_last"], summary["loss_first"] - 2)
            self.assertLess(abs(summary["val_loss"] - summary["loss_last"]), 0.3)
            self.assertIn("perplexity", run.stdout)
            self.assertEqual(sorted(os.listdir(run.output_dir)),
                             ["config.resolved.json", "metrics.jsonl", "summary.json"])

    def test_bytes_are_those_of_the_covers(self):
        """Every list spans both ranks: each token goes once to the other rank, d floats."""
        run = self.train(2, "bytes", "--steps", 5, "--no-checkpoint", "--exchange", "cover",
                         "--copy-budget", 1, "--move-homes", "no")
        summary = run.summary()
        self.assertEqual(summary["lambda_candidate"], 2)
        self.assertTrue(4 * D <= summary["bytes_dispatch"] <= 4 * D * 1.2 + 8, summary)

    def test_log_every(self):
        run = self.train(1, "sparse", "--steps", 7, "--log-every", 3, "--no-checkpoint")
        self.assertEqual([m["step"] for m in run.metrics()], [3, 6, 7])

    def test_dense_model(self):
        run = self.train(2, "dense", "--steps", 3, "--moe-layers", "none")
        self.assertEqual(len(run.metrics()), 3)
        self.assert_good_file(run.checkpoint(3))

    def test_an_older_metrics_file_is_set_aside(self):
        first = self.train(1, "twice", "--steps", 2, "--no-checkpoint")
        before = first.metrics()
        second = self.train(1, "twice", "--steps", 3, "--no-checkpoint")
        self.assertEqual(len(second.metrics()), 3)
        os.replace(self.path("twice", "metrics.1.jsonl"), self.path("twice", "metrics.jsonl"))
        self.assertEqual(first.metrics(), before)

    def test_plot_of_a_run(self):
        run = self.train(1, "plot", "--steps", 3, "--no-checkpoint")
        script = os.path.join(train_runs.TOP, "apps", "plot", "plot_metrics.py")
        done = subprocess.run([sys.executable, script, run.output_dir + "/metrics.jsonl"],
                              capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertTrue(os.path.exists(self.path("plot", "metrics.png")))

    def test_tokens_from_bin_files(self):
        values = np.random.default_rng(3).integers(0, 300, 20000)
        values.astype("<u2").tofile(self.path("tokens.bin"))
        values.astype("<u4").tofile(self.path("wide.bin"))
        losses = [self.train(2, name, "--steps", 3, "--no-checkpoint", "--data",
                             self.path(name + ".bin"), *more).losses()
                  for name, more in (("tokens", []), ("wide", ["--token-type", "u32"]))]
        self.assertEqual(losses[0], losses[1])
        self.assertAlmostEqual(losses[0][1], math.log(300), delta=0.3)


if __name__ == "__main__":
    train_runs.main()
