#!/usr/bin/env bash
# wheel.sh SOURCE PYTHON: the archive of sources, the wheel that pip builds of it, and what is installed of that, without
# build isolation. With one level and without the decoder, so that it takes seconds.
set -euo pipefail
source=$1 python=$2
[ "$python" != none ] || { echo "SKIPPED: Python, its headers or cffi are missing"; exit 77; }
"$python" -c 'import numpy, pytest, ensurepip' || { echo "SKIPPED: NumPy, pytest or python3-venv is missing"; exit 77; }
git -C "$source" rev-parse HEAD >/dev/null 2>&1 || { echo "SKIPPED: the sources are in no git repository"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m venv --system-site-packages "$work/venv"
PATH=$work/venv/bin:$PATH
export PATH PYTHONDONTWRITEBYTECODE=1 PIP_DISABLE_PIP_VERSION_CHECK=1
pip install -q 'pip >= 23.1' meson-python || { echo "SKIPPED: meson-python cannot be had from PyPI"; exit 77; }
settings=(-Csetup-args=-Dlevels=none -Csetup-args=-Ddecoder=false -Csetup-args=-Dbuildtype=debug -Csetup-args=-Dprecompiled=true)

# has LISTING PATTERN..., and lacks likewise
has() { local list=$1; shift; for one in "$@"; do grep -qE "$one" <<<"$list" || { echo "missing: $one in"$'\n'"$list"; exit 1; }; done; }
lacks() { local list=$1; shift; for one in "$@"; do ! grep -E "$one" <<<"$list" || { echo "not wanted: $one"; exit 1; }; done; }

# What is committed; a wheel of the tree as it stands is made of that too.
git clone -q "$source" "$work/clone"
(cd "$work/clone" && python -c "import mesonpy; mesonpy.build_sdist('$work', {'setup-args': ['-Dlevels=none', '-Ddecoder=false']})") \
  >"$work/log" 2>&1 || { tail -n 40 "$work/log"; exit 1; }
list=$(tar -tzf "$work"/gearkv-*.tar.gz)
has "$list" '/LICENSE$' '/README.md$' '/pyproject.toml$' '/src/cache/cache.cpp$' '/arch/levels.txt$' '/python/gearkv/py.typed$'
lacks "$list" '/tests/' '/examples/' '/bench/' '\.gguf$' '\.npy$'

cd "$work"
pip wheel -q --no-deps --no-build-isolation "${settings[@]}" "$work"/gearkv-*.tar.gz
list=$(python -m zipfile -l gearkv-*.whl | awk '{print $1}')
has "$list" '^gearkv/__init__.py$' '^gearkv/_gearkv\..*so$' '^gearkv/py.typed$' '^gearkv/_gearkv.pyi$' 'dist-info/.*LICENSE$'
lacks "$list" '\.a$' '\.hpp$' '\.h$' '^gearkv-[^/]*data' '/tests?/'
pip install -q --no-deps --no-index gearkv-*.whl
version=$(python -c 'import gearkv; print(gearkv.__version__)')
has "$version" '^[0-9]+\.[0-9]+\.[0-9]+$'
[ "$version" = "$(python -c 'from importlib.metadata import version; print(version("gearkv"))')" ]
python -c 'import gearkv; assert not gearkv.has_decoder and not hasattr(gearkv, "Model")'
GEARKV_SOURCE=$source python -m pytest -q -W error -p no:cacheprovider --rootdir "$work" "$source/tests/python/test_cache.py"
pip uninstall -q -y gearkv
