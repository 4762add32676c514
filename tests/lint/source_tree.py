"""Walks the files of the project that the lints look at."""

import os

TOP_FOLDERS = ("comm", "router", "experts", "scheduler", "apps", "tests", "cluster", "docs")


def files(root, suffixes, folders=TOP_FOLDERS, top_level=False):
    """Yields repository-relative paths, '/' separated and sorted, that end in one of `suffixes`."""
    if top_level:
        yield from sorted(name for name in os.listdir(root)
                          if name.endswith(suffixes) and os.path.isfile(os.path.join(root, name)))
    for folder in folders:
        for directory, subdirectories, names in os.walk(os.path.join(root, folder)):
            subdirectories[:] = sorted(s for s in subdirectories if s != "__pycache__")
            for name in sorted(names):
                if name.endswith(suffixes):
                    path = os.path.relpath(os.path.join(directory, name), root)
                    yield path.replace(os.sep, "/")


def read(root, path):
    with open(os.path.join(root, path), encoding="utf-8") as file:
        return file.read()


def report(errors, what):
    """Prints the errors and returns the exit status of a lint."""
    for error in errors:
        print(error)
    print(f"{what}: {len(errors)} error(s)")
    return 1 if errors else 0
