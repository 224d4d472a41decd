#!/usr/bin/env bash
# Installs what is missing, builds, and runs every test: once per instruction-set level, under the sanitizers, with
# clang, with everything optional left out, and for aarch64 under qemu. For Debian 12, Ubuntu 24.04 or later.
#   tests/run.sh [release] [address] [thread] [clang] [minimal] [arm]        default: all of them
# Tests tagged [once] run with the scalar level only, and what hostile files do once a build. Tests tagged [slow] run in
# the release stage only, those tagged [damage] under the address sanitizer too,
# those tagged [shapes], which go through sizes, everywhere but in the minimal stage and on aarch64, whose kernels are
# compared with the scalar ones at every size all the same. Under the thread sanitizer run those tagged [thread], which
# have more than one.
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

all_stages=(release address thread clang minimal)
[ "$(uname -m)" = x86_64 ] && all_stages+=(arm)
stages=("${@:-${all_stages[@]}}")
builds=${GEARKV_BUILD_DIR:-build-tests}
jobs=$(nproc)

for stage in "${stages[@]}"; do
  case " ${all_stages[*]} " in
    *" $stage "*) ;;
    *) echo "unknown stage $stage, expected some of: ${all_stages[*]}" >&2; exit 2 ;;
  esac
done

install_packages g++ meson ninja-build cmake pkg-config python3 binutils libxsimd-dev libtbb-dev libopenblas-dev catch2 \
  libcli11-dev nlohmann-json3-dev libxxhash-dev libpcre2-dev python3-jinja2 python3-pip
for stage in "${stages[@]}"; do
  case $stage in
    clang) install_packages clang ;;
    address) install_packages clang libclang-rt-dev ;;
    arm) install_packages g++-aarch64-linux-gnu qemu-user ;;
  esac
done

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

# levels_of NAME: the levels this build has and this machine runs, slowest first. Every test program ends with 77 at
# a level that cannot run.
levels_of() {
  local level program=$builds/$1/tests/kernels/kernels-test
  [ -x "$program" ] || program=$builds/$1/tests/unit/unit-test
  for level in scalar avx2 avxvnni avx512 neon dotprod; do
    GEARKV_LEVEL=$level "$program" --help >/dev/null 2>&1 && echo "$level"
  done
  return 0
}
best_level() { levels_of "$1" | tail -n 1; }

# skip_levels_but LEVEL... : options that leave out the tests of all other levels
skip_levels_but() {
  local level
  for level in scalar avx2 avxvnni avx512 neon dotprod; do
    case " $* " in *" $level "*) ;; *) echo "--no-suite=$level" ;; esac
  done
}

# The Python package is built along; its tests are skipped, and counted so, where it cannot be.
stage_release() {
  install_packages python3-dev python3-cffi python3-numpy python3-pytest python3-venv ||
    echo "the tests of the Python package will be skipped" >&2
  configure release --buildtype=release -Ddefault_library=both -Dengine=true -Dpython=auto
  build release
  echo "levels this machine runs: $(levels_of release | paste -s -d ' ')"
  GEARKV_MODELS=$models run_tests release release
}

# Built with clang: gcc takes three times as long with these checks, and warns of its own regex header.
stage_address() {
  CC=clang CXX=clang++ configure address --buildtype=debugoptimized -Db_sanitize=address,undefined \
    -Db_lundef=false -Dbench=false
  build address
  export ASAN_OPTIONS=detect_stack_use_after_return=1:allocator_may_return_null=1
  export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
  # Beside all at the best level: what runs at one level only, and the kernels of that level.
  (
    jobs=1
    GEARKV_TESTS='[once]~[slow]~[shapes]' run_tests address address-scalar --timeout-multiplier 3 unit-scalar state-scalar
    run_tests address address-kernels --timeout-multiplier 3 kernels-scalar
  ) &
  local scalar_run=$!
  # shellcheck disable=SC2046
  GEARKV_TESTS='~[slow]' run_tests address address --timeout-multiplier 3 $(skip_levels_but "$(best_level address)")
  wait "$scalar_run"
}

