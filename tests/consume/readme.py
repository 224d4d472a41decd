#!/usr/bin/env python3
"""What README.md tells embedders is what is tested.
  readme.py compare SOURCE          every block named like a file of the tree is that file
  readme.py commands SOURCE NAME    prints the commands of the block ```sh NAME
"""
import os
import re
import sys

# Those that embedders are shown, all of them.
FILES = {"examples/embed/" + name for name in ("app.cpp", "CMakeLists.txt", "meson.build", "gearkv.wrap")}

action, source = sys.argv[1:3]
with open(os.path.join(source, "README.md"), encoding="utf-8") as file:
    blocks = re.findall(r"^```\w+ (\S+)\n(.*?)^```$", file.read(), re.M | re.S)
found = dict(blocks)
if len(found) != len(blocks):
    sys.exit("README.md: two blocks of one name")
if action == "commands":
    if sys.argv[3] not in found:
        sys.exit(f"README.md: no block of commands {sys.argv[3]}")
    print(found[sys.argv[3]], end="")
else:
    named = {name for name in found if "/" in name}
    if named != FILES:
        sys.exit(f"README.md shows {sorted(named)}, expected {sorted(FILES)}")
    for name in sorted(named):
        with open(os.path.join(source, name), encoding="utf-8") as file:
            if file.read() != found[name]:
                sys.exit(f"README.md does not show {name} as it is")
        print(name)
