#!/usr/bin/env bash
# symbols.sh LIBRARY LIST MISUSE: the functions of the C ABI are those of the list, all of them and no others. Whoever adds
# one adds it there, and what it makes of misuse to the tests in MISUSE; none is ever taken away or renamed.
set -euo pipefail
diff -u <(sort "$2") <(nm --defined-only --extern-only "$1" | awk '$2 == "T" && $3 ~ /^gearkv_/ {print $3}' | sort)
while read -r name; do
  grep -q "[^a-z_]$name(" "$3" || { echo "$3 does not call $name"; exit 1; }
done <"$2"
