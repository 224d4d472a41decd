#!/usr/bin/env bash
# Installs what is missing, builds, and runs every test: once per instruction-set level, under the sanitizers, with
# clang, with everything optional left out, and for aarch64 under qemu. For Debian 12, Ubuntu 24.04 or later.
#   tests/run.sh [release] [address] [thread] [clang] [minimal] [arm]        default: all of them
# Tests tagged [once] run with the best level only, and what hostile files do once a build. Tests tagged [slow] run in
# the release stage only, those tagged [damage] under the address sanitizer too,
# those tagged [shapes], which go through sizes, everywhere but in the minimal stage and on aarch64, whose kernels are
# compared with the scalar ones at every size all the same. Under the thread sanitizer run those tagged [thread], which
# have more than one.
# The release, clang and arm stages build every level, the others what their tests run: the best of this machine, and
# scalar. Two stages go at a time, each on half of the cores, so that none waits for the longest test of a stage.
# The release stage fetches the source of llama.cpp from PyPI too (77 MB), to try the anchors of examples/llama.cpp;
# without PyPI that test is skipped.
# The last line is the total. GEARKV_BUILD_DIR says where to build, default build-tests.
set -euo pipefail
cd "$(dirname "$0")/.."
source tests/support/packages.sh
unset GEARKV_LEVEL GEARKV_TESTS
# Where public models are (tests/data/README.md): for the release build alone, the others would take minutes.
models=${GEARKV_MODELS:-}
unset GEARKV_MODELS

# The longest first.
all_stages=(address release thread clang minimal)
[ "$(uname -m)" = x86_64 ] && all_stages=(arm "${all_stages[@]}")
builds=${GEARKV_BUILD_DIR:-build-tests}
# It calls itself for every stage: run.sh --stage NAME JOBS LEVELS, of best_levels.
only=
if [ "${1:-}" = --stage ]; then
  only=$2 jobs=$3 levels=$4 level=${4##*,}
  level=${level/none/scalar}
  set -- "$only"
fi
stages=("${@:-${all_stages[@]}}")

for stage in "${stages[@]}"; do
  case " ${all_stages[*]} " in
    *" $stage "*) ;;
    *) echo "unknown stage $stage, expected some of: ${all_stages[*]}" >&2; exit 2 ;;
  esac
done

install_all() {
  local stage
  install_packages g++ meson ninja-build cmake git pkg-config python3 binutils libxsimd-dev libtbb-dev libopenblas-dev catch2 \
    libcli11-dev nlohmann-json3-dev libxxhash-dev libpcre2-dev python3-jinja2 python3-pip
  for stage in "${stages[@]}"; do
    case $stage in
      clang) install_packages clang ;;
      address) install_packages clang libclang-rt-dev ;;
      arm) install_packages g++-aarch64-linux-gnu qemu-user ;;
      release) install_packages python3-dev python3-cffi python3-numpy python3-pytest python3-venv ||
        echo "the tests of the Python package will be skipped" >&2
        install_packages g++-riscv64-linux-gnu g++-arm-linux-gnueabihf g++-i686-linux-gnu qemu-user clang libc++-dev \
          libc++abi-dev musl-dev || echo "the tests of some targets will be skipped" >&2 ;;
    esac
  done
}

# configure NAME MESON_OPTION...
configure() {
  local name=$1 log=$builds/$1-setup.log
  shift
  rm -rf "${builds:?}/$name"
  meson setup "$builds/$name" --werror -Dtests=true -Dexamples=true "$@" >"$log" 2>&1 || { tail -n 40 "$log"; return 1; }
}

# build NAME TARGET... ; everything without targets
build() {
  local name=$1 log=$builds/$1-build.log
  shift
  echo "building $name (log: $log)"
  ninja -C "$builds/$name" -j "$jobs" "$@" >"$log" 2>&1 || { tail -n 80 "$log"; return 1; }
}

