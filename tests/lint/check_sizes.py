"""Checks that no file has grown past one idea. Usage: check_sizes.py ROOT"""

import sys

import source_tree

MAX_LINES = 600
SUFFIXES = (".hpp", ".cpp", ".h", ".cu", ".cuh", ".py", ".sh", ".cmake", "CMakeLists.txt")


def check(root):
    errors = []
    for path in source_tree.files(root, SUFFIXES, top_level=True):
        lines = len(source_tree.read(root, path).splitlines())
        if lines > MAX_LINES:
            errors.append(f"{path}: {lines} lines, at most {MAX_LINES}: split it")
    return errors


if __name__ == "__main__":
    sys.exit(source_tree.report(check(sys.argv[1]), "sizes"))
