"""SIGTERM and SIGUSR1, to one rank, to all, to mpirun: step finished, checkpoint, code 85, resume."""

import os
import signal
import subprocess
import sys
import time

import h5py

import train_runs
from train_runs import SECONDS_FOR_A_RUN, Run, TrainTest, command, in_parallel

SAVED_ON_SIGNAL, WATCHDOG = 85, 86
OPTIONS = ["--lr", 0.01, "--schedule-steps", 1000, "--eval-every", 7]


def children(pid):
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", encoding="ascii", errors="replace") as file:
                parent = file.read().rpartition(")")[2].split()[1]
        except OSError:  # it has ended meanwhile
            continue
        if int(parent) == pid:
            found.append(int(name))
    return found


def ranks_of(mpirun):
    """Process ids of the ranks, whatever stands between them and mpirun."""
    found, todo = [], [mpirun]
    while todo:
        for pid in children(todo.pop()):
            with open(f"/proc/{pid}/comm", encoding="ascii") as file:
                (found if file.read().startswith("airmoe-train") else todo).append(pid)
    return found


class Signals(TrainTest):
    patience = train_runs.QUICK_MPIRUN

    def interrupt(self, ranks, name, send, *options):
        """Starts, lets it take some steps, sends, waits for the end."""
        output_dir = self.path(name)
        start = time.monotonic()
        process = subprocess.Popen(
            command(ranks, self.small_run(name, "--steps", 1_000_000, *OPTIONS, *options)),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | self.patience)
        try:
            metrics = os.path.join(output_dir, "metrics.jsonl")
            while not os.path.exists(metrics) or os.path.getsize(metrics) < 3000:
                self.assertIsNone(process.poll(), "ended before its time")
                self.assertLess(time.monotonic() - start, SECONDS_FOR_A_RUN)
                time.sleep(0.01)
            pids = ranks_of(process.pid)
            self.assertEqual(len(pids), ranks)
            sent = time.monotonic()
            send(process.pid, pids)
            out, err = process.communicate(timeout=SECONDS_FOR_A_RUN)
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
        return Run(process.returncode, out, err, output_dir, time.monotonic() - sent)

    def check(self, ranks, name, send):
        run = self.interrupt(ranks, name, send)
        self.assertEqual(run.code, SAVED_ON_SIGNAL, run)
        self.assertEqual(run.our_lines(), [], run)
        self.assertLess(run.seconds, 10)
        return self.check_files(run, name)

    def check_files(self, run, name):
        """One good checkpoint of the last step in metrics and summary: that step."""
        folder = self.path(name, "checkpoints")
        (file,) = [n for n in os.listdir(folder) if n.endswith(".h5")]
        self.assertEqual(sorted(os.listdir(folder)), ["latest", file])
        self.assert_good_file(os.path.join(folder, file))
        with h5py.File(os.path.join(folder, file), "r") as opened:
            step = int(opened.attrs["step"])
        self.assertEqual(list(run.losses()), list(range(1, step + 1)))
        self.assertEqual(run.summary()["steps"], step)
        return step

    def check_resume(self, ranks, name, step):
        """Three more steps are those of a run that nobody stopped."""
        resumed, straight = in_parallel([
            lambda: self.start(ranks, name, "--resume", "auto", "--steps", step + 3, *OPTIONS),
            lambda: self.train(ranks, name + "-straight", "--steps", step + 3, *OPTIONS)])
        self.assertEqual(resumed.code, 0, resumed)
        self.assertEqual(resumed.losses(), straight.losses())
        self.assert_same_file(resumed.checkpoint(step + 3), straight.checkpoint(step + 3))

    def test_one_rank_of_three(self):
        for number in (signal.SIGUSR1, signal.SIGTERM):
            name = f"one-{number}"
            step = self.check(3, name, lambda _, pids, n=number: os.kill(pids[-1], n))
            self.check_resume(3, name, step)

    def test_all_ranks_twice(self):
        def send(_, pids):
            for number in (signal.SIGTERM, signal.SIGUSR1):
                for pid in pids:
                    os.kill(pid, number)
        step = self.check(2, "all", send)
        self.check_resume(2, "all", step)

    def test_usr1_to_mpirun_reaches_the_ranks(self):
        self.check(2, "usr1-mpirun", lambda mpirun, _: os.kill(mpirun, signal.SIGUSR1))

    def test_term_to_mpirun(self):
        """Open MPI's own way to end: it may kill the ranks before they have saved (seen under
        CTest), so all that can be asked is that what there is is whole."""
        self.patience = {"OMPI_MCA_odls_base_sigkill_timeout": "4"}
        run = self.interrupt(2, "term-mpirun", lambda mpirun, _: os.kill(mpirun, signal.SIGTERM))
        self.assertNotEqual(run.code, 0, run)
        folder = self.path("term-mpirun", "checkpoints")
        files = [name for name in os.listdir(folder) if name.endswith(".h5")]
        if files:  # killed after that, it may leave its lock and no summary
            self.assert_good_file(os.path.join(folder, files[0]))
            self.check_resume(2, "term-mpirun", int(files[0][5:14]))
        else:
            print("mpirun ended the ranks before they saved:", run.code, file=sys.stderr)
            self.assertNotIn("latest", os.listdir(folder))

    def test_without_mpirun(self):
        output_dir = self.path("single")
        process = subprocess.Popen(
            command(0, self.small_run("single", "--steps", 1_000_000, *OPTIONS)),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            metrics = os.path.join(output_dir, "metrics.jsonl")
            while not os.path.exists(metrics) or os.path.getsize(metrics) < 3000:
                self.assertIsNone(process.poll())
                time.sleep(0.01)
            process.terminate()
            _, err = process.communicate(timeout=SECONDS_FOR_A_RUN)
        finally:
            process.kill()
        self.assertEqual((process.returncode, err), (SAVED_ON_SIGNAL, ""))

    def test_stopped_rank(self):
        """A rank that does not answer: the others end, and with them the run."""
        runs = in_parallel([
            lambda i=i: self.interrupt(
                3, f"hang{i}", lambda _, pids: os.kill(pids[i], signal.SIGSTOP), "--deadline", 2)
            for i in (0, 2)])
        for run in runs:
            self.assertEqual(run.code, WATCHDOG, run)
            self.assertIn("no answer from", run.our_lines()[0])
            self.assertIn("within 2", run.our_lines()[0])
            for crash in train_runs.CRASHES:
                self.assertNotIn(crash, run.stderr)
            self.assertLess(run.seconds, 12)

    def test_killed_rank_leaves_nothing_broken(self):
        run = self.interrupt(3, "kill", lambda _, pids: os.kill(pids[1], signal.SIGKILL),
                             "--checkpoint-every", 2, "--keep", 2)
        self.assertNotEqual(run.code, 0)
        self.assertLess(run.seconds, 10)
        last = max(int(n[5:14]) for n in os.listdir(self.path("kill", "checkpoints"))
                   if n.endswith(".h5"))
        self.check_resume(3, "kill", last)
        self.assertEqual([n for n in os.listdir(self.path("kill", "checkpoints")) if "tmp" in n], [])


if __name__ == "__main__":
    train_runs.main()
