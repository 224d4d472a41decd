#!/usr/bin/env bash
# subproject.sh SOURCE: another meson project takes gearkv as a subproject; tests, benchmarks and examples stay off.
set -euo pipefail
source=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r "$source/tests/consume/app/." "$work"
mkdir -p "$work/subprojects/gearkv"
for part in meson.build meson_options.txt include src arch; do cp -r "$source/$part" "$work/subprojects/gearkv/"; done
meson setup "$work/build" "$work" --wrap-mode=nodownload --force-fallback-for=gearkv \
  --buildtype=debug -Dgearkv:levels=none -Dgearkv:precompiled=true
ninja -C "$work/build"
meson test -C "$work/build" --no-rebuild --print-errorlogs
