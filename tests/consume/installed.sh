#!/usr/bin/env bash
# installed.sh BUILD SOURCE COMPILER: programs built from nothing but what is installed, found by pkg-config.
set -euo pipefail
build=$1 source=$2 compiler=$3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
meson install -C "$build" --no-rebuild --destdir "$work/root" >/dev/null
pc=$(find "$work/root" -name gearkv.pc)
export PKG_CONFIG_PATH=${pc%/*} PKG_CONFIG_SYSROOT_DIR=$work/root LD_LIBRARY_PATH=${pc%/pkgconfig*}

# compile PROGRAM SOURCE_FILE PACKAGE STANDARD
compile() {
  # shellcheck disable=SC2046
  "$compiler" -std="$4" -O1 "$2" -o "$work/$1" $(pkg-config --cflags --libs "$3")
}

for standard in c++17 c++20; do
  compile app "$source/examples/embed/app.cpp" gearkv $standard
  "$work/app"
done
if [ -e "${pc%/*}/gearkv-decoder.pc" ]; then
  compile generate "$source/examples/03_generate.cpp" gearkv-decoder c++20
  "$work/generate" "$source/examples/models/tiny-q8_0.gguf"
fi
