#!/usr/bin/env bash
# cmake.sh BUILD SOURCE: a CMake project takes the decoder, static from C++ and shared from C, out of what meson installed.
set -euo pipefail
build=$1 source=$2
command -v cmake >/dev/null || { echo "SKIPPED: there is no cmake"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
meson install -C "$build" --no-rebuild --destdir "$work/root" >/dev/null
config=$(find "$work/root" -name gearkv-config.cmake)
# Wherever it was moved to.
prefix=${config%/lib*}
mv "$prefix" "$work/moved"
find "$work/moved" -name 'libgearkv-decoder.a' | grep -q . || { echo "SKIPPED: built without the decoder"; exit 77; }
cmake -S "$source/tests/consume/decoder" -B "$work/build" -G Ninja "-Dgearkv_DIR=$work/moved/lib${config#*/lib}/.." \
  "-DCMAKE_PREFIX_PATH=$work/moved" "-DGENERATE_SOURCE=$source/examples/03_generate.cpp" \
  "-DC_SOURCE=$source/tests/c/decoder_life.c" >"$work/log" || { cat "$work/log"; exit 1; }
cmake --build "$work/build" >"$work/log" || { cat "$work/log"; exit 1; }
"$work/build/generate" "$source/examples/models/tiny-q8_0.gguf"
if [ -e "$work/build/c_life" ]; then
  "$work/build/c_life" "$source/examples/models/tiny-q8_0.gguf" "$work/life.gkvs"
elif find "$work/moved" -name 'libgearkv-decoder.so' | grep -q .; then
  echo "the shared decoder is installed, and it was not found" >&2
  exit 1
fi
