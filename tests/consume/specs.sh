#!/usr/bin/env bash
# specs.sh SOURCE EXPECTED LIMIT: the core with the trellis alone lives and reads states and blocks as EXPECTED does, the same
# program of a build with all formats; refuses the others as what they are; and takes at most LIMIT KiB at the scalar level.
set -euo pipefail
source=$1 expected=$2 limit=$3
command -v cmake >/dev/null || { echo "SKIPPED: there is no cmake"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if cmake -S "$source" -B "$work/none" -G Ninja -DGEARKV_SPECS=paper -DGEARKV_LEVELS=none >"$work/log" 2>&1; then
  echo "a name that is none was not refused" >&2
  exit 1
fi
grep -q "GEARKV_SPECS: unknown 'paper', expected all or trellis" "$work/log"
cmake -S "$source/tests/consume/target" -B "$work/build" -G Ninja "-DGEARKV_SOURCE=$source" -DGEARKV_LEVELS=none \
  -DGEARKV_SPECS=trellis -DGEARKV_THREADS=none -DCMAKE_BUILD_TYPE=MinSizeRel -DGEARKV_ONE_FILE=ON >"$work/log" ||
  { cat "$work/log"; exit 1; }
cmake --build "$work/build" -j 2 >"$work/log" || { cat "$work/log"; exit 1; }
mkdir "$work/states"
"$expected" save "$work/states" >"$work/all"
grep -E '^(gear-[124]|f16)(, a block)?: ' "$work/all" >"$work/trellis"
[ "$(wc -l <"$work/trellis")" = 8 ]
for use in save load; do
  folder=$work/$use
  [ "$use" = save ] && mkdir "$folder" || folder=$work/states
  "$work/build/target" "$use" "$folder" >"$work/found"
  grep -v ': unavailable_spec: ' "$work/found" | diff "$work/trellis" -
  for name in paper:gear-4:nb=64=kivi gear-kcvt-3:nb=64=kcvt kivi-2:nb=64=kivi q8=token; do
    why="unavailable_spec: keys are ${name##*=}, which is not built in (specs=trellis), expected gear-1"
    grep -F "${name%=*}: $why" "$work/found"
    [ "$use" = save ] || grep -F "${name%=*}, a block: $why" "$work/found"
  done
done
bash "$source/tests/consume/size.sh" "$work/build/gearkv/libgearkv.a" "$source" c++ "all=$limit"