# oneTBB is not built for the thread sanitizer: the std pool runs instead.
stage_thread() {
  configure thread --buildtype=debugoptimized -Db_sanitize=thread -Db_lundef=false -Dthreads=std -Dblas=none \
    -Dbench=false
  build thread tests/unit/unit-test tests/state/state-test tests/decoder/decoder-test tests/engine/engine-test
  # The sanitizer of older compilers cannot live with much randomness in addresses.
  if setarch -R true 2>/dev/null; then plain_addresses=(setarch -R); fi
  local best
  best=$(best_level thread)
  TSAN_OPTIONS=halt_on_error=1 GEARKV_TESTS='[thread]~[slow]' run_tests thread thread --timeout-multiplier 3 \
    "unit-$best" "state-$best" "decoder-$best" "engine-$best"
}

# What clang makes of the kernels in a release; the address stage compiles all of the tree with it.
stage_clang() {
  CC=clang CXX=clang++ configure clang --buildtype=release -Dbench=false
  build clang tests/kernels/kernels-test
  run_tests clang clang "kernels-$(best_level clang)"
}

# The core alone: no threads, no oneTBB, no OpenBLAS, no decoder. The kernels are those of the other stages.
stage_minimal() {
  configure minimal --buildtype=debug -Dthreads=none -Dblas=none -Ddecoder=false -Dbench=false
  build minimal tests/unit/unit-test examples/01_compress_block examples/05_cache_life
  GEARKV_TESTS='~[slow]~[damage]~[shapes]' run_tests minimal minimal --timeout-multiplier 3 "unit-$(best_level minimal)"
}

# Built with the std pool and without OpenBLAS, whose arm64 packages would need a second architecture set up in the
# system; PCRE2 needs nothing but the C library and is unpacked beside the build. A Cortex-A72 (Raspberry Pi 4) has no
# dot product and must skip that level; "max" has it.
stage_arm() {
  unpack_packages "$builds/arm64-packages" arm64 libpcre2-dev
  configure arm --buildtype=release --cross-file tests/cross/aarch64.ini -Dthreads=std -Dblas=none -Dbench=false \
    -Dpkg_config_path="$(cd "$builds/arm64-packages" && pwd)/usr/lib/aarch64-linux-gnu/pkgconfig"
  build arm
  local unit=0 a72=0 max=0 scalar=0
  export GEARKV_TESTS='~[slow]~[damage]~[shapes]'
  # The longest test, and then one more, beside all others. Rates are chosen by code that knows no level, in minutes.
  QEMU_CPU=cortex-a72 GEARKV_TESTS="$GEARKV_TESTS~[rates]" run_tests arm arm-unit --timeout-multiplier 10 unit-neon unit-dotprod hostile &
  local unit_run=$!
  [ "$jobs" -gt 1 ] && jobs=$((jobs - 1))
  QEMU_CPU=cortex-a72 run_tests arm arm-cortex-a72 --timeout-multiplier 10 --suite neon --suite dotprod \
    --no-suite unit || a72=1
  # What dotprod has of its own are kernels: those of the decoder alone, and lives of caches were lived at neon.
  QEMU_CPU=max GEARKV_TESTS="$GEARKV_TESTS~[property]~[rates]~[executor]~[step]" run_tests arm arm-max \
    --timeout-multiplier 10 --suite dotprod --no-suite decoder --no-suite engine || max=1
  QEMU_CPU=max GEARKV_TESTS='[products]' run_tests arm arm-products --timeout-multiplier 10 decoder-dotprod || max=1
  QEMU_CPU=max run_tests arm arm-scalar --timeout-multiplier 10 kernels-scalar || scalar=1
  wait "$unit_run" || unit=1
  [ "$unit$a72$max$scalar" = 0000 ]
}

mkdir -p "$builds"
results=()
for stage in "${stages[@]}"; do
  start=$SECONDS
  echo "== $stage"
  logs=$stage
  [ "$stage" = arm ] && logs=arm-unit,arm-cortex-a72,arm-max,arm-products,arm-scalar
  [ "$stage" = address ] && logs=address,address-scalar,address-kernels
  # A shell of its own, outside of any condition, so that a failing command ends the stage and not the run.
  set +e
  (set -e; "stage_$stage")
  code=$?
  set -e
  echo "== $stage: exit code $code after $((SECONDS - start)) s"
  results+=("$stage=$code=$logs")
done
echo "== all: $SECONDS s"

python3 tests/support/count_results.py "$builds" "${results[@]}"
