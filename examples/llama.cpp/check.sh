#!/usr/bin/env bash
# check.sh DIR MODEL [TEXT]: builds the engine with gearkv in DIR (build.sh) and prints it beside itself: perplexity and
# KL divergence on TEXT (default: the engine's own manuals), beside gearkv's own decoder if quickstart.sh has built it;
# then tokens per second at four depths, bytes, and peak memory. The numbers need a machine with nothing else to do for
# their last minutes: PARTS="quality fill" and PARTS=speed are the two halves. MEASURE_ARGS go to measure.py (--help).
# PARTS=programs builds the engine's server too, and does with its programs what programs.py tells. PARTS=calls makes
# CALLS (1000) random sequences of memory calls (calls.cpp) on the bundled model and on some with layers of several shapes,
# and contexts that are to be refused (refused.cpp).
# PARTS="programs calls quality fill speed" is all there is.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ $# = 2 ] || [ $# = 3 ] || { sed -n '2,9p' "$0" >&2; exit 2; }
model=$2 measured=() programs=(llama-perplexity rates)
for part in ${PARTS:-quality fill speed}; do
  case $part in
    quality | fill | speed) measured+=("$part") ;;
    programs) programs+=(llama-completion llama-speculative-simple llama-server shift) ;;
    calls) programs+=(calls refused shapes) ;;
    *) echo "PARTS are programs, calls, quality, fill and speed, not $part" >&2; exit 2 ;;
  esac
done
"$here/build.sh" "$1" "${programs[@]}"
dir=$(cd "$1" && pwd)
bin=$dir/llama.cpp/build/bin
text=${3:-$dir/manuals.txt}
cat "$dir/version.txt" 2>/dev/null || echo "a tree of llama.cpp that was there"
[ $# = 3 ] || (cd "$dir/llama.cpp" && LC_ALL=C find docs tools -name '*.md' | LC_ALL=C sort | xargs cat) >"$text"

case " ${PARTS:-} " in *" programs "*) python3 "$here/programs.py" "$bin" "$model" "$text" ;; esac
case " ${PARTS:-} " in *" calls "*)
  # The engine's threads sleep while they wait: beside other work they would take minutes.
  export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
  mkdir -p "$dir/shapes"
  tiny=$here/../models/tiny-q8_0.gguf
  "$bin/shapes" "$tiny" "$dir/shapes"
  echo "refused when a context is made"
  "$bin/refused" "$tiny" "$dir/shapes"
  for each in "$tiny" "$dir/shapes/heads.gguf" "$dir/shapes/hybrid.gguf"; do
    basename "$each"
    for spec in f32 gear-4; do
      for streams in unified own; do
        "$bin/calls" "$each" "${CALLS:-1000}" "$spec" "$streams" "${SEED:-1}" 3
      done
    done
  done
  unset OMP_WAIT_POLICY ;;
esac
[ ${#measured[@]} -gt 0 ] || exit 0
gearkv=${GEARKV_BUILD_DIR:-$here/../../build-quickstart}/examples/gearkv/gearkv
decoder=()
[ -x "$gearkv" ] && decoder=(--decoder "$gearkv")
# shellcheck disable=SC2086
python3 "$here/measure.py" "$bin" "$model" "$text" "$dir/states" --parts "${measured[@]}" "${decoder[@]}" ${MEASURE_ARGS:-}
