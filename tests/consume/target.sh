#!/usr/bin/env bash
# target.sh SOURCE EXPECTED NAME : the core for another target, at the scalar level, has the bits of EXPECTED, which is the
# same program of this build; and the example in C runs there.
set -euo pipefail
source=$1 expected=$2 name=$3
flags='' system=() run=() one=ON
case $name in
  riscv64) compiler=riscv64-linux-gnu run=(qemu-riscv64 -L /usr/riscv64-linux-gnu) ;;
  armhf) compiler=arm-linux-gnueabihf run=(qemu-arm -L /usr/arm-linux-gnueabihf) ;;
  i386) compiler=i686-linux-gnu flags='-msse2 -mfpmath=sse' ;;
  libc++) compiler=clang++ flags=-stdlib=libc++ one=OFF ;;  # whose headers include less of each other
esac
if [ "$name" = libc++ ]; then
  echo '#include <version>' | clang++ -stdlib=libc++ -fsyntax-only -x c++ - 2>/dev/null ||
    { echo "SKIPPED: there is no clang with libc++"; exit 77; }
  system=(-DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++)
else
  command -v "$compiler-g++" >/dev/null || { echo "SKIPPED: there is no $compiler-g++"; exit 77; }
  [ ${#run[@]} -eq 0 ] || command -v "${run[0]}" >/dev/null || { echo "SKIPPED: there is no ${run[0]}"; exit 77; }
  system=(-DCMAKE_SYSTEM_NAME=Linux "-DCMAKE_SYSTEM_PROCESSOR=${compiler%%-*}" "-DCMAKE_C_COMPILER=$compiler-gcc"
    "-DCMAKE_CXX_COMPILER=$compiler-g++")
fi
command -v cmake >/dev/null || { echo "SKIPPED: there is no cmake"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ "$name" = i386 ]; then
  # Floats that are wider in registers than in memory have other bits: such a build is refused.
  if "$compiler-g++" -std=c++20 -mno-sse -I "$source/include" -I "$source/arch" -fsyntax-only "$source/arch/float_mode.cpp" \
    2>"$work/log"; then
    echo "x87 arithmetic was not refused" >&2
    exit 1
  fi
  grep -q 'gearkv needs SSE2' "$work/log"
fi
cmake -S "$source/tests/consume/target" -B "$work/build" -G Ninja "-DGEARKV_SOURCE=$source" -DGEARKV_LEVELS=none \
  -DGEARKV_THREADS=std -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS_DEBUG=-O0 "-DCMAKE_CXX_FLAGS=$flags" -DGEARKV_ONE_FILE=$one "${system[@]}" \
  >"$work/log" || { cat "$work/log"; exit 1; }
cmake --build "$work/build" -j 2 >"$work/log" || { cat "$work/log"; exit 1; }
"${run[@]}" "$work/build/app-c" | grep '^5\.69 bits per element$'
"${run[@]}" "$work/build/target" >"$work/found"
"$expected" | diff - "$work/found"
cat "$work/found"
