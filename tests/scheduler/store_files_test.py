"""Files of the store seen from outside. Usage: store_files_test.py STORE_TOOL INSPECT MPIEXEC

Any rank count reads what any other wrote; h5py and h5dump read it; checksums and root digest follow from
docs/checkpoint-format.md alone; damage is found and named; a full disk leaves the old file.
"""

import glob
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import unittest

import h5py
import numpy as np

TOOL, INSPECT, MPIEXEC = sys.argv[1:4]
EXPERTS = 40003


def run(command, **kwargs):
    return subprocess.run(command, capture_output=True, text=True, timeout=100, **kwargs)


def tool(ranks, *words, **kwargs):
    return run([MPIEXEC, "-n", str(ranks), TOOL, *map(str, words)], **kwargs)


def read(path):
    with open(path, "rb") as file:
        return file.read()


def write(path, content):
    with open(path, "wb") as file:
        file.write(content)


def table(polynomial):
    rows = []
    for i in range(256):
        for _ in range(8):
            i = (i >> 1) ^ (polynomial if i & 1 else 0)
        rows.append(i)
    return rows


CRC32C, CRC64 = table(0x82F63B78), table(0xC96C5795D7870F42)


def crc(data, rows, mask):
    state = mask
    for byte in data:
        state = (state >> 8) ^ rows[(state ^ byte) & 255]
    return state ^ mask


def datasets(file):
    found = []
    file.visititems(lambda n, o: found.append("/" + n) if isinstance(o, h5py.Dataset) else None)
    return sorted(d for d in found if not d.startswith("/integrity/"))


def value_text(value):
    if isinstance(value, (int, np.integer)):
        return f"i {value}"
    if isinstance(value, (float, np.floating)):
        return f"d {c_hex(float(value))}"
    return f"s {value.decode() if isinstance(value, bytes) else value}"


def c_hex(value):
    """As printf's %a: no trailing zeros."""
    mantissa, exponent = value.hex().split("p")
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}p{exponent}"


NAMES = {"f4": "f32", "f8": "f64", "i4": "i32", "i8": "i64", "u1": "u8", "u4": "u32", "u8": "u64"}


def digest(file):
    text = f"{file.attrs['format']} {file.attrs['format_version']}\n".encode()
    objects = ["/"]
    file.visititems(lambda n, o: objects.append("/" + n) if isinstance(o, h5py.Group) else None)
    for name in sorted(o for o in objects if not o.startswith("/integrity")):
        for key in sorted(file[name].attrs):
            if name == "/" and key in ("format", "format_version", "sealed", "root_digest"):
                continue
            text += f"{name} {key} {value_text(file[name].attrs[key])}\n".encode()
    for name in datasets(file):
        d, sums = file[name], file["/integrity" + name]
        shape = " x ".join(map(str, d.shape))
        text += f"{name} {NAMES[d.dtype.str[1:]]} [{shape}] {sums.attrs['block_rows']}\n".encode()
        text += sums[...].tobytes()
    return f"{crc(text, CRC64, 2**64 - 1):016x}"


