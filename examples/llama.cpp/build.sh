#!/usr/bin/env bash
# build.sh DIR [TARGET...]: the engine with gearkv in DIR/llama.cpp/build/bin. Fetches its source unless DIR/llama.cpp is
# there, installs the library to DIR/gearkv, applies the anchors, and builds the targets: programs of the engine (default
# llama-completion), and those of this folder, calls, probe, rates, refused, shapes and shift. For Debian 12, Ubuntu 24.04 or
# later; CMAKE_ARGS and JOBS are obeyed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ $# -ge 1 ] || { sed -n '2,5p' "$0" >&2; exit 2; }
mkdir -p "$1"
dir=$(cd "$1" && pwd)
shift
targets=(llama) programs=()
for target in "${@:-llama-completion}"; do
  case $target in
    calls | probe | rates | refused | shapes | shift) programs+=("$target") ;;
    *) targets+=("$target") ;;
  esac
done
jobs=${JOBS:-$(nproc)}
root=$(cd "$here/../.." && pwd)
cd "$root"
source tests/support/packages.sh
install_packages g++ ninja-build cmake libxsimd-dev python3 python3-pip

"$here/get.sh" "$dir"
# The core alone, which needs nothing at run time: threads are the engine's.
grep -qsxF "CMAKE_HOME_DIRECTORY:INTERNAL=$root" "$dir/gearkv-build/CMakeCache.txt" || rm -rf "$dir/gearkv-build"  # of another clone
cmake -S "$root" -B "$dir/gearkv-build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_PREFIX="$dir/gearkv" \
  -DGEARKV_THREADS=none >"$dir/gearkv.log"
ninja -C "$dir/gearkv-build" -j "$jobs" install >>"$dir/gearkv.log" || { tail -n 40 "$dir/gearkv.log"; exit 1; }

python3 "$here/apply.py" "$dir/llama.cpp"
# shellcheck disable=SC2086
cmake -S "$dir/llama.cpp" -B "$dir/llama.cpp/build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
  -DCMAKE_PREFIX_PATH="$dir/gearkv" -DLLAMA_BUILD_TESTS=OFF \
  -DLLAMA_OPENSSL=OFF -DLLAMA_USE_PREBUILT_UI=OFF ${CMAKE_ARGS:-} >"$dir/llama.cpp.log" 2>&1 ||
  { tail -n 40 "$dir/llama.cpp.log"; exit 1; }
echo "building ${targets[*]} ${programs[*]} in $dir/llama.cpp/build (log: $dir/llama.cpp.log)"
ninja -C "$dir/llama.cpp/build" -j "$jobs" "${targets[@]}" >>"$dir/llama.cpp.log" 2>&1 ||
  { tail -n 60 "$dir/llama.cpp.log"; exit 1; }

bin=$dir/llama.cpp/build/bin
for program in "${programs[@]}"; do
  libraries=(-L "$bin" -lllama -lggml -lggml-base -Wl,-rpath,"$bin")
  [ "$program" = probe ] && libraries=("$(find "$dir/gearkv" -name libgearkv.a)" "${libraries[@]}")
  [ "$program" = refused ] && libraries+=(-I "$dir/llama.cpp/ggml/src")
  "${CXX:-c++}" -std=c++20 -O2 -I "$dir/llama.cpp/include" -I "$dir/llama.cpp/ggml/include" -I "$dir/gearkv/include" \
    "$here/$program.cpp" "${libraries[@]}" -o "$bin/$program"
done
