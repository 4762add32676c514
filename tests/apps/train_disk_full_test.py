"""A full disk while checkpointing: exit code 74, the checkpoint before it stays good, no debris.

A small tmpfs where mounting is allowed, else a limit on the size of files.
"""

import os
import subprocess
import unittest

import train_runs
from train_runs import TrainTest, command

IO = 74


class DiskFull(TrainTest):
    def mount(self, name, size):
        """A tmpfs of that many bytes, or skips."""
        folder = self.path(name)
        os.makedirs(folder)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder],
                              capture_output=True, text=True)
        if done.returncode != 0:
            self.skipTest("cannot mount a tmpfs: " + done.stderr.strip())
        self.addCleanup(subprocess.run, ["umount", "-l", folder])
        print(f"\n{self.id()}: tmpfs of {size} bytes", flush=True)
        return folder

    def check_folder(self, folder, steps):
        """These checkpoints, all good, `latest` names the last, nothing else."""
        files = [f"step-{step:09}.h5" for step in steps]
        self.assertEqual(sorted(os.listdir(folder)), sorted(["latest", *files]))
        for name in files:
            self.assert_good_file(os.path.join(folder, name))
        with open(os.path.join(folder, "latest"), encoding="ascii") as file:
            self.assertEqual(file.read().split()[0], files[-1])

    def test_every_size_of_the_gap(self):
        """One checkpoint fits, the next one does not, whatever is left for it."""
        model = ["--experts", 4096]  # large against what is reserved for the file's structure
        whole = self.train(2, "whole", *model, "--steps", 2)
        size = os.path.getsize(whole.checkpoint(2))
        least = size + 700_000
        for part in range(5):
            folder = self.mount(f"gap{part}", least + (2 * size - 8192 - least) * part // 4)
            options = [*model, "--steps", 6, "--checkpoint-every", 2, "--checkpoint-dir", folder]
            run = self.start(2, f"stop{part}", *options)
            with self.subTest(part=part):
                self.assert_refused(run, IO, folder, "No space left on device")
                self.check_folder(folder, [2])
                self.assertEqual(list(run.losses()), [1, 2, 3, 4])

    def test_go_on_with_a_full_disk(self):
        """With --checkpoint-fail continue the steps go on; only the last checkpoint must succeed."""
        model = ["--experts", 4096]
        size = os.path.getsize(self.train(1, "size", *model, "--steps", 1).checkpoint(1))
        folder = self.mount("small", size * 3 // 2)
        options = [*model, "--checkpoint-every", 2, "--checkpoint-fail", "continue",
                   "--checkpoint-dir", folder]
        run = self.start(3, "continue", "--steps", 7, *options)
        self.assert_refused(run, IO, folder, "No space left on device")
        self.assertEqual(run.stdout.count("warning: "), 2, run)
        self.assertEqual(list(run.losses()), [1, 2, 3, 4, 5, 6, 7])
        self.check_folder(folder, [2])
        straight = self.train(3, "straight", *model, "--steps", 7)
        self.assertEqual(straight.losses(), run.losses())

    def test_limit_on_the_size_of_files(self):
        """EFBIG instead of ENOSPC; SIGXFSZ must not kill."""
        first = self.train(2, "limited", "--steps", 2)
        kibibytes = os.path.getsize(first.checkpoint(2)) // 2048
        words = command(2, self.small_run("limited", "--steps", 4, "--resume", "auto",
                                          "--sparse-algorithm", "nbx"))
        words[3:3] = ["sh", "-c", f'ulimit -f {2 * kibibytes}; exec "$@"', "sh"]  # 512 bytes each
        # Without shared memory: its files are larger.
        run = self.finish(words, self.path("limited"), env=os.environ | {
            "OMPI_MCA_btl": "self,tcp", "OMPI_MCA_btl_tcp_if_include": "lo"})
        self.assert_refused(run, IO, "File too large")
        self.check_folder(self.path("limited", "checkpoints"), [2])
        rest = self.train(2, "limited", "--steps", 4, "--resume", "auto")
        self.assertEqual(list(rest.losses()), [1, 2, 3, 4])

    def test_metrics_on_a_full_disk(self):
        """metrics.jsonl itself cannot be written: every rank ends, soon."""
        folder = self.mount("tiny", 4 * 4096)
        run = self.start(2, "unused", "--steps", 500, "--no-checkpoint", "--output-dir", folder)
        self.assert_refused(run, IO, "metrics.jsonl", "No space left on device")

    @unittest.skipIf(os.geteuid() == 0, "root may write anywhere")
    def test_read_only_directory(self):
        folder = self.path("read-only")
        os.makedirs(folder, mode=0o500)
        run = self.start(2, "unused2", "--steps", 2, "--checkpoint-dir", folder)
        self.assert_refused(run, IO, folder)


if __name__ == "__main__":
    train_runs.main()
