#!/usr/bin/env python3
"""man.py TOOL > gearkv.1: the manual page, out of what the tool says of itself. tests/tool/papers_test.py holds the page
in the repository against it."""
import re
import subprocess
import sys

TITLE = '''.\\" Written by man.py; "man.py TOOL > gearkv.1" writes it anew.
.TH GEARKV 1 "" "gearkv {version}" "User Commands"
.SH NAME
gearkv \\- models with a compressed KV cache on CPUs
.SH SYNOPSIS
.B gearkv
.I COMMAND
.RI [ OPTION ]...
.SH DESCRIPTION
Runs GGUF models with their keys and values compressed, measures what that costs, and plans what it takes.
Models are files as they are published; what would be computed wrongly is refused by name.
A SPEC says what a cache stores: f16, q8, gear\\-4, gear\\-3, gear\\-2 and others, as the README has them.
Output is text for people, or with
.B \\-\\-json
one JSON object for programs.
'''
END = '''.SH ENVIRONMENT
.TP
.B GEARKV_LEVEL
The instruction set level that "automatic" stands for; one that cannot run here is an error.
.SH EXIT STATUS
0 when all went well, 1 when the work could not be done, 2 for a command line that asks for what there is not, 128 and the
number of a signal when one ended it. Errors are told on standard error, with what was found and what was expected.
.SH EXAMPLES
.nf
gearkv chat MODEL.gguf \\-\\-kv gear\\-4
gearkv generate MODEL.gguf \\-p "Once upon a time" \\-n 100 \\-\\-kv gear\\-2
gearkv plan MODEL.gguf \\-\\-memory 2G
gearkv inspect MODEL.gguf
.fi
'''


def escaped(text):
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + text if text[:1] in (".", "'") else text


def helped(tool, *command):
    return subprocess.run([tool, *command, "--help"], check=True, capture_output=True, text=True).stdout


def entries(text):
    """(section, names, description) of the lines of a help text."""
    section, found = "", []
    for line in text.split("\n")[1:]:
        words = line.strip()
        heading = re.fullmatch(r"\[Option Group: .*\]", words) or re.fullmatch(r"[A-Z]\w*:", line)
        if heading:
            section = words.strip(":")
        elif re.match(r" {30}", line) and found:
            found[-1][2].append(words)
        elif re.match(r" {2,4}\S", line) and section and (words[0] == "-" or section in ("Positionals", "Subcommands")):
            parts = re.split(r" {2,}", words, maxsplit=1)
            found.append((section, parts[0], parts[1:]))
    return [(section, names, " ".join(texts)) for section, names, texts in found]


def option(names, text):
    """One entry of a list of options."""
    more = [f"Not with {other.strip()}." for other in re.findall(r"Excludes:((?: --?[\w-]+)+)", names)]
    more += [f"Needs {other.strip()}." for other in re.findall(r"Needs:((?: --?[\w-]+)+)", names)]
    names = re.sub(r" (Excludes|Needs):(?: --?[\w-]+)+", "", names)
    if " REQUIRED" in names:
        names = names.replace(" REQUIRED", "")
        more.append("Required.")
    several = names.endswith(" ...")
    names = names[:-4] if several else names
    default = re.search(r"(?<=[^=\s])=(\[.*\]|[^\s=]+)$", names)
    if default and not names.endswith("TOKEN=BIAS"):
        names = names[: default.start()]
        more.append(f"Default {default.group(1).strip('[]')}.")
    choice = re.search(r"TEXT:\{(.*)\}", names)
    if choice:
        names = names.replace(choice.group(0), choice.group(1).replace(",", "|"))
    words = names.split(" ", 1)
    line = "\\fB" + escaped(words[0]).replace(",", "\\fR, \\fB") + "\\fR"
    if len(words) > 1 and words[0].startswith("-"):
        line += " \\fI" + escaped(words[1]) + "\\fR"
    text += "" if text.endswith(".") or not text else "."
    return f".TP\n{line}\n{escaped(' '.join([text, *more]).strip())}\n"


def command_page(tool, *command):
    text = helped(tool, *command)
    found = entries(text)
    inner = [name for section, name, _ in found if section == "Subcommands"]
    page = f".SS gearkv {escaped(' '.join(command))}\n{escaped(text.split(chr(10))[0])}.\n"
    for section, names, what in found:
        if section != "Subcommands" and not names.startswith("-h,"):
            page += option(names, what)
    return page + "".join(command_page(tool, *command, name) for name in inner)


def main():
    tool = sys.argv[1]
    version = subprocess.run([tool, "--version"], check=True, capture_output=True, text=True).stdout.split()[1]
    page = TITLE.format(version=version) + ".SH COMMANDS\n"
    for section, name, _ in entries(helped(tool)):
        if section == "Subcommands":
            page += command_page(tool, name)
    sys.stdout.write(page + END)


main()
