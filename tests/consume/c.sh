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
flags=(-std=c99 -D_POSIX_C_SOURCE=200112L -Wall -Wextra -Wpedantic -Werror -O1)

# live PACKAGE PROGRAM ARGUMENT... : the program with the static libraries and what the pc file says that they need, and
# with the shared ones where they are, of which it needs nothing but these.
live() {
  local package=$1 program=$2 archives=() name
  shift 2
  for name in $(pkg-config --static --libs "$package"); do
    case $name in -lgearkv*) archives+=("$libraries/lib${name#-l}.a") ;; *) archives+=("$name") ;; esac
  done
  # shellcheck disable=SC2046
  "$compiler" "${flags[@]}" "$source/tests/c/$program.c" -o "$work/static" $(pkg-config --cflags "$package") "${archives[@]}" -lm
  "$work/static" "$@"
  [ -e "$libraries/lib$package.so" ] || return 0
  # shellcheck disable=SC2046
  "$compiler" "${flags[@]}" "$source/tests/c/$program.c" -o "$work/shared" $(pkg-config --cflags --libs "$package") -lm
  readelf -d "$work/shared" | grep -q "NEEDED.*lib$package\.so\.[0-9]*\.[0-9]*\]"
  if readelf -d "$work/shared" | grep -q 'NEEDED.*\(stdc\|tbb\|pcre\|blas\)'; then
    echo "the program links what only the library needs" >&2
    exit 1
  fi
  LD_LIBRARY_PATH=$libraries "$work/shared" "$@"
  local hidden
  hidden=$(nm -D --defined-only "$libraries/lib$package.so" | awk '{print $3}' |
    grep -vE '^(gearkv_|_ZNK?6gearkv|_ZT[VSI]N?K?(6gearkv|St)|_ZZ?N?K?St)' || true)
  [ -z "$hidden" ] || { echo "shown, and not of a public header: $hidden" >&2; exit 1; }
  echo "$package: static and shared"
}

live gearkv life "$work/life.gkvs"
[ -e "${pc%/*}/gearkv-decoder.pc" ] || exit 0
live gearkv-decoder decoder_life "$source/examples/models/tiny-q8_0.gguf" "$work/life.gkvs"
[ -e "$libraries/libgearkv-decoder.so" ] || exit 0
# Functions of the core are those of the core's library, whichever a program asks first.
twice=$(comm -12 <(nm -D --defined-only "$libraries/libgearkv.so" | awk '{print $3}' | grep '^gearkv_' | sort) \
  <(nm -D --defined-only "$libraries/libgearkv-decoder.so" | awk '{print $3}' | sort))
[ -z "$twice" ] || { echo "in both libraries: $twice" >&2; exit 1; }
