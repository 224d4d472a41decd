#!/usr/bin/env bash
# From nothing to text generated with a compressed KV cache: installs what is missing, builds a release, and runs
# the bundled model with its cache in fp16 and in GEAR form. Options: examples/quickstart.sh [SPEC]
set -euo pipefail
cd "$(dirname "$0")/.."
source tests/support/packages.sh

spec=${1:-gear-4}
build=${GEARKV_BUILD_DIR:-build-quickstart}
model=examples/models/tiny-q8_0.gguf

echo "[1/4] packages"
install_packages g++ meson ninja-build pkg-config libxsimd-dev libtbb-dev libopenblas-dev libcli11-dev nlohmann-json3-dev
echo "[2/4] build (about a minute)"
[ -d "$build" ] || meson setup "$build" --buildtype=release -Dtests=false -Dbench=false >/dev/null
ninja -C "$build" >"$build/build.log" || { tail -n 40 "$build/build.log"; exit 1; }
gearkv=$build/examples/gearkv/gearkv

echo "[3/4] text generated with the cache in $spec"
"$gearkv" generate "$model" -p "The old captain looked at the sea and said" -n 200 --kv "$spec" --seed 7
echo
echo "[4/4] quality beside fp16: exact answers to questions about the prompt, by distance in tokens"
for kv in f16 "$spec"; do
  "$gearkv" recall "$model" --file tests/data/recall_sample.jsonl --kv "$kv"
done
