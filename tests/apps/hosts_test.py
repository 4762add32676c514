"""The scripts for several hosts on one machine: the table from fabricated runs, and real hosts where
this machine lets us make network namespaces."""

import json
import os
import subprocess
import sys
import tempfile
import unittest

CLUSTER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "cluster")


def netns(*words, **options):
    return subprocess.run(["bash", os.path.join(CLUSTER, "netns.sh"), *words], capture_output=True,
                          text=True, timeout=60, check=False, **options)


def bench(*words):
    return subprocess.run(["bash", os.path.join(CLUSTER, "bench_hosts.sh"), *words],
                          capture_output=True, text=True, timeout=60, check=False)


class Table(unittest.TestCase):
    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory(prefix="airmoe-hosts-")
        self.addCleanup(self.temporary.cleanup)

    def write_run(self, name, seconds, dispatch, copies, loss):
        """8 tokens a step; bytes per token are the given times the number of the step."""
        folder = os.path.join(self.temporary.name, name)
        os.makedirs(folder)
        with open(os.path.join(folder, "config.resolved.json"), "w", encoding="utf-8") as file:
            json.dump({"batch": 2, "context": 4}, file)
        with open(os.path.join(folder, "metrics.jsonl"), "w", encoding="utf-8") as file:
            for i, s in enumerate(seconds):
                step = i + 1
                json.dump({"step": step, "loss": loss, "tokens_per_second": 8 / s,
                           "lambda_candidate": 1.5, "lambda_selected": 1.25,
                           "bytes_dispatch": 1e5 * dispatch * step,
                           "bytes_copies": 1e5 * copies * step, "bytes_lists": 1e4 * step,
                           "bytes_per_token": 2e5 * dispatch * step, "hidden_share": 0.25,
                           "layer_seconds": s / 2}, file)
                file.write("\n")

    def test_medians_bytes_and_spread(self):
        self.write_run("copies", [9.0, 9.0, 2.0, 4.0, 1.0], 10, 1, 3.0)
        self.write_run("cover", [9.0, 9.0, 8.0, 4.0, 6.0], 30, 0, 3.003)
        done = subprocess.run(
            [sys.executable, os.path.join(CLUSTER, "hosts_table.py"), self.temporary.name,
             "--strategies", "copies,cover", "--skip", "2", "--hosts", "4", "--rate", "1gbit"],
            capture_output=True, text=True, timeout=60, check=True)
        lines = [line.split() for line in done.stdout.splitlines()]
        self.assertEqual(lines[1], ["copies", "2.000", "1.000", "4.000", "1.00", "1.000", "25%",
                                    "64.00", "3.20", "0.32", "1.50"])
        self.assertEqual(lines[2], ["cover", "6.000", "4.000", "8.000", "3.00", "3.000", "25%",
                                    "192.00", "0.00", "0.32", "1.50"])
        self.assertIn("medians of 3 steps of 8 tokens on 4 hosts", done.stdout)
        self.assertIn("1.0e-03", done.stdout)
        with open(os.path.join(self.temporary.name, "bench.json"), encoding="utf-8") as file:
            runs = json.load(file)["runs"]
        self.assertEqual(runs["copies"]["bytes_per_step"],
                         {"dispatch": 32e6, "copies": 3.2e6, "lists": 0.32e6})
        self.assertEqual(runs["copies"]["token_bytes_per_step"], 64e6)
        self.assertEqual(runs["cover"]["all_step_seconds"], [8.0, 4.0, 6.0])


class Refusals(unittest.TestCase):
    def test_wrong_words(self):
        for words, said in ((["--steps", "x"], "--steps"), (["--steps", "3", "--skip", "3"], "--skip"),
                            (["--strategies", "none"], "--strategies"), (["--rate"], "--rate"),
                            (["--what", "1"], "--what"), (["--program", "/none"], "/none")):
            if os.geteuid() != 0 and words[0] == "--program":
                said = "root"
            done = bench(*words)
            self.assertNotEqual(done.returncode, 0, words)
            self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
            self.assertIn(said, done.stderr)

    def test_usage(self):
        done = netns()
        self.assertEqual(done.returncode, 64)
        self.assertIn("netns.sh up", done.stderr)

    @unittest.skipUnless(os.geteuid() == 0, "gives up root")
    def test_needs_root(self):
        done = netns("up", user=65534, group=65534)
        self.assertEqual(done.returncode, 1)
        self.assertIn("root", done.stderr)


@unittest.skipUnless(os.geteuid() == 0, "needs root")
class Hosts(unittest.TestCase):
    def test_up_run_down(self):
        done = netns("up", "3", "800mbit")
        if done.returncode != 0:
            self.skipTest(done.stderr.strip())
        self.addCleanup(netns, "down")
        self.assertIn("are up already", netns("up").stderr)
        show = "echo $(hostname) $OMPI_COMM_WORLD_SIZE $(ls /sys/class/net | tr '\\n' ' ')"
        for ranks, want in ((None, [1, 1, 1]), (4, [2, 1, 1]), (2, [1, 1, 0])):
            options = [] if ranks is None else ["-n", str(ranks)]
            lines = netns("run", *options, "bash", "-c", show).stdout.split("\n")
            count = [sum(line.startswith(f"airmoe-h{i} {sum(want)} eth0 lo") for line in lines)
                     for i in (1, 2, 3)]
            self.assertEqual(count, want, lines)
        self.assertEqual(netns("run", "false").returncode, 1)
        limits = subprocess.run(["tc", "qdisc", "show", "dev", "airmoe-v2"], capture_output=True,
                                text=True, check=True).stdout
        self.assertIn("rate 800Mbit", limits)
        self.assertEqual(netns("down").returncode, 0)
        left = subprocess.run("ip netns list; ip -br link", shell=True, capture_output=True,
                              text=True, check=True).stdout
        self.assertNotIn("airmoe", left)
        self.assertIn("no hosts", netns("run", "true").stderr)

    def test_a_bad_rate_leaves_nothing(self):
        done = netns("up", "2", "fast")
        self.assertEqual(done.returncode, 1)
        left = subprocess.run("ip netns list; ip -br link", shell=True, capture_output=True,
                              text=True, check=True).stdout
        self.assertTrue("airmoe" not in left or "are up already" in done.stderr, left)


if __name__ == "__main__":
    unittest.main()
