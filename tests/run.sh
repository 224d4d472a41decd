#!/usr/bin/env bash
# Installs what is missing, builds, and runs every test: once per instruction-set level, under the sanitizers, with
# clang, and for aarch64 under qemu. Stages can be named: tests/run.sh [release] [address] [thread] [clang] [arm]
set -euo pipefail
cd "$(dirname "$0")/.."
source tests/support/packages.sh

all_stages=(release address thread clang arm)
stages=("${@:-${all_stages[@]}}")
builds=${GEARKV_BUILD_DIR:-build-tests}
jobs=$(nproc)
mkdir -p "$builds"
broken=0

install_packages g++ meson ninja-build pkg-config python3 binutils libxsimd-dev libtbb-dev libopenblas-dev catch2 \
  libcli11-dev nlohmann-json3-dev
for stage in "${stages[@]}"; do
  case $stage in
    clang) install_packages clang ;;
    arm) install_packages g++-aarch64-linux-gnu qemu-user ;;
  esac
done

# configure NAME MESON_OPTION...
configure() {
  local name=$1
  shift
  rm -rf "${builds:?}/$name"
  meson setup "$builds/$name" --werror "$@" >"$builds/$name-setup.log" 2>&1 ||
    { tail -n 30 "$builds/$name-setup.log"; return 1; }
}

build() {
  ninja -C "$builds/$1" -j "$jobs" >"$builds/$1-build.log" 2>&1 || { tail -n 60 "$builds/$1-build.log"; return 1; }
}

# run_tests NAME LOG MESON_TEST_OPTION... ; the log is counted at the end
run_tests() {
  local name=$1 log=$2
  shift 2
  meson test -C "$builds/$name" --no-rebuild --print-errorlogs --logbase "$log" --num-processes "$jobs" "$@" \
    >"$builds/$log.out" 2>&1 || { grep -vE '^ *[0-9]+/[0-9]+ .* (OK|SKIP) ' "$builds/$log.out" | tail -n 150; return 1; }
}

stage_release() {
  configure release --buildtype=release
  build release
  run_tests release release
}

stage_address() {
  configure address --buildtype=debugoptimized -Db_sanitize=address,undefined -Db_lundef=false -Dbench=false
  build address
  ASAN_OPTIONS=detect_stack_use_after_return=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
    run_tests address address --timeout-multiplier 3 --no-suite consume
}

# oneTBB is not built for the thread sanitizer: the std pool runs instead.
stage_thread() {
  configure thread --buildtype=debugoptimized -Db_sanitize=thread -Db_lundef=false -Dthreads=std -Dblas=none \
    -Dbench=false -Dexamples=false
  build thread
  run_tests thread thread --timeout-multiplier 3 unit-scalar "$(best_level unit)" "$(best_level decoder)"
}

stage_clang() {
  CC=clang CXX=clang++ configure clang --buildtype=release
  build clang
  run_tests clang clang "$(best_level unit)" "$(best_level kernels)" "$(best_level conformance)" "$(best_level decoder)"
}

# A Cortex-A72 (Raspberry Pi 4) has no dot product and must skip that level; "max" has it.
stage_arm() {
  configure arm --buildtype=release --cross-file tests/cross/aarch64.ini -Dthreads=std -Dblas=none -Dbench=false
  build arm
  QEMU_CPU=cortex-a72 run_tests arm arm-cortex-a72 --timeout-multiplier 10 --no-suite consume --suite neon --suite dotprod --suite scalar
  QEMU_CPU=max run_tests arm arm-max --timeout-multiplier 10 --no-suite consume --suite dotprod
}

best_level() {
  if grep -q avx512vbmi /proc/cpuinfo; then echo "$1-avx512"
  elif grep -q avx2 /proc/cpuinfo; then echo "$1-avx2"
  elif [ "$(uname -m)" = aarch64 ]; then echo "$1-neon"
  else echo "$1-scalar"; fi
}

for stage in "${stages[@]}"; do
  start=$SECONDS
  echo "== $stage"
  # In a shell of its own, so that a failing command ends the stage and not the run.
  if (set -e; "stage_$stage"); then
    echo "== $stage done in $((SECONDS - start)) s"
  else
    echo "== $stage FAILED after $((SECONDS - start)) s"
    broken=$((broken + 1))
  fi
done

python3 tests/support/count_results.py "$broken" "$builds"/*/meson-logs/{release,address,thread,clang,arm-cortex-a72,arm-max}.json
