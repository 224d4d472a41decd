#!/usr/bin/env bash
# headers.sh SOURCE COMPILER...: every public header compiles alone, without warnings.
set -euo pipefail
source=$1
shift
for compiler in "$@"; do
  command -v "$compiler" >/dev/null || continue
  for header in "$source"/include/gearkv/*.hpp; do
    echo "$compiler ${header##*/}"
    echo "#include \"gearkv/${header##*/}\"" |
      "$compiler" -std=c++20 -Wall -Wextra -Wpedantic -Werror -fno-exceptions -fno-rtti -fsyntax-only \
        -I "$source/include" -x c++ -
  done
done
