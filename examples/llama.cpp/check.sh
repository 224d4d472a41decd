#!/usr/bin/env bash
# check.sh DIR MODEL [TEXT]: builds the engine with gearkv in DIR (build.sh) and prints it beside itself with gear-4 and
# gear-2: perplexity and KL divergence on TEXT (default: the engine's own manuals), tokens per second at three depths,
# peak memory. What it measures and how long, says measure.py --help; MEASURE_ARGS are passed on to it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ $# = 2 ] || [ $# = 3 ] || { sed -n '2,4p' "$0" >&2; exit 2; }
"$here/build.sh" "$1" llama-bench llama-perplexity
text=${3:-$1/manuals.txt}
[ $# = 3 ] || (cd "$1/llama.cpp" && LC_ALL=C find docs tools -name '*.md' | LC_ALL=C sort | xargs cat) >"$text"
# shellcheck disable=SC2086
python3 "$here/measure.py" "$1/llama.cpp/build/bin" "$2" "$text" ${MEASURE_ARGS:-}
