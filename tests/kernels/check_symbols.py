#!/usr/bin/env python3
"""Fails when an archive of one level defines a symbol that another object could pick up in its place.

usage: check_symbols.py NM ARCHIVE

Weak symbols (inline functions and templates that are not local to the object) are merged by the linker: code
compiled for one instruction set would run where another was asked for. Strong symbols must carry the project's
namespace, and nothing of the C++ library may be called for, since its inline functions are compiled with the
level's flags.
"""
import re
import subprocess
import sys

PROJECT = re.compile(r"gearkv::\w+_(scalar|avx2|avxvnni|avx512|neon|dotprod)$|gearkv::\w+_(scalar|avx2|avxvnni|avx512|neon|dotprod)\(")


def symbols(nm, archive):
    """Yields (type, name) of every global symbol, defined or not."""
    listing = subprocess.run([nm, "-C", "-g", archive], check=True, capture_output=True, text=True).stdout
    for line in listing.splitlines():
        match = re.match(r"(?:[0-9a-f]+)?\s+([A-Za-z])\s+(.+)$", line)
        if match:
            yield match.group(1), match.group(2)


def complaint(kind, name):
    if kind in "WVuwv":
        return f"weak symbol '{name}'"
    if kind == "U":
        return f"needs '{name}' of the C++ library" if "std::" in name or "operator new" in name else None
    return None if PROJECT.match(name) else f"defines '{name}', expected only tables named by the level"


def main():
    nm, archive = sys.argv[1:]
    found = list(symbols(nm, archive))
    if not any(kind in "DRB" or kind == "T" for kind, _ in found):
        sys.exit(f"{archive}: no defined symbol, expected the tables of a level")
    complaints = sorted({text for kind, name in found if (text := complaint(kind, name))})
    for text in complaints:
        print(f"{archive}: {text}")
    sys.exit(1 if complaints else 0)


main()
