"""Same numbers on any number of ranks, bit-identical repetitions, bit-identical resume."""

import train_runs
from train_runs import TrainTest, datasets, in_parallel

STEPS = ["--steps", 8, "--lr", 0.02, "--warmup", 1]
# Sums are made in double precision, so that only the last bits may know the rank count.
TOLERANCE = 1e-9


class RankCount(TrainTest):
    def check(self, name, ranks, *options):
        options = [*STEPS, "--no-checkpoint", *options]
        runs = in_parallel([lambda n=n: self.train(n, f"{name}-{n}", *options) for n in ranks])
        self.assertEqual(len(runs[0].losses()), 8)
        for run in runs[1:]:
            self.assert_close_losses(run, runs[0], TOLERANCE)
            for key in ("val_loss", "overlap", "topk_mass_ratio", "mass_recall", "dead_fraction"):
                a, b = run.summary()[key], runs[0].summary()[key]
                self.assertAlmostEqual(a, b, delta=1e-6 * abs(b), msg=f"{key} of {run.output_dir}")

    def test_plain_and_more_ranks_than_sequences(self):
        self.check("plain", [1, 2, 3, 4, 7])

    def test_micro_batches(self):
        self.check("micro", [1, 2, 4], "--accumulate", 2)

    def test_two_moe_layers_uneven_experts(self):
        self.check("two", [1, 2, 3], "--moe-layers", "0,1", "--experts", 257)

    def test_swiglu_of_width_three(self):
        self.check("swiglu", [1, 3, 4], "--expert-activation", "swiglu", "--expert-dim", 3)

    def test_grouped_experts_more_ranks_than_codewords(self):
        self.check("grouped", [1, 2, 3], "--expert-path", "grouped", "--codewords", 2,
                   "--shortlist", 64)


class Exchange(TrainTest):
    """No strategy, budget, placement or chunking changes a bit of what is trained."""
    OPTIONS = ["--steps", 40, "--lr", 0.01, "--warmup", 2, "--eval-every", 0, "--batch", 16]
    STRATEGIES = [("block", 3, "cover", 1, ["--move-homes", "no"]),
                  ("homes", 4, "cover", 1, ["--replan-every", 5]),
                  ("copies", 2, "cover", 1.5, ["--overlap-chunks", 1]),
                  ("more", 3, "cover", 3, ["--replan-every", 7]),
                  ("micro", 3, "cover", 2, ["--overlap-chunks", 7]),
                  ("selected", 3, "selected", 1, []),
                  ("selected4", 4, "selected", 1, ["--overlap-chunks", 1]),
                  ("gather", 3, "gather", 1, []),
                  ("auto", 4, "auto", 4, [])]

    def test_every_strategy_trains_the_same(self):
        one = self.train(1, "one", *self.OPTIONS)
        want = datasets(one.checkpoint(40))
        runs = in_parallel([
            lambda s=s: self.train(s[1], s[0], *self.OPTIONS, "--exchange", s[2], "--copy-budget",
                                   s[3], "--network", self.slow_network, *s[4])
            for s in self.STRATEGIES])
        for (name, *_), run in zip(self.STRATEGIES, runs):
            with self.subTest(name):
                self.assert_close_losses(run, one, TOLERANCE)
                got = datasets(run.checkpoint(40))
                self.assertEqual(set(got), set(want))
                for path, values in want.items():
                    self.assertTrue((got[path] == values).all(), path)
        self.assertEqual(runs[0].metrics()[-1]["bytes_copies"], 0)
        for run in runs[2:5]:
            self.assertTrue(any(step["bytes_copies"] for step in run.metrics()))
        self.assertEqual(runs[7].metrics()[-1]["bytes_per_token"], 0)

    def test_a_cap_on_ranks_changes_the_lists(self):
        capped, free = in_parallel([
            lambda: self.train(4, "capped", "--steps", 4, "--rank-cap", 1, "--shortlist", 32,
                               "--copy-budget", 1, "--exchange", "cover"),
            lambda: self.train(4, "free", "--steps", 4, "--shortlist", 32)])
        self.assertEqual(capped.metrics()[-1]["lambda_candidate"], 1.0)
        self.assertNotEqual(capped.losses()[4], free.losses()[4])


class Repetition(TrainTest):
    OPTIONS = ["--schedule-steps", 10, "--lr", 0.02, "--eval-every", 4]

    def test_bit_identical_repetition_and_resume(self):
        options = self.OPTIONS
        straight, again, quiet, half = in_parallel([
            lambda: self.train(2, "straight", "--steps", 10, *options),
            lambda: self.train(2, "again", "--steps", 10, *options),
            lambda: self.train(2, "quiet", "--steps", 10, *options, "--eval-every", 0,
                               "--checkpoint-every", 3),
            lambda: self.train(2, "half", "--steps", 5, *options)])
        with self.subTest("same ranks, same seed"):
            self.assertEqual(straight.losses(), again.losses())
            self.assert_same_file(straight.checkpoint(10), again.checkpoint(10))
        with self.subTest("evaluation and checkpoints change nothing"):
            self.assertEqual(straight.losses(), quiet.losses())
            self.assert_same_file(straight.checkpoint(10), quiet.checkpoint(10))
        self.assertEqual(list(half.losses()), [1, 2, 3, 4, 5])
        three = self.train(3, "three", "--steps", 10, "--resume", half.checkpoint(5))
        half = self.train(2, "half", "--steps", 10, "--resume", "auto")
        with self.subTest("stop and resume"):
            self.assertEqual(straight.losses(), half.losses())
            self.assert_same_file(straight.checkpoint(10), half.checkpoint(10))
        with self.subTest("resume on another rank count"):
            a, b = straight.losses(), three.losses()
            self.assertEqual(list(b), [6, 7, 8, 9, 10])
            for step, loss in b.items():
                self.assertAlmostEqual(loss, a[step], delta=TOLERANCE * a[step])
            x, y = datasets(straight.checkpoint(10)), datasets(three.checkpoint(10))
            self.assertEqual(set(x), set(y))
            for name, values in x.items():
                self.assertTrue((y[name] == values).all(), name)  # sums over ranks are exact
        with self.subTest("another seed, another run"):
            other = self.train(2, "other", "--steps", 2, *options, "--seed", 2)
            self.assertNotEqual(other.losses()[1], straight.losses()[1])


if __name__ == "__main__":
    train_runs.main()
