"""Shows that each lint refuses what it is there to refuse, on small made-up trees."""

import os
import stat
import tempfile
import unittest

import check_docs
import check_format
import check_layers
import check_sizes


class Tree:
    """A temporary repository: Tree({"comm/a.hpp": "text"})."""

    def __init__(self, contents):
        self.directory = tempfile.TemporaryDirectory()
        self.root = self.directory.name
        for path, text in contents.items():
            full = os.path.join(self.root, path)
            os.makedirs(os.path.dirname(full), exist_ok=True)
            with open(full, "w", encoding="utf-8") as file:
                file.write(text)

    def __enter__(self):
        return self.root

    def __exit__(self, *_):
        self.directory.cleanup()


def include(path):
    return f'#include "{path}"\n'


HEADERS = {
    "comm/base/error.hpp": "",
    "comm/base/src/private.hpp": "",
    "comm/communicator.hpp": "",
    "router/top_k.hpp": "",
    "router/src/kernels.hpp": "",
    "experts/ffn.hpp": "",
    "scheduler/moe_layer.hpp": "",
    "scheduler/data/src/private.hpp": "",
    "tests/support/agree.hpp": "",
}


class Layers(unittest.TestCase):
    def check(self, path, line):
        with Tree({**HEADERS, path: "// first line\n" + line}) as root:
            return check_layers.check(root)

    def assert_refused(self, path, line, message):
        errors = self.check(path, line)
        self.assertEqual(len(errors), 1, errors)
        self.assertIn(f"{path}:2: ", errors[0])
        self.assertIn(message, errors[0])

    def test_the_architecture_is_allowed(self):
        for path, included in (("comm/src/a.cpp", "comm/base/error.hpp"),
                               ("router/src/a.cpp", "router/src/kernels.hpp"),
                               ("router/a.hpp", "comm/base/error.hpp"),
                               ("scheduler/src/a.cpp", "router/top_k.hpp"),
                               ("scheduler/src/a.cpp", "comm/communicator.hpp"),
                               ("scheduler/data/src/a.cpp", "scheduler/data/src/private.hpp"),
                               ("apps/train/main.cpp", "scheduler/moe_layer.hpp"),
                               ("tests/router/a_test.cpp", "router/src/kernels.hpp"),
                               ("tests/router/a_test.cpp", "support/agree.hpp"),
                               ("tests/router/a_test.cpp", "tests/support/agree.hpp"),
                               ("tests/base/a_test.cpp", "comm/base/src/private.hpp"),
                               ("tests/support/a.cpp", "comm/communicator.hpp")):
            self.assertEqual(self.check(path, include(included)), [], path)

    def test_upwards_and_sideways_are_refused(self):
        for path, included, message in (
                ("comm/base/a.hpp", "comm/communicator.hpp", "comm/base may not include comm"),
                ("comm/a.hpp", "router/top_k.hpp", "comm may not include router"),
                ("router/src/a.cpp", "scheduler/moe_layer.hpp", "router may not include scheduler"),
                ("router/a.hpp", "comm/communicator.hpp", "router may not include comm"),
                ("router/a.hpp", "experts/ffn.hpp", "router may not include experts"),
                ("experts/a.hpp", "router/top_k.hpp", "experts may not include router"),
                ("tests/router/a_test.cpp", "experts/ffn.hpp", "router may not include experts"),
                ("tests/router/a_test.cpp", "support/gone.hpp", "not a path"),
                ("scheduler/a.cpp", "tests/support/agree.hpp", "may not include tests/")):
            self.assert_refused(path, include(included), message)

    def test_private_headers_are_refused(self):
        self.assert_refused("scheduler/a.cpp", include("router/src/kernels.hpp"), "private to router/")
        self.assert_refused("scheduler/a.cpp", include("scheduler/data/src/private.hpp"),
                            "private to scheduler/data/")
        self.assert_refused("comm/src/a.cpp", include("comm/base/src/private.hpp"),
                            "private to comm/base/")

    def test_wrapped_libraries_are_refused_elsewhere(self):
        for path, header, owner in (("scheduler/a.cpp", "mpi.h", "comm"),
                                    ("comm/base/a.cpp", "mpi.h", "comm"),
                                    ("apps/a.cpp", "ucp/api/ucp.h", "comm"),
                                    ("scheduler/a.cpp", "ucs/type/status.h", "comm"),
                                    ("apps/a.cpp", "hdf5.h", "scheduler/store"),
                                    ("scheduler/a.cpp", "hdf5.h", "scheduler/store"),
                                    ("comm/a.cpp", "H5Dpublic.h", "scheduler/store"),
                                    ("scheduler/a.cpp", "boost/program_options.hpp", "apps"),
                                    ("router/a.cpp", "cblas.h", "comm/base"),
                                    ("experts/a.cpp", "Random123/philox.h", "comm/base")):
            self.assert_refused(path, f"#include <{header}>\n", f"only {owner} may")
        self.assertEqual(self.check("comm/src/a.cpp", "#include <mpi.h>\n"), [])
        self.assertEqual(self.check("scheduler/store/src/a.cpp", "#  include <hdf5.h>\n"), [])

    def test_paths_start_at_the_top(self):
        self.assert_refused("router/src/a.cpp", include("kernels.hpp"), "not a path from the top")
        self.assert_refused("router/src/a.cpp", include("../top_k.hpp"), "not a path from the top")


