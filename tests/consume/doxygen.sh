#!/usr/bin/env bash
# doxygen.sh SOURCE: the pages of the public headers are made without a warning.
set -euo pipefail
command -v doxygen >/dev/null || { echo "no doxygen"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$1"
(cat Doxyfile; echo "OUTPUT_DIRECTORY = $work") | doxygen -
grep -q "Softmax attention of the queries" "$work/html/classgearkv_1_1Cache.html"
grep -q "tokens over which the compression of a block" "$work/html/structgearkv__config.html"
