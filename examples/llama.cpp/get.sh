#!/usr/bin/env bash
# The engine's source, at the version the anchors of apply.py were written for: get.sh DIR makes DIR/llama.cpp out of
# PyPI's source package llama-cpp-python (77 MB; nothing of it is built or installed), unless it is there.
set -euo pipefail
version=0.3.36
sum=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
[ $# = 1 ] || { sed -n '2,3p' "$0" >&2; exit 2; }
mkdir -p "$1"
[ -f "$1/llama.cpp/src/llama-kv-cache.cpp" ] && exit
folder=$(mktemp -d "$1/source.XXXXXX")
trap 'rm -rf "$folder"' EXIT
python3 -m pip download --quiet --disable-pip-version-check --no-deps --no-binary llama-cpp-python --dest "$folder" \
  "llama-cpp-python==$version"
package=$folder/llama_cpp_python-$version.tar.gz
echo "$sum  $package" | sha256sum --check --status || { echo "PyPI has another package $version than expected" >&2; exit 1; }
tar -xzf "$package" -C "$folder" --strip-components=2 "llama_cpp_python-$version/vendor/llama.cpp"
mv "$folder/llama.cpp" "$1/llama.cpp"
echo "llama.cpp of llama-cpp-python $version" >"$1/version.txt"
