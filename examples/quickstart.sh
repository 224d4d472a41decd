#!/usr/bin/env bash
# From nothing to text generated with a compressed KV cache: installs what is missing, builds a release, and runs the
# bundled model with its cache in GEAR form, then compares its answers with those of an fp16 cache.
#   examples/quickstart.sh [SPEC]        default gear-4; GEARKV_BUILD_DIR says where to build, default build-quickstart
set -euo pipefail
cd "$(dirname "$0")/.."
source tests/support/packages.sh

spec=${1:-gear-4}
build=${GEARKV_BUILD_DIR:-build-quickstart}
model=examples/models/tiny-q8_0.gguf
gearkv=$build/examples/gearkv/gearkv
mkdir -p "$build"

echo "[1/4] packages"
install_packages g++ meson ninja-build pkg-config libxsimd-dev libtbb-dev libopenblas-dev libcli11-dev \
  nlohmann-json3-dev libpcre2-dev

echo "[2/4] build in $build, one to two minutes from nothing"
log=$build/quickstart.log
[ -f "$build/build.ninja" ] || meson setup "$build" --buildtype=release -Dtests=false -Dbench=false >"$log" ||
  { tail -n 40 "$log"; exit 1; }
# One line that counts the steps on a terminal, the errors alone elsewhere.
NINJA_STATUS='[%f/%t] ' ninja -C "$build" examples/gearkv/gearkv | tee "$log" | {
  if [ -t 1 ]; then
    while IFS= read -r line; do printf '\r\033[K%.78s' "$line"; done
    printf '\n'
  else
    cat >/dev/null
  fi
} || { tail -n 60 "$log"; exit 1; }

echo "[3/4] the bundled model continues a text, its cache in $spec"
"$gearkv" generate "$model" -p "The old captain looked at the sea and said" -n 400 --kv "$spec" --seed 7 \
  --temperature 0.7 --top-p 0.95 --ignore-eos

echo
echo "[4/4] quality beside fp16: exact answers to questions about facts that far back, in tokens"
"$gearkv" recall "$model" --file tests/data/recall_sample.jsonl --kv f16 "$spec" --progress
