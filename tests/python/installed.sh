#!/usr/bin/env bash
# installed.sh BUILD SOURCE PYTHON TEST_FILE: tests the package as it is installed, from outside of the tree.
set -euo pipefail
build=$1 source=$2 python=$3 file=$4
[ "$python" != none ] || { echo "SKIPPED: Python, its headers or cffi are missing"; exit 77; }
"$python" -c 'import numpy, pytest' || { echo "SKIPPED: NumPy or pytest is missing"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
meson install -C "$build" --no-rebuild --tags python-runtime --destdir "$work/root" >/dev/null
module=$(find "$work/root" -name '_gearkv.*so')
export PYTHONPATH=${module%/gearkv/*} PYTHONDONTWRITEBYTECODE=1 GEARKV_SOURCE=$source
cd "$work"
"$python" -m pytest -q -W error -p no:cacheprovider --rootdir "$work" "$source/tests/python/$file"
