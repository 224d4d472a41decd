#!/usr/bin/env bash
# headers.sh SOURCE COMPILER...: every public header compiles alone, without warnings, in C++17 too.
set -euo pipefail
source=$1
shift
for compiler in "$@"; do
  command -v "$compiler" >/dev/null || continue
  for header in "$source"/include/gearkv/*.hpp; do
    echo "$compiler ${header##*/}"
    for standard in 17 20; do
      echo "#include \"gearkv/${header##*/}\"" |
        "$compiler" -std=c++$standard -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror -fno-exceptions -fno-rtti \
          -fsyntax-only -I "$source/include" -x c++ -
    done
  done
  for language in "c -std=c99" "c++ -std=c++11"; do
    # shellcheck disable=SC2086
    printf '#include "gearkv/%s"\n' gearkv.h gearkv_decoder.h |
      "$compiler" -x $language -Wall -Wextra -Wpedantic -Wconversion -Werror -fsyntax-only -I "$source/include" -
  done
done
