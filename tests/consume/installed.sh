#!/usr/bin/env bash
# installed.sh BUILD SOURCE COMPILER: only what is installed, found through pkg-config --static.
set -euo pipefail
build=$1 source=$2 compiler=$3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
meson install -C "$build" --no-rebuild --destdir "$work" >/dev/null
pc=$(find "$work" -name gearkv.pc)
PKG_CONFIG_PATH=$(dirname "$pc")
export PKG_CONFIG_PATH PKG_CONFIG_SYSROOT_DIR=$work
# shellcheck disable=SC2046
$compiler -std=c++20 -O1 "$source/tests/consume/app/main.cpp" -o "$work/app" $(pkg-config --static --cflags --libs gearkv)
"$work/app"
