#!/usr/bin/env bash
# anchors.sh DIR: the anchors fit the pinned source of llama.cpp, and what they change compiles. The source is fetched
# to DIR once; without PyPI the test is skipped, and says so.
set -euo pipefail
adapter=$(cd "$(dirname "$0")/../../examples/llama.cpp" && pwd)
include=$(cd "$(dirname "$0")/../../include" && pwd)
mkdir -p "$1"
if [ ! -f "$1/llama.cpp/src/llama-kv-cache.cpp" ] && ! timeout 240 "$adapter/get.sh" "$1"; then
  echo "SKIPPED: the source of llama.cpp is not to be had from PyPI, so whether the anchors fit it is NOT KNOWN" >&2
  exit 77
fi
rm -rf "$1/tree"
mkdir "$1/tree"
cp -r "$1/llama.cpp/"{src,include,ggml,common,vendor} "$1/tree"
python3 "$adapter/apply.py" "$1/tree"

sum() { (cd "$1" && find src common -type f | LC_ALL=C sort | xargs sha256sum) | sha256sum; }

# A second time changes nothing; in a tree where one anchor is gone, or that has the calls of another version of the
# script, nothing is written.
before=$(sum "$1/tree")
python3 "$adapter/apply.py" "$1/tree" | grep -q 'there already'
[ "$before" = "$(sum "$1/tree")" ]
rm -rf "$1/other"
mkdir "$1/other"
cp -r "$1/llama.cpp/"{src,common} "$1/other"
sed -i 's/llama_kv_cache::seq_keep(/llama_kv_cache::seq_retain(/' "$1/other/src/llama-kv-cache.cpp"
before=$(sum "$1/other")
if python3 "$adapter/apply.py" "$1/other" 2>"$1/message"; then echo "an anchor is gone, and nobody noticed" >&2; exit 1; fi
grep -q seq_keep "$1/message"
[ "$before" = "$(sum "$1/other")" ]
rm -rf "$1/other"
mkdir "$1/other"
cp -r "$1/tree/"{src,common} "$1/other"
cp "$1/llama.cpp/common/arg.cpp" "$1/other/common"
before=$(sum "$1/other")
if python3 "$adapter/apply.py" "$1/other" 2>"$1/message"; then echo "calls are missing, and nobody noticed" >&2; exit 1; fi
grep -q 'another version' "$1/message"
[ "$before" = "$(sum "$1/other")" ]

cd "$1/tree/src"
flags=(-fsyntax-only -Wall -Wextra -Wno-unused-parameter -I. -I../include -I../ggml/include)
for file in llama-kv-cache llama-context llama-model llama-graph; do
  echo "c++ $file.cpp"
  ${CXX:-c++} -std=c++17 "${flags[@]}" "$file.cpp"
done
echo "c++ arg.cpp"
${CXX:-c++} -std=c++17 "${flags[@]}" -I../common -I../vendor ../common/arg.cpp
for file in llama-gearkv llama-gearkv-seqs llama-gearkv-replay llama-gearkv-saved; do
  echo "c++ $file.cpp"
  ${CXX:-c++} -std=c++20 -Werror "${flags[@]}" -I"$include" "$file.cpp"
done
