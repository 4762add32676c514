"""Checks the documents against the tree. Usage: check_docs.py ROOT [PROGRAM...]

- relative links in every *.md lead to a file or folder, and their #fragments to a heading;
- documents that sources name (docs/....md) exist;
- every option in `PROGRAM --help` is in that program's section of docs/cli.md, and vice versa.
"""

import os
import re
import subprocess
import sys

import source_tree

LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\(([^)\s]+)\)|!\[[^\]\n]*\]\(([^)\s]+)\)")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
CODE_BLOCK = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def anchors(text):
    """The #fragments of a document's headings, as the usual renderers make them."""
    headings = re.findall(r"^#+\s+(.*)$", CODE_BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.strip().lower()).replace(" ", "-") for h in headings}


def check_links(root):
    errors = []
    for path in source_tree.files(root, (".md",), top_level=True):
        text = source_tree.read(root, path)
        for match in LINK.finditer(CODE_BLOCK.sub(lambda m: "\n" * m[0].count("\n"), text)):
            link = match[1] or match[2]
            if re.match(r"[a-z]+:", link):
                continue
            target, _, fragment = link.partition("#")
            target = os.path.normpath(os.path.join(os.path.dirname(path), target)) if target else path
            full = os.path.join(root, target)
            if not os.path.exists(full):
                errors.append(f"{path}: link to {link}, which does not exist")
            elif fragment and target.endswith(".md"):
                if fragment not in anchors(source_tree.read(root, target)):
                    errors.append(f"{path}: link to {link}: no such heading")
    return errors


def check_mentions(root):
    errors = []
    suffixes = (".hpp", ".cpp", ".cu", ".cuh", ".py", ".sh", ".cmake", ".txt")
    for path in source_tree.files(root, suffixes, top_level=True):
        if path.startswith("tests/lint/"):
            continue
        for number, line in enumerate(source_tree.read(root, path).splitlines(), 1):
            for document in re.findall(r"\bdocs/[\w/.-]+\.md\b", line):
                if not os.path.exists(os.path.join(root, document)):
                    errors.append(f"{path}:{number}: names {document}, which does not exist")
    return errors


def check_options(root, programs):
    errors = []
    sections = {}
    for section in re.split(r"^## ", source_tree.read(root, "docs/cli.md"), flags=re.MULTILINE)[1:]:
        title, _, body = section.partition("\n")
        sections[title.strip().strip("`")] = body
    for program in programs:
        name = os.path.basename(program)
        if name not in sections:
            errors.append(f"docs/cli.md: no section '## {name}'")
            continue
        run = subprocess.run([program, "--help"], capture_output=True, text=True, timeout=60)
        if run.returncode != 0:
            errors.append(f"{name} --help: exit status {run.returncode}: {run.stderr.strip()}")
            continue
        # An option is documented by a table row or list item that begins with it.
        documented = set()
        for line in CODE_BLOCK.sub("", sections[name]).splitlines():
            if line.lstrip().startswith(("|", "-", "*")):
                documented.update(OPTION.findall(re.split(r"(?<!\\)\|", line.strip("| "))[0]
                                                 if line.startswith("|") else line.split(":")[0]))
        # In --help an option is declared where a line begins with it.
        declared = {o for line in run.stdout.splitlines()
                    for o in re.findall(r"^\s*(?:-\w \[ )?(--[a-z][a-z0-9-]*)", line)}
        if not declared:
            errors.append(f"{name} --help: no options found")
        errors += [f"docs/cli.md: {name} has no option {o}" for o in sorted(documented - declared)]
        errors += [f"docs/cli.md: {name} {o} is not documented" for o in sorted(declared - documented)]
    return errors


if __name__ == "__main__":
    top, binaries = sys.argv[1], sys.argv[2:]
    found = check_links(top) + check_mentions(top)
    if binaries:
        found += check_options(top, binaries)
    else:
        print("no programs given: only links were checked")
    sys.exit(source_tree.report(found, "docs"))
