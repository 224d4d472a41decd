#!/usr/bin/env bash
# versions.sh ARCHIVE SOURCE CXX CC SHARED_LIBRARY LIBRARY... : another version of the shared library, the same code but for
# its number, lies beside the one of this build, and programs, and one program, use both; programs built with an older header,
# whose structures end before the youngest fields, use the library of this one.
set -euo pipefail
archive=$1 source=$2 cxx=$3 cc=$4 shared=$5
shift 5
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
member=$(ar t "$archive" | grep 'c_core\.cpp\.o$')
mkdir "$work/include" "$work/lib"
cp -r "$source/include/gearkv" "$work/include/"
sed -i 's/#define GEARKV_VERSION_MINOR .*/#define GEARKV_VERSION_MINOR 9/' "$work/include/gearkv/gearkv.h"
"$cxx" -std=c++20 -fPIC -O1 -fvisibility=hidden -fno-exceptions -fno-rtti -I "$work/include" -I "$source/src" -I "$source/arch" \
  -c "$source/src/c/core.cpp" -o "$work/$member"
cp "$archive" "$work/other.a"
ar r "$work/other.a" "$work/$member" 2>/dev/null
"$cxx" -shared -o "$work/lib/libgearkv.so.0.9" -Wl,-soname,libgearkv.so.0.9,-Bsymbolic-functions -Wl,--whole-archive "$work/other.a" \
  -Wl,--no-whole-archive "$@"
cp -L "$shared" "$work/lib/libgearkv.so.0.1"

# None calls functions by a name that another one could have taken.
for library in "$shared" "$work/lib/libgearkv.so.0.9"; do
  if readelf -rW "$library" | grep -E 'JUMP_SLO|GLOB_DAT' | grep -E ' (gearkv_|_ZNK?6gearkv)'; then
    echo "$library asks others for its own functions" >&2
    exit 1
  fi
done
"$cc" -std=gnu99 -Wall -Wextra -I "$source/include" "$source/tests/consume/versions.c" -o "$work/both" -ldl
"$work/both" "$work/lib/libgearkv.so.0.1" "$work/lib/libgearkv.so.0.9"
"$work/both" "$work/lib/libgearkv.so.0.9" "$work/lib/libgearkv.so.0.1"

# Programs of both find theirs in one folder.
cat >"$work/which.c" <<'C'
#include <stdio.h>
#include "gearkv/gearkv.h"
int main(void) { return gearkv_version_number() == GEARKV_VERSION_NUMBER && puts(gearkv_version()) >= 0 ? 0 : 1; }
C
for version in 0.1 0.9; do
  include=$source/include
  [ $version = 0.9 ] && include=$work/include
  "$cc" -I "$include" "$work/which.c" -o "$work/which-$version" "$work/lib/libgearkv.so.$version"
  [ "$(LD_LIBRARY_PATH=$work/lib "$work/which-$version")" = "$version.0" ]
done

# A header of the time before latents and shrunk_bytes, which end five structures.
mkdir -p "$work/older/gearkv"
sed -E '/^    (int32_t latent|const void\* latents|uint64_t shrunk_bytes);/d' "$source/include/gearkv/gearkv.h" >"$work/older/gearkv/gearkv.h"
[ "$(diff "$source/include/gearkv/gearkv.h" "$work/older/gearkv/gearkv.h" | grep -c '^<')" = 5 ]
for program in examples/embed/app tests/c/life; do
  "$cc" -std=c99 -D_POSIX_C_SOURCE=200112L -I "$work/older" "$source/$program.c" -o "$work/${program##*/}" "$work/lib/libgearkv.so.0.1" -lm
done
LD_LIBRARY_PATH=$work/lib "$work/app"
LD_LIBRARY_PATH=$work/lib "$work/life" "$work/life.gkvs"
