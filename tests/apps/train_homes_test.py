"""Files do not show where experts live: placements that move homes and make copies give the same
checkpoints and traces, bit for bit, and runs resume from one to the other."""

import train_runs
from train_runs import TrainTest, datasets

STEPS = ["--lr", 0.02, "--warmup", 1, "--schedule-steps", 8, "--eval-every", 0, "--batch", 16]
PLAIN = ["--exchange", "cover", "--copy-budget", 1, "--move-homes", "no"]
MOVED = ["--exchange", "cover", "--copy-budget", 2, "--move-homes", "yes", "--replan-every", 2]


class Homes(TrainTest):
    def test_checkpoints_and_traces_are_the_same(self):
        for ranks in (2, 3):
            files, metrics = [], {}
            for name, options in (("plain", PLAIN), ("moved", MOVED)):
                trace = self.path(f"{name}-{ranks}.h5")
                run = self.train(ranks, f"{name}-{ranks}", *STEPS, *options, "--steps", 8,
                                 "--network", self.slow_network,
                                 "--trace", trace, "--trace-steps", "3,7")
                files.append((run.checkpoint(8), trace))
                self.assert_good_file(trace)
                metrics[name] = run.metrics()
            # Copies, and at the first step many experts moved.
            self.assertFalse(any(step["bytes_copies"] for step in metrics["plain"]))
            self.assertTrue(any(step["bytes_copies"] for step in metrics["moved"]))
            self.assertGreater(metrics["moved"][0]["bytes_lists"],
                               2 * metrics["plain"][0]["bytes_lists"])
            (plain, plain_trace), (moved, moved_trace) = files
            self.assert_same_file(plain, moved)
            self.assert_same_file(plain_trace, moved_trace)

    def test_every_strategy(self):
        plain = self.train(3, "cover", *STEPS, *PLAIN, "--steps", 8)
        for strategy in ("selected", "gather", "auto"):
            run = self.train(3, strategy, *STEPS, "--exchange", strategy, "--copy-budget", 2,
                             "--replan-every", 3, "--steps", 8)
            self.assert_same_file(plain.checkpoint(8), run.checkpoint(8))

    def test_resume_from_moved_homes(self):
        straight = self.train(2, "straight", *STEPS, *PLAIN, "--steps", 8)
        half = self.train(3, "half", *STEPS, *MOVED, "--steps", 5)
        for ranks in (2, 4):
            rest = self.train(ranks, f"rest-{ranks}", *STEPS, *MOVED, "--steps", 8,
                              "--resume", half.checkpoint(5))
            a, b = datasets(straight.checkpoint(8)), datasets(rest.checkpoint(8))
            self.assertEqual(set(a), set(b))
            for name, values in a.items():
                self.assertEqual(values.tobytes(), b[name].tobytes(), name)


if __name__ == "__main__":
    train_runs.main()