# run_tests NAME LOG MESON_TEST_OPTION... ; LOG.json is counted at the end
run_tests() {
  local name=$1 log=$2
  shift 2
  echo "testing $log (log: $builds/$log.out)"
  "${plain_addresses[@]}" meson test -C "$builds/$name" --no-rebuild --print-errorlogs --num-processes "$jobs" \
    --logbase "$log" "$@" >"$builds/$log.out" 2>&1 ||
    { grep -vE '^ *[0-9]+/[0-9]+ .* (OK|SKIP) ' "$builds/$log.out" | tail -n 150; return 1; }
}
plain_addresses=()

# best_levels: the levels of arch/levels.txt to build so as to have the best one this machine runs, which is the last
# of them; the library's own lines tell which.
best_levels() {
  {
    printf '%s\n' '#include <cstdio>' '#include "detect.hpp"' 'int main() {' 'const char* best = "none";'
    awk -v family="$(uname -m)" '$2 == family {
      print "if (gearkv::cpu_can_run(gearkv::Level::" $1 ")) best = \"" ($4 == "own" ? "" : $4 ",") $1 "\";"
    }' arch/levels.txt
    printf '%s\n' 'std::puts(best);' '}'
  } >"$builds/best-levels.cpp"
  g++ -std=c++20 -I include -I arch "$builds/best-levels.cpp" arch/detect.cpp -o "$builds/best-levels"
  "$builds/best-levels"
}

# skip_levels_but LEVEL... : options that leave out the tests of all other levels
skip_levels_but() {
  local level
  for level in scalar avx2 avxvnni avx512 neon dotprod; do
    case " $* " in *" $level "*) ;; *) echo "--no-suite=$level" ;; esac
  done
}

# Everything there is, and as users build it: without precompiled headers, so that each file includes what it needs. The
# Python package is built along; its tests are skipped, and counted so, where it cannot be.
stage_release() {
  configure release --buildtype=release -Ddefault_library=both -Dengine=true -Dpython=auto
  build release
  GEARKV_MODELS=$models run_tests release release
}

# Built with clang: gcc takes three times as long with these checks, and warns of its own regex header. Debug
# information is what a stack trace needs: all of it takes half as long again to compile.
stage_address() {
  CC=clang CXX=clang++ configure address --buildtype=debugoptimized -Db_sanitize=address,undefined \
    -Db_lundef=false -Dbench=false -Dlevels="$levels" -Dcpp_args=-g1 -Dprecompiled=true
  build address
  export ASAN_OPTIONS=detect_stack_use_after_return=1:allocator_may_return_null=1
  export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
  local failed=0
  # shellcheck disable=SC2046
  GEARKV_TESTS='~[slow]' run_tests address address --timeout-multiplier 3 $(skip_levels_but "$level") || failed=1
  # Beside all at the best level: the kernels of the scalar one.
  if [ "$level" != scalar ]; then
    run_tests address address-kernels --timeout-multiplier 3 kernels-scalar || failed=1
  fi
  return "$failed"
}

# oneTBB is not built for the thread sanitizer: the std pool runs instead.
stage_thread() {
  configure thread --buildtype=debugoptimized -Db_sanitize=thread -Db_lundef=false -Dthreads=std -Dblas=none \
    -Dbench=false -Dlevels="$levels" -Dcpp_args=-g1 -Dprecompiled=true
  build thread tests/unit/unit-test tests/state/state-test tests/decoder/decoder-test tests/engine/engine-test
  # The sanitizer of older compilers cannot live with much randomness in addresses.
  if setarch -R true 2>/dev/null; then plain_addresses=(setarch -R); fi
  TSAN_OPTIONS=halt_on_error=1 GEARKV_TESTS='[thread]~[slow]~[once]' run_tests thread thread --timeout-multiplier 3 \
    "unit-$level" "state-$level" "decoder-$level" "engine-$level"
}

# What clang makes of the kernels in a release, at every level; the address stage compiles the rest with it, among it the
# decoder's kernels of the best level.
stage_clang() {
  CC=clang CXX=clang++ configure clang --buildtype=release -Dbench=false -Dprecompiled=true
  # shellcheck disable=SC2046
  build clang tests/kernels/kernels-test $(awk -v family="$(uname -m)" -v best="$level" \
    '$2 == family && $1 != best {print "arch/libgearkv-decoder-" $1 ".a"}' arch/levels.txt)
  run_tests clang clang --suite kernels
}