class Sizes(unittest.TestCase):
    def test_limit(self):
        with Tree({"router/a.cpp": "\n" * 600, "router/b.cpp": "\n" * 601}) as root:
            errors = check_sizes.check(root)
        self.assertEqual(len(errors), 1)
        self.assertIn("router/b.cpp: 601 lines", errors[0])


class Docs(unittest.TestCase):
    def test_links(self):
        with Tree({"README.md": "[a](docs/a.md) [b](docs/b.md)\n[c](docs/a.md#the-title)"
                                "[d](docs/a.md#gone) [e](https://example.org) ![f](no.png)\n"
                                "```\n[g](none.md)\n```\n",
                   "docs/a.md": "# The title\n[up](../README.md) [top](#the-title)"}) as root:
            errors = check_docs.check_links(root)
        self.assertEqual([e.split("link to ")[1].split(",")[0].split(": ")[0] for e in errors],
                         ["docs/b.md", "docs/a.md#gone", "no.png"])

    def test_documents_named_in_sources(self):
        with Tree({"docs/a.md": "", "comm/a.hpp": "// see docs/a.md\n// and docs/gone.md\n"}) as root:
            self.assertEqual(check_docs.check_mentions(root),
                             ["comm/a.hpp:2: names docs/gone.md, which does not exist"])

    def options(self, cli, printed):
        with Tree({"docs/cli.md": cli, "airmoe-train": f"#!/bin/sh\ncat <<'X'\n{printed}\nX\n"}) as root:
            program = os.path.join(root, "airmoe-train")
            os.chmod(program, os.stat(program).st_mode | stat.S_IXUSR)
            return check_docs.check_options(root, [program])

    def test_options(self):
        printed = "Usage: airmoe-train\n  -h [ --help ]   this\n  --steps N (=10)  with --lr\n  --seed N"
        table = "## airmoe-train\n| option | x |\n|---|---|\n| `-h`, `--help` | |\n| `--steps` | as --lr |\n"
        self.assertEqual(self.options(table + "| `--seed` | |\n", printed), [])
        self.assertEqual(self.options(table, printed),
                         ["docs/cli.md: airmoe-train --seed is not documented"])
        self.assertEqual(self.options(table + "| `--seed` | |\n| `--gone` | |\n", printed),
                         ["docs/cli.md: airmoe-train has no option --gone"])
        self.assertEqual(self.options("## airmoe-info\n", printed),
                         ["docs/cli.md: no section '## airmoe-train'"])


@unittest.skipUnless(check_format.clang_format(), "clang-format 14 is not installed")
class Format(unittest.TestCase):
    def test_badly_formatted_file(self):
        with Tree({".clang-format": "BasedOnStyle: Google\n", "comm/a.cpp": "int   a ;\n",
                   "comm/b.cpp": "int b;\n"}) as root:
            errors = check_format.check(root, check_format.clang_format())
        self.assertEqual(len(errors), 1, errors)
        self.assertIn("comm/a.cpp:1", errors[0])


if __name__ == "__main__":
    unittest.main()
