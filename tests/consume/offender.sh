#!/usr/bin/env bash
# offender.sh SYMBOLS_SCRIPT ARCHIVE: symbols.sh sees every fault of offender.cpp.
set -uo pipefail
found=$("$1" "$2") && { echo "no fault found"; exit 1; }
echo "$found"
for title in "defined outside of gearkv" "runs before or after main" prints "uses iostream" "ends the process" \
  "changes its host" "reads the environment"; do
  grep -q "^$title:" <<<"$found" || { echo "not seen: $title"; exit 1; }
done
