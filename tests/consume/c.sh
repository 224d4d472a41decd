#!/usr/bin/env bash
# c.sh BUILD SOURCE COMPILER: a C99 program built from nothing but what is installed, by a C compiler that knows no C++.
set -euo pipefail
build=$1 source=$2 compiler=$3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
meson install -C "$build" --no-rebuild --destdir "$work/root" >/dev/null
pc=$(find "$work/root" -name gearkv.pc)
libraries=$(dirname "${pc%/*}")
export PKG_CONFIG_PATH=${pc%/*} PKG_CONFIG_SYSROOT_DIR=$work/root
flags=(-std=c99 -D_POSIX_C_SOURCE=200112L -Wall -Wextra -Wpedantic -Werror -O1 "$source/tests/c/life.c")

# The static library and what its pc file says that it needs.
# shellcheck disable=SC2046
"$compiler" "${flags[@]}" -o "$work/static" $(pkg-config --cflags gearkv) "$libraries/libgearkv.a" \
  $(pkg-config --static --libs gearkv | sed 's/-lgearkv\b//') -lm
"$work/static" "$work/life.gkvs"

[ -e "$libraries/libgearkv.so" ] || { echo "static alone"; exit 0; }
# shellcheck disable=SC2046
"$compiler" "${flags[@]}" -o "$work/shared" $(pkg-config --cflags --libs gearkv) -lm
readelf -d "$work/shared" | grep -q 'NEEDED.*libgearkv\.so\.[0-9]*\.[0-9]*\]'
if readelf -d "$work/shared" | grep -q 'NEEDED.*\(stdc\|tbb\)'; then
  echo "the program links what only the library needs" >&2
  exit 1
fi
LD_LIBRARY_PATH=$libraries "$work/shared" "$work/life.gkvs"
hidden=$(nm -D --defined-only "$libraries/libgearkv.so" | awk '{print $3}' | grep -vE '^(gearkv_|_ZNK?6gearkv|_ZT[VSI]N?K?6gearkv|_ZZ?N?K?St)' || true)
[ -z "$hidden" ] || { echo "shown, and not of a public header: $hidden" >&2; exit 1; }
