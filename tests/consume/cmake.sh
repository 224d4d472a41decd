#!/usr/bin/env bash
# cmake.sh BUILD SOURCE: CMake projects take the library from what meson installed, from its sources, and from what
# CMake installed.
set -euo pipefail
build=$1 source=$2
command -v cmake >/dev/null || { echo "SKIPPED: there is no cmake"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r "$source/tests/consume/app" "$work/app"

# run NAME CMAKE_OPTION... : configures, builds and runs the application
run() {
  local folder=$work/$1
  shift
  cmake -S "$work/app" -B "$folder" -G Ninja "$@" >"$work/log" || { cat "$work/log"; exit 1; }
  cmake --build "$folder" >"$work/log" || { cat "$work/log"; exit 1; }
  "$folder/app"
}

meson install -C "$build" --no-rebuild --destdir "$work/root" >/dev/null
config=$(find "$work/root" -name gearkv-config.cmake)
# Wherever it was moved to.
prefix=${config%/lib*}
mv "$prefix" "$work/moved"
run installed "-Dgearkv_DIR=$work/moved/lib${config#*/lib}/.." "-DCMAKE_PREFIX_PATH=$work/moved" \
  "-DGENERATE_SOURCE=$source/examples/03_generate.cpp" "-DC_SOURCE=$source/tests/c/decoder_life.c"
if [ -e "$work/installed/generate" ]; then
  "$work/installed/generate" "$source/examples/models/tiny-q8_0.gguf"
elif find "$work/moved" -name 'libgearkv-decoder.a' | grep -q .; then
  echo "the decoder is installed, and its component was not found" >&2
  exit 1
fi
if [ -e "$work/installed/c_life" ]; then
  "$work/installed/c_life" "$source/examples/models/tiny-q8_0.gguf" "$work/life.gkvs"
elif find "$work/moved" -name 'libgearkv-decoder.so' | grep -q .; then
  echo "the shared decoder is installed, and it was not found" >&2
  exit 1
fi
if cmake -S "$work/app" -B "$work/other" -G Ninja "-DCMAKE_PREFIX_PATH=$work/nowhere" >/dev/null 2>&1; then
  echo "a package was found where there is none" >&2
  exit 1
fi

# Of the sources as little as shows all there is: one level beside scalar, and nothing optimised.
level=$(awk -v family="$(uname -m)" '$2 == family {print $1; exit}' "$source/arch/levels.txt")
run sources "-DGEARKV_SOURCE=$source" "-DGEARKV_LEVELS=$level" -DGEARKV_THREADS=std \
  -DGEARKV_ENVIRONMENT=OFF -DCMAKE_BUILD_TYPE=Debug
# It was built without an ear for the environment; the one above has it.
GEARKV_LEVEL=nonsense "$work/sources/app"
if GEARKV_LEVEL=nonsense "$work/installed/app" >/dev/null; then
  echo "GEARKV_LEVEL was not heard" >&2
  exit 1
fi
cmake --install "$work/sources" --prefix "$work/second" >/dev/null
run second "-DCMAKE_PREFIX_PATH=$work/second"