# The core alone: no threads, no oneTBB, no OpenBLAS, no decoder. The kernels are those of the other stages.
stage_minimal() {
  configure minimal --buildtype=debug -Dthreads=none -Dblas=none -Ddecoder=false -Dbench=false -Dlevels="$levels" \
    -Dcpp_args=-g1 -Dprecompiled=true
  build minimal tests/unit/unit-test examples/01_compress_block examples/05_cache_life
  GEARKV_TESTS='~[slow]~[once]~[shapes]' run_tests minimal minimal --timeout-multiplier 3 "unit-$level"
}

# Built with the std pool and without OpenBLAS, whose arm64 packages would need a second architecture set up in the
# system; PCRE2 needs nothing but the C library and is unpacked beside the build. A Cortex-A72 (Raspberry Pi 4) has no
# dot product and must skip that level; "max" has it.
stage_arm() {
  unpack_packages "$builds/arm64-packages" arm64 libpcre2-dev
  configure arm --buildtype=release --cross-file tests/cross/aarch64.ini -Dthreads=std -Dblas=none -Dbench=false \
    -Dpkg_config_path="$(cd "$builds/arm64-packages" && pwd)/usr/lib/aarch64-linux-gnu/pkgconfig" -Dprecompiled=true
  build arm level-tests tests/hostile/hostile-test
  local failed=0
  export GEARKV_TESTS='~[slow]~[once]~[shapes]'
  # Rates are chosen, and the bytes of sessions foretold, by code that knows no level, in minutes.
  QEMU_CPU=cortex-a72 GEARKV_TESTS="$GEARKV_TESTS~[rates]" run_tests arm arm-unit --timeout-multiplier 10 \
    unit-neon unit-dotprod hostile size || failed=1
  QEMU_CPU=cortex-a72 GEARKV_TESTS="$GEARKV_TESTS~[fit]" run_tests arm arm-cortex-a72 --timeout-multiplier 10 \
    --suite neon --suite dotprod --no-suite unit || failed=1
  # What dotprod has of its own are kernels: those of the decoder alone, and lives of caches were lived at neon.
  local lives='~[batch]~[dims]~[executor]~[life]~[machine]~[pieces]~[policy]~[pool]~[property]~[rates]~[removal]~[reserve]~[shrink]~[window]'
  QEMU_CPU=max GEARKV_TESTS="$GEARKV_TESTS$lives~[rows]~[step]~[truncate]" run_tests arm arm-max \
    --timeout-multiplier 10 --suite dotprod --no-suite decoder --no-suite engine || failed=1
  QEMU_CPU=max GEARKV_TESTS='[products]' run_tests arm arm-products --timeout-multiplier 10 decoder-dotprod || failed=1
  QEMU_CPU=max run_tests arm arm-scalar --timeout-multiplier 10 kernels-scalar || failed=1
  return "$failed"
}

if [ -n "$only" ]; then
  "stage_$only"
  exit
fi

mkdir -p "$builds"
install_all
levels=$(best_levels)
n_cores=$(nproc)
at_once=$((n_cores > 1 && ${#stages[@]} > 1 ? 2 : 1))
export GEARKV_MODELS=$models
echo "best level of this machine: ${levels##*,}; stages at once: $at_once"
# shellcheck disable=SC2016
printf '%s\n' "${stages[@]}" | xargs -P "$at_once" -I '{}' bash -c '
  echo "== $1"
  code=0
  tests/run.sh --stage "$1" "$3" "$4" || code=$?
  echo "$code" >"$2/$1.code"
  echo "== $1: exit code $code after $SECONDS s"' run '{}' "$builds" $((n_cores / at_once)) "$levels"
echo "== all: $SECONDS s"

results=()
for stage in "${stages[@]}"; do
  logs=$stage
  [ "$stage" = arm ] && logs=arm-unit,arm-cortex-a72,arm-max,arm-products,arm-scalar
  [ "$stage" = address ] && logs=address,address-kernels
  results+=("$stage=$(cat "$builds/$stage.code")=$logs")
done
python3 tests/support/count_results.py "$builds" "${results[@]}"
