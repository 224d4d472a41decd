#!/usr/bin/env bash
# check.sh DIR MODEL [TEXT]: builds the engine with gearkv in DIR (build.sh) and prints it beside itself: perplexity and
# KL divergence on TEXT (default: the engine's own manuals), beside gearkv's own decoder if quickstart.sh has built it;
# then tokens per second at four depths, bytes, and peak memory. The numbers need a machine with nothing else to do for
# their last minutes: PARTS="quality fill" and PARTS=speed are the two halves. MEASURE_ARGS go to measure.py (--help).
# PARTS=programs builds the engine's server too, and does with its programs what programs.py tells. PARTS=calls makes
# CALLS (1000) random sequences of memory calls (calls.cpp) on MODEL and on models with layers of several shapes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ $# = 2 ] || [ $# = 3 ] || { sed -n '2,7p' "$0" >&2; exit 2; }
if [ "${PARTS:-}" = programs ]; then
  "$here/build.sh" "$1" llama-completion llama-speculative-simple llama-server
  exec python3 "$here/programs.py" "$1/llama.cpp/build/bin" "$2"
fi
if [ "${PARTS:-}" = calls ]; then
  "$here/build.sh" "$1" calls shapes
  export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
  mkdir -p "$1/shapes"
  "$1/llama.cpp/build/bin/shapes" "$2" "$1/shapes"
  for model in "$2" "$1/shapes/heads.gguf" "$1/shapes/hybrid.gguf"; do
    basename "$model"
    for spec in f32 gear-4; do
      for streams in unified own; do
        "$1/llama.cpp/build/bin/calls" "$model" "${CALLS:-1000}" "$spec" "$streams" "${SEED:-1}" 3
      done
    done
  done
  exit
fi
"$here/build.sh" "$1" llama-perplexity rates
text=${3:-$1/manuals.txt}
[ $# = 3 ] || (cd "$1/llama.cpp" && LC_ALL=C find docs tools -name '*.md' | LC_ALL=C sort | xargs cat) >"$text"
gearkv=${GEARKV_BUILD_DIR:-$here/../../build-quickstart}/examples/gearkv/gearkv
decoder=()
[ -x "$gearkv" ] && decoder=(--decoder "$gearkv")
# shellcheck disable=SC2086
python3 "$here/measure.py" "$1/llama.cpp/build/bin" "$2" "$text" "$1/states" --parts ${PARTS:-quality fill speed} "${decoder[@]}" ${MEASURE_ARGS:-}
