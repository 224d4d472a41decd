"""Writes the C source of gearkv._gearkv out of the public headers: ffi.py OUTPUT HEADER..."""
import re
import sys

import cffi

# Functions of Python that the library calls, on the thread of a call into it.
CALLED = """
extern "Python" int gearkv_py_write(void*, const void*, size_t);
extern "Python" int gearkv_py_read(void*, void*, size_t, size_t*);
extern "Python" int gearkv_py_interrupt(void*);
"""


def declarations(text):
    """What cffi reads of a header: no comments, of conditions what C sees, of macros numbers alone."""
    text = re.sub(r"/\*.*?\*/", " ", text, flags=re.S)
    lines, skipping = [], []
    for line in text.splitlines():
        word = line.split()
        if line.startswith(("#ifdef", "#ifndef")):
            # Neither C++ nor a compiler's own words are wanted; guards are.
            skipping.append(line.startswith("#ifdef"))
        elif line.startswith("#else"):
            skipping[-1] = not skipping[-1]
        elif line.startswith("#endif"):
            skipping.pop()
        elif any(skipping) or line.endswith("\\"):
            continue
        elif line.startswith("#define"):
            if len(word) == 3 and re.fullmatch(r"\d+|0x[0-9a-f]+", word[2]):
                lines.append(line)
        elif not line.startswith("#") and not line.startswith("    (GEARKV_VERSION_MAJOR"):
            lines.append(line)
    return re.sub(r"GEARKV_ENUM\((\w+)\)", r"enum \1 ", "\n".join(lines))


def main():
    output, headers = sys.argv[1], sys.argv[2:]
    builder = cffi.FFI()
    for header in headers:
        with open(header, encoding="utf-8") as file:
            builder.cdef(declarations(file.read()))
    builder.cdef(CALLED)
    names = [header.rsplit("/", 1)[1] for header in headers]
    builder.set_source("gearkv._gearkv", "".join(f'#include "gearkv/{name}"\n' for name in names))
    builder.emit_c_code(output)


main()
