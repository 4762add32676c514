"""Checks every #include against the architecture. Usage: check_layers.py ROOT

MAY_SEE *is* the architecture: which component may include headers of which other components. With
static libraries a wrong include compiles and links without a word, so this is where it stops.
"""

import os
import re
import sys

import source_tree

MAY_SEE = {
    "comm/base": set(),
    "comm": {"comm/base"},
    "router": {"comm/base"},
    "experts": {"comm/base"},
    "scheduler": {"comm/base", "comm", "router", "experts"},
    "apps": {"comm/base", "comm", "router", "experts", "scheduler"},
}

# Third-party headers that exactly one folder wraps.
ONLY_IN = {
    r"(mpi|nccl)\.h|uc[mpst]/": "comm",
    r"hdf5|H5\w*\.h": "scheduler/store",
    r"isa-l/": "scheduler",
    r"boost/program_options": "apps",
    r"cblas\.h|Random123/": "comm/base",
}

SUFFIXES = (".hpp", ".cpp", ".h", ".cu", ".cuh")
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')


def component_of(path):
    """comm/base/src/x.cpp -> comm/base; tests/router/x_test.cpp -> router; None outside."""
    if path.startswith("tests/"):
        path = path[len("tests/"):]
        if path.startswith("base/"):
            path = "comm/" + path
    for name in sorted(MAY_SEE, key=len, reverse=True):
        if path.startswith(name + "/"):
            return name
    return None


def is_in(path, folder):
    """Whether a file is in the component `folder`, or in a folder of a component."""
    return component_of(path) == folder or (folder not in MAY_SEE and path.startswith(folder + "/"))


def check_include(root, path, quote, included):
    """Returns what is wrong with this line, or None."""
    component = component_of(path)
    is_test = path.startswith("tests/")
    if quote == "<":
        for pattern, owner in ONLY_IN.items():
            if re.match(pattern, included) and not is_in(path, owner) and not is_test:
                return f"{component or path} may not include <{included}>: only {owner} may"
        return None
    if is_test:  # tests/ is on their include path
        for prefix in ("tests/", ""):
            if os.path.exists(os.path.join(root, "tests", included.removeprefix(prefix))):
                return None
    if not os.path.exists(os.path.join(root, included)):
        return f'"{included}" is not a path from the top of the repository (third-party: use <>)'
    target = component_of(included)
    if target is None or included.startswith("tests/"):
        return f"{component or path} may not include {included}"
    if component is None:  # tests/support, tests/consumer
        return None
    if target != component and target not in MAY_SEE[component]:
        return f"{component} may not include {target} ({included})"
    owner = included.split("/src/")[0] if "/src/" in included else None
    if owner and not path.startswith(owner + "/") and not (is_test and target == component):
        return f"{included} is private to {owner}/"
    return None


def check(root):
    errors = []
    for path in source_tree.files(root, SUFFIXES):
        for number, line in enumerate(source_tree.read(root, path).splitlines(), 1):
            match = INCLUDE.match(line)
            problem = match and check_include(root, path, match[1], match[2])
            if problem:
                errors.append(f"{path}:{number}: {problem}")
    return errors


if __name__ == "__main__":
    sys.exit(source_tree.report(check(sys.argv[1]), "layers"))
