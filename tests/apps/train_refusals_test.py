"""Bad input: one clear line, the documented exit code on every rank, no hang, nothing destroyed."""

import os
import shutil
import subprocess
import time

import h5py

import train_runs
from train_runs import SECONDS_FOR_A_RUN, TrainTest, command, in_parallel

USAGE, BAD_DATA, IO, TRY_AGAIN, CONFIG, NOT_FINITE = 64, 65, 74, 75, 78, 87


class Refusals(TrainTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.good = cls.start(2, "good", "--steps", 4, "--checkpoint-every", 2)
        cls.damaged = cls.make_damaged_files(cls.good.checkpoint(4))

    @classmethod
    def make_damaged_files(cls, good):
        def copy(name):
            path = cls.path(name)
            shutil.copyfile(good, path)
            return path
        text = cls.path("text.h5")
        with open(text, "w", encoding="ascii") as file:
            file.write("these are no parameters\n" * 1000)
        foreign = cls.path("foreign.h5")
        with h5py.File(foreign, "w") as file:
            file["weights"] = [1.0, 2.0]
        cut, flipped, empty, unsealed = (copy(n) for n in ("cut.h5", "flipped.h5", "empty.h5",
                                                           "unsealed.h5"))
        os.truncate(cut, os.path.getsize(good) * 2 // 3)
        os.truncate(empty, 0)
        with h5py.File(flipped, "r") as file:
            position = file["/layers/01/moe/up"].id.get_offset() + 4242
        with open(flipped, "r+b") as file:
            file.seek(position)
            byte = file.read(1)[0]
            file.seek(position)
            file.write(bytes([byte ^ 1]))
        with h5py.File(unsealed, "r+") as file:
            file.attrs["sealed"] = 0
        return [text, foreign, cut, flipped, empty, unsealed]

    def check(self, cases):
        """cases: exit code, words of the message, options."""
        runs = [(ranks, case) for case in cases for ranks in (0, 3)]
        results = in_parallel([
            lambda i=i, ranks=ranks, case=case: self.start(
                ranks, f"refused{i}", "--steps", 3, *case[2])
            for i, (ranks, case) in enumerate(runs)], threads=3)
        for (ranks, (code, words, options)), run in zip(runs, results):
            with self.subTest(" ".join(map(str, options)), ranks=ranks):
                self.assert_refused(run, code, *words)
        for step in (2, 4):
            self.assert_good_file(self.good.checkpoint(step))

    def test_command_line(self):
        self.check([
            (USAGE, ["--stepz", "--steps"], ["--stepz", 5]),
            (USAGE, ["--lr", "fast"], ["--lr", "fast"]),
            (USAGE, ["--steps", "1e3"], ["--steps", "1e3"]),
            (USAGE, ["--preset", "huge", "small"], ["--preset", "huge"]),
            (USAGE, ["--moe-layers", "1;2"], ["--moe-layers", "1;2"]),
            (USAGE, ["--moe-layers"], ["--moe-layers", ""]),
            (USAGE, ["--trace-steps", "1,"], ["--trace", "t.h5", "--trace-steps", "1,"]),
            (USAGE, ["--expert-activation", "tanh", "swiglu"], ["--expert-activation", "tanh"]),
            (USAGE, ["--config", "no.ini"], ["--config", "no.ini"]),
        ])

    def test_contradictions(self):
        self.check([
            (CONFIG, ["--active", "33", "--shortlist", "32"], ["--active", 33]),
            (CONFIG, ["--shortlist", "257", "--experts", "256"], ["--shortlist", 257]),
            (CONFIG, ["--moe-layers", "2"], ["--moe-layers", "1,2"]),
            (CONFIG, ["--dim", "34", "--heads", "4"], ["--dim", 34]),
            (CONFIG, ["--steps", "0"], ["--steps", 0]),
            (CONFIG, ["--batch", "-1"], ["--batch", "-1"]),
            (CONFIG, ["--accumulate", "7", "--batch", "6"], ["--accumulate", 7]),
            (CONFIG, ["--trace", "--trace-steps"], ["--trace", "t.h5"]),
            (CONFIG, ["--trace-steps", "9"], ["--trace", "t.h5", "--trace-steps", 9]),
            (CONFIG, ["--lr", "nan"], ["--lr", "nan"]),
            (CONFIG, ["--beta2", "1"], ["--beta2", 1]),
            (CONFIG, ["--weight-decay", "nan"], ["--weight-decay", "nan"]),
            (CONFIG, ["--deadline", "0"], ["--deadline", 0]),
        ])

    def test_data(self):
        with open(self.path("nothing.txt"), "w", encoding="ascii"):
            pass
        with open(self.path("short.txt"), "w", encoding="ascii") as file:
            file.write("too short")
        os.makedirs(self.path("no-files"))
        with open(self.path("odd.bin"), "wb") as file:
            file.write(b"abc")
        self.check([
            (BAD_DATA, ["--data", "missing"], ["--data", self.path("missing")]),
            (BAD_DATA, ["--data", "nothing.txt"], ["--data", self.path("nothing.txt")]),
            (BAD_DATA, ["--data", "no-files"], ["--data", self.path("no-files")]),
            (BAD_DATA, ["odd.bin"], ["--data", self.path("odd.bin")]),
            (CONFIG, ["--context"], ["--data", self.path("short.txt")]),
            (CONFIG, ["--vocab", "100"], ["--vocab", 100]),
        ])

    def test_checkpoints(self):
        self.check(
            [(BAD_DATA, [os.path.basename(p)], ["--resume", p, "--steps", 6])
             for p in [*self.damaged, self.path("absent.h5")]] +
            [(CONFIG, ["--experts", "256", "512"],
              ["--resume", self.good.checkpoint(4), "--experts", 512, "--steps", 6]),
             (CONFIG, ["--steps", "4"], ["--resume", self.good.checkpoint(4), "--steps", 4]),
             (BAD_DATA, ["data"], ["--resume", self.data, "--steps", 6])])

    def test_directories(self):
        self.check([
            (IO, ["--output-dir", "flipped.h5/below"], ["--output-dir", self.path("flipped.h5", "below")]),
            (IO, ["flipped.h5"], ["--checkpoint-dir", self.path("flipped.h5", "below")]),
            (CONFIG, ["--resume", "good"], ["--output-dir", self.path("good")]),
            (BAD_DATA, ["part0.txt"], ["--trace", self.path("data", "part0.txt"),
                                       "--trace-steps", 1]),
            (BAD_DATA, ["step-000000004.h5"], ["--trace", self.good.checkpoint(4),
                                               "--trace-steps", 1]),
        ])
        self.assertEqual(len(self.good.metrics()), 4)

    def test_newest_checkpoint_damaged(self):
        """From a folder, the older good one is taken, and said so."""
        run = self.start(2, "fallback", "--steps", 4, "--checkpoint-every", 2)
        straight = run.losses()
        shutil.copyfile(self.path("flipped.h5"), run.checkpoint(4))
        run = self.start(2, "fallback", "--steps", 4, "--resume", "auto")
        self.assertEqual(run.code, 0, run)
        self.assertIn("step-000000004.h5", run.stdout + run.stderr)
        self.assertEqual(run.losses(), straight)
        with open(run.checkpoint(2), "r+b") as file:
            file.truncate(1000)
        shutil.copyfile(self.path("flipped.h5"), run.checkpoint(4))
        run = self.start(2, "fallback", "--steps", 6, "--resume", "auto")
        self.assertEqual(run.code, BAD_DATA, run)

    def test_two_runs_in_one_directory(self):
        words = command(1, self.small_run("shared", "--steps", 100000))
        first = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            metrics = self.path("shared", "metrics.jsonl")
            self.wait_for(lambda: os.path.exists(metrics) and os.path.getsize(metrics) > 1000)
            for ranks in (1, 3):
                second = self.start(ranks, "shared", "--steps", 2)
                self.assert_refused(second, TRY_AGAIN, "checkpoints", "in use")
            self.assertIsNone(first.poll())
            self.assertEqual([n for n in os.listdir(self.path("shared")) if "metrics" in n],
                             ["metrics.jsonl"], "the second run touched the metrics of the first")
        finally:
            first.kill()
            first.communicate(timeout=SECONDS_FOR_A_RUN)

    @staticmethod
    def wait_for(condition, seconds=20):
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise AssertionError("it did not happen in time")
            time.sleep(0.02)

    def test_not_finite(self):
        run = self.start(2, "nan", "--steps", 30, "--checkpoint-every", 1, "--warmup", 0,
                         "--lr", 1e30, "--clip", 0)
        self.assert_refused(run, NOT_FINITE, "not finite", "--lr")
        folder = self.path("nan", "checkpoints")
        for name in os.listdir(folder) if os.path.isdir(folder) else []:
            if name.endswith(".h5"):
                self.assert_good_file(os.path.join(folder, name))
            self.assertNotIn(".tmp", name)


class ConfigFile(TrainTest):
    def write(self, name, text):
        with open(self.path(name), "w", encoding="ascii") as file:
            file.write(text)
        return self.path(name)

    def test_command_line_wins_over_the_file(self):
        file = self.write("a.ini", "# comment\nsteps = 3\nseed = 5\nlr = 0.02\n")
        a = self.train(1, "a", "--config", file, "--steps", 2, "--no-checkpoint")
        b = self.train(1, "b", "--seed", 5, "--lr", 0.02, "--steps", 2, "--no-checkpoint")
        self.assertEqual(a.losses(), b.losses())
        c = self.train(1, "c", "--config", file, "--no-checkpoint")
        self.assertEqual(list(c.losses()), [1, 2, 3])

    def test_bad_files(self):
        cases = [("steps = 3\nexpertz = 5\n", ["expertz", "--experts"]),
                 ("steps = many\n", ["steps", "many"]),
                 ("steps\n", ["steps"])]
        for i, (text, words) in enumerate(cases):
            file = self.write(f"bad{i}.ini", text)
            for ranks in (1, 3):
                with self.subTest(text, ranks=ranks):
                    run = self.start(ranks, f"bad{i}", "--config", file)
                    self.assert_refused(run, USAGE, file, *words)

    def test_resume_takes_the_options_of_the_checkpoint(self):
        """Only where to resume and how far: model, data, learning rate, ... are the checkpoint's."""
        self.train(2, "whole", "--steps", 6, "--lr", 0.02, "--schedule-steps", 6, "--seed", 9,
                   "--jitter", 0.05, "--schedule", "cosine")
        first = self.train(2, "part", "--steps", 3, "--lr", 0.02, "--schedule-steps", 6,
                           "--seed", 9, "--jitter", 0.05, "--schedule", "cosine")
        rest = self.finish(command(2, ["--resume", first.checkpoint(3), "--steps", 6,
                                       "--output-dir", self.path("rest")]), self.path("rest"))
        self.assertEqual(rest.code, 0, rest)
        self.assert_same_file(self.path("whole", "checkpoints", "step-000000006.h5"),
                              rest.checkpoint(6))

    def test_help_and_version(self):
        for option in ("--help", "--version"):
            run = self.finish(command(2, [option]), None)
            self.assertEqual((run.code, run.stderr), (0, ""), run)
            self.assertEqual(run.stdout.count("airmoe-train"), 1, "printed once, not per rank")


if __name__ == "__main__":
    train_runs.main()
