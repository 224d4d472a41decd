#!/usr/bin/env python3
"""Writes the one C++ program of a Markdown file. Usage: extract_example.py README.md OUTPUT.cpp"""
import re
import sys

text = open(sys.argv[1], encoding="utf-8").read()
programs = [block for block in re.findall(r"^```cpp\n(.*?)^```$", text, re.M | re.S) if "int main" in block]
if len(programs) != 1:
    sys.exit(f"{sys.argv[1]}: {len(programs)} C++ programs, expected one ```cpp block with a main")
open(sys.argv[2], "w", encoding="utf-8").write(programs[0])
