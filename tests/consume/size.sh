#!/usr/bin/env bash
# size.sh ARCHIVE SOURCE COMPILER LIMITS LIBRARY...: what a program that appends and attends takes, without what it does not
# use, by part; more KiB than the limit is a failure. LIMITS are all=KIB, of the archive as it is, and LEVEL=KIB, of a build
# with that level alone (or none beside scalar): the choice of levels is compiled anew, and the others are not used then.
set -euo pipefail
archive=$1 source=$2 compiler=$3 limits=$4
shift 4
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$compiler" -std=c++20 -O2 -I "$source/include" -c "$source/examples/embed/app.cpp" -o "$work/app.o"
for level in $limits; do
  limit=${level#*=} level=${level%=*} choice=()
  if [ "$level" != all ]; then
    choice=("$work/$level.o")
    "$compiler" -std=c++20 -Os -DNDEBUG -fno-exceptions -fno-rtti -ffunction-sections -fdata-sections -DGEARKV_HAVE_SCALAR \
      "-DGEARKV_HAVE_${level^^}" -I "$source/include" -I "$source/src" -I "$source/arch" -c "$source/src/cpu.cpp" -o "${choice[0]}"
  fi
  "$compiler" "$work/app.o" "${choice[@]}" -o "$work/app" "$archive" "$@" -Wl,--gc-sections -Wl,-Map="$work/map"
  "$("$compiler" -print-prog-name=strip)" "$work/app"
  [ "$level" != all ] || python3 - "$work/map" <<'PYTHON'
import collections, re, sys
parts, section = collections.Counter(), ""
for line in open(sys.argv[1]).read().split("Linker script and memory map")[1].split("\n"):
    found = re.match(r" (\.\S+)?(?: +0x[0-9a-f]+ +0x([0-9a-f]+) (\S+))?$", line) or re.match(r"()\s+0x[0-9a-f]+ +0x([0-9a-f]+) (\S+\.o\)?)$", line)
    if not found:
        continue
    section = found.group(1) or section
    if found.group(2) and "(" in found.group(3) and re.match(r"\.(text|rodata|data|eh_frame|gcc_except)", section):
        name = found.group(3).split("(")[1].rstrip(")")
        part = re.match(r"((?:x86|arm)_[a-z0-9]+|scalar)_(?:attention|codec)", name)
        parts["level " + part.group(1) if part else name.split("_")[0]] += int(found.group(2), 16)
for part, n in parts.most_common():
    if n >= 1024:
        print(f"{n / 1024:8.0f} KiB  {part}")
PYTHON
  bytes=$("$("$compiler" -print-prog-name=size)" "$work/app" | awk 'NR == 2 {print $1 + $2}')
  echo "$((bytes / 1024)) KiB with the level $level, at most $limit"
  [ "$bytes" -le $((limit * 1024)) ]
done
