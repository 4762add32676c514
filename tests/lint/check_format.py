"""Checks C++ files with clang-format 14. Usage: check_format.py ROOT

Exits 77 (skipped) when clang-format 14 is not installed: other versions format differently.
"""

import re
import shutil
import subprocess
import sys

import source_tree

VERSION = "14"


def clang_format():
    for name in (f"clang-format-{VERSION}", "clang-format"):
        path = shutil.which(name)
        if path:
            output = subprocess.run([path, "--version"], capture_output=True, text=True).stdout
            if re.search(rf"version {VERSION}\.", output):
                return path
    return None


def check(root, program):
    paths = list(source_tree.files(root, (".hpp", ".cpp", ".cu", ".cuh")))
    run = subprocess.run([program, "--dry-run", "--Werror", *paths], cwd=root,
                         capture_output=True, text=True)
    first_place = {}
    for path, line in re.findall(r"^(\S+?):(\d+):\d+: error:", run.stderr, re.MULTILINE):
        first_place.setdefault(path, line)
    if run.returncode != 0 and not first_place:
        return [run.stderr.strip()]
    return [f"{path}:{line}: run clang-format-{VERSION} -i {path}"
            for path, line in first_place.items()]


if __name__ == "__main__":
    tool = clang_format()
    if tool is None:
        print(f"skipped: clang-format {VERSION} is not installed (apt install clang-format-{VERSION})")
        sys.exit(77)
    sys.exit(source_tree.report(check(sys.argv[1], tool), "format"))