class Files(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="airmoe-store-")
        self.addCleanup(shutil.rmtree, self.dir)

    def path(self, step):
        return f"{self.dir}/step-{step:09d}.h5"

    def good(self, result):
        self.assertEqual((result.returncode, result.stderr), (0, ""))

    def test_every_rank_count_reads_every_other(self):
        contents = {}
        for writers in (1, 2, 3, 4):
            directory = f"{self.dir}/{writers}"
            self.good(tool(writers, "save", directory, 7, EXPERTS))
            with h5py.File(f"{directory}/step-000000007.h5") as f:
                contents[writers] = [f[d][...].tobytes() for d in datasets(f)] + [
                    f["/integrity" + d][...].tobytes() for d in datasets(f)]
            for readers in {1: (3,), 2: (1, 4), 3: (2, 4), 4: (3, 5)}[writers]:
                self.good(tool(readers, "check", directory, EXPERTS))
        for writers in (2, 3, 4):  # no rank number in any byte
            self.assertEqual(contents[writers], contents[1])

    def test_h5py_recomputes_checksums_and_digest(self):
        self.good(tool(3, "save", self.dir, 1, 101))
        with h5py.File(self.path(1)) as f:
            self.assertEqual(f.attrs["format"], "airmoe-checkpoint")
            self.assertEqual(f.attrs["sealed"], 1)
            self.assertEqual(json.loads(f.attrs["config_json"])["name"], "ü")
            up = f["/layers/00/moe/up"][...].reshape(-1)
            np.testing.assert_array_equal(up, (np.arange(up.size) * 7 + 1000003) % 65521)
            for name in datasets(f):
                d, sums = f[name], f["/integrity" + name]
                rows = int(sums.attrs["block_rows"])
                blocks = [d[i:i + rows].tobytes() for i in range(0, d.shape[0], rows)]
                self.assertEqual([crc(b, CRC32C, 2**32 - 1) for b in blocks], list(sums[...]), name)
            self.assertEqual(f.attrs["root_digest"].decode(), digest(f))

    @unittest.skipUnless(shutil.which("h5dump"), "no h5dump here")
    def test_h5dump_reads_it(self):
        self.good(tool(2, "save", self.dir, 1, 5))
        result = run(["h5dump", "-d", "/lists/ids", self.path(1)])
        self.assertEqual(result.returncode, 0)
        self.assertIn("H5T_STD_I32LE", result.stdout)

    def test_flipped_bits_are_found_or_harmless(self):
        self.good(tool(1, "save", self.dir, 1, 50))
        original = read(self.path(1))
        with h5py.File(self.path(1)) as f:
            where = {d: (f[d].id.get_offset(), f[d].nbytes) for d in datasets(f)}
        copy = self.dir + "/copy.h5"
        choose = random.Random(1)
        found = 0
        for trial in range(150):
            byte = choose.randrange(len(original))
            inside = None
            if trial % 3 == 0:  # in data: must be found and named
                inside = choose.choice([d for d, (_, size) in where.items() if size])
                byte = where[inside][0] + choose.randrange(where[inside][1])
            changed = bytearray(original)
            changed[byte] ^= 1 << choose.randrange(8)
            write(copy, changed)
            result = run([INSPECT, "--verify", copy])
            if inside:
                self.assertEqual(result.returncode, 65, byte)
                self.assertIn(f"{inside} block 0 (rows 0-", result.stderr)
            elif result.returncode == 0:  # a byte that nothing uses: the content is the same
                with h5py.File(copy) as f:
                    self.assertEqual(f.attrs["root_digest"].decode(), digest(f), byte)
            else:
                self.assertEqual(result.returncode, 65, (byte, result.stderr))
                self.assertEqual(len(result.stderr.splitlines()), 1)
                found += 1
        self.assertGreater(found, 5)

    def test_truncation_at_any_size(self):
        self.good(tool(1, "save", self.dir, 1, 50))
        original = read(self.path(1))
        for size in [0, 1, 7, 8, 47, 48, 100, 4096, len(original) // 2, len(original) - 1]:
            write(self.dir + "/cut.h5", original[:size])
            result = run([INSPECT, self.dir + "/cut.h5"])
            self.assertEqual(result.returncode, 65, size)
            self.assertRegex(result.stderr, "cut short|empty file")
            self.assertEqual(len(result.stderr.splitlines()), 1)

    def test_foreign_files(self):
        with h5py.File(self.dir + "/foreign.h5", "w", libver="latest") as f:
            f["x"] = np.arange(3)
        write(self.dir + "/text.h5", b"not one of ours\n" * 10)
        for name, words in (("foreign.h5", "not a file of airmoe"), ("text.h5", "not an HDF5 file"),
                            ("none.h5", "No such file")):
            result = run([INSPECT, f"{self.dir}/{name}"])
            self.assertIn(result.returncode, (65, 74))
            self.assertIn(words, result.stderr)
            self.assertEqual(len(result.stderr.splitlines()), 1)

    def test_rewritten_by_another_program(self):
        self.good(tool(1, "save", self.dir, 1, 5))
        with h5py.File(self.path(1), "r+") as f:
            f.attrs["step"] = 99
        result = run([INSPECT, self.path(1)])
        self.assertEqual(result.returncode, 65)
        self.assertIn("root digest", result.stderr)

    def test_newer_format(self):
        self.good(tool(1, "save", self.dir, 1, 5))
        with h5py.File(self.path(1), "r+") as f:
            f.attrs["format_version"] = 3
        result = tool(2, "check", self.dir, 5)
        self.assertEqual(result.returncode, 78)
        self.assertIn("format_version 3, this program reads 1-1. Written by airmoe-test 0.1.0.",
                      result.stderr)

    def test_never_sealed(self):
        self.good(tool(1, "save", self.dir, 1, 5))
        with h5py.File(self.path(1), "r+") as f:
            f.attrs["sealed"] = 0
        result = run([INSPECT, self.path(1)])
        self.assertEqual(result.returncode, 65)
        self.assertIn("never sealed", result.stderr)

    def test_full_disk(self):
        mount = self.dir + "/small"
        os.mkdir(mount)
        if run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", mount]).returncode != 0:
            self.skipTest("cannot mount a small file system (not root?); "
                          "store_sharded_file_test covers it with a file size limit")
        try:
            self.good(tool(2, "save", mount, 1, EXPERTS))  # 11 MiB
            before = read(f"{mount}/step-000000001.h5")
            result = tool(3, "save", mount, 2, EXPERTS)
            self.assertEqual(result.returncode, 74)
            first = result.stderr.splitlines()[0]
            self.assertRegex(first, r"cannot reserve 1\d\.\d MiB in .*small \(\d\.\d MiB free on .*"
                                    r"small\): No space left on device\. Nothing was written")
            self.assertEqual(sorted(os.listdir(mount)), ["latest", "step-000000001.h5"])
            self.assertEqual(read(f"{mount}/step-000000001.h5"), before)
            self.good(tool(1, "check", mount, EXPERTS))
        finally:
            run(["umount", mount])

    def test_killed_while_saving(self):
        self.good(tool(2, "save", self.dir, 1, EXPERTS))
        choose = random.Random(2)
        for _ in range(8):
            with subprocess.Popen([MPIEXEC, "-n", "2", TOOL, "save", self.dir, "2", str(EXPERTS)],
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as job:
                try:
                    job.wait(choose.uniform(0.2, 1.2))
                except subprocess.TimeoutExpired:
                    for child in run(["pgrep", "-P", str(job.pid)]).stdout.split():
                        os.kill(int(child), 9)
                    job.kill()  # mpirun waits for ever for a rank that dies while it starts
            for file in glob.glob(self.dir + "/step-*.h5"):
                self.good(run([INSPECT, "--verify", file]))
            self.good(tool(1, "check", self.path(1), EXPERTS))

    def test_trace(self):
        file = self.dir + "/trace.h5"
        self.good(tool(1, "trace", file, 3))
        self.good(tool(3, "trace", file, 12))
        self.good(tool(2, "trace", file, 3))  # again: replaces
        with h5py.File(file) as f:
            self.assertEqual(sorted(k for k in f if k.startswith("step")), ["step_000003", "step_000012"])
            layer = f["step_000012/layer_02"]
            self.assertEqual(layer.attrs["activation"], "relu")
            self.assertEqual(layer.attrs["active"], 3)
            np.testing.assert_array_equal(layer["output"], f["step_000003/layer_02/output"])
            self.assertEqual(list(layer["home_rank"]), [0] * 4 + [1] * 4 + [2] * 3)
            self.assertEqual(f.attrs["root_digest"].decode(), digest(f))
        result = run([INSPECT, "--json", file])
        self.good(result)
        report = json.loads(result.stdout)
        self.assertEqual(len(report["recomputed"]), 2)
        with h5py.File(file) as f:
            lists = [set(row) for row in f["step_000003/layer_02/shortlist"][...].tolist()]
            norms = np.linalg.norm(f["step_000003/layer_02/centroid"][...].astype("f8"), axis=1)
        shared = np.mean([len(a & b) / 6 for i, a in enumerate(lists) for b in lists[:i]])
        for layer in report["moe_layers"]:
            self.assertAlmostEqual(layer["shortlist"]["mean_overlap"], shared)
            self.assertAlmostEqual(layer["shortlist"]["experts_listed"], len(set.union(*lists)) / 10)
            self.assertAlmostEqual(layer["centroid_norm"]["min"], norms.min())
            self.assertAlmostEqual(layer["centroid_norm"]["mean"], norms.mean())
        for layer in report["recomputed"]:
            self.assertLess(layer["output_error"], 1e-6)
            self.assertLess(layer["gate_error"], 1e-6)

    def test_wrong_traces_are_found(self):
        for fault, words in (("output", "an output that is not"), ("gate", "gates that are not"),
                             ("codeword", "a codeword that is not"), ("shortlist", "twice"),
                             ("expert", "experts that are not")):
            file = f"{self.dir}/{fault}.h5"
            self.good(tool(2, "trace", file, 1, fault))
            result = run([INSPECT, file])
            self.assertEqual(result.returncode, 65, fault)
            self.assertIn(words, result.stdout)
            self.assertEqual(len(result.stderr.splitlines()), 1)

    def test_inspect_prints(self):
        self.good(tool(2, "save", self.dir, 1, 50))
        result = run([INSPECT, self.path(1)])
        self.good(result)
        for words in ("airmoe-checkpoint 1", "/layers/00/moe/up", "[50 x 2 x 32]", "good"):
            self.assertIn(words, result.stdout)
        result = run([INSPECT, "--jsn", self.path(1)])
        self.assertEqual(result.returncode, 64)
        self.assertIn("unknown option --jsn (did you mean --json?)", result.stderr)
        self.assertEqual(run([INSPECT]).returncode, 64)
        self.assertEqual(run([INSPECT, self.dir]).returncode, 64)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
