#!/usr/bin/env bash
# readme.sh BUILD SOURCE: the commands that README.md gives to embedders, as they stand there, in a folder of their own.
set -euo pipefail
build=$1 source=$2
command -v cmake >/dev/null && command -v git >/dev/null || { echo "SKIPPED: there is no cmake or no git"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 "$source/tests/consume/readme.py" compare "$source"

# run NAME RESULTS : that block, which prints so many times what app.cpp and app.c do
run() {
  python3 "$source/tests/consume/readme.py" commands "$source" "$1" | sed "s|URL|$work/origin|" >"$work/$1.sh"
  echo "== $1"
  cat "$work/$1.sh"
  (cd "$work/user" && bash -euo pipefail "$work/$1.sh") >"$work/$1.log" 2>&1 || { cat "$work/$1.log"; exit 1; }
  local n
  n=$(grep -c '^5\.69 bits per element$' "$work/$1.log") || true
  [ "$n" = "$2" ] || { cat "$work/$1.log"; echo "$1: $n results, expected $2"; exit 1; }
}

# The tree as it stands in a repository of its own, with one level beside scalar.
mkdir -p "$work/origin/tests" "$work/user"
for part in CMakeLists.txt meson.build meson_options.txt include src arch python; do cp -r "$source/$part" "$work/origin/"; done
mkdir "$work/origin/examples"
cp -r "$source"/examples/{embed,04_own_executor_and_allocator.cpp} "$work/origin/examples/"
awk -v family="$(uname -m)" '/^#/ || ($2 == family && !n++)' "$source/arch/levels.txt" >"$work/origin/arch/levels.txt"
sed -i "s|URL|$work/origin|" "$work/origin/examples/embed/gearkv.wrap"
git -C "$work/origin" init -q
git -C "$work/origin" add .
git -C "$work/origin" -c user.name=gearkv -c user.email=gearkv@localhost -c commit.gpgsign=false commit -q -m tree

# Nothing optimised, which takes a quarter of the time.
export CMAKE_GENERATOR=Ninja CMAKE_BUILD_TYPE=Debug CMAKE_BUILD_PARALLEL_LEVEL=2
[ "$(python3 "$source/tests/consume/readme.py" commands "$source" from-source | wc -l)" -lt 5 ]
run from-source 1
"$work/user/app/app-c" | grep -q '5\.69 bits'

# The same with no ear for the environment, installed by CMake, and found there.
! GEARKV_LEVEL=nonsense "$work/user/app/app" >/dev/null || { echo "GEARKV_LEVEL was not heard"; exit 1; }
cmake -DGEARKV_ENVIRONMENT=OFF "$work/user/app" >/dev/null
cmake --build "$work/user/app" >/dev/null
GEARKV_LEVEL=nonsense "$work/user/app/app"
cmake --install "$work/user/app" --prefix "$work/second" >/dev/null
mv "$work/second" "$work/moved"
cmake -S "$source/examples/embed" -B "$work/second-app" "-DCMAKE_PREFIX_PATH=$work/moved" >/dev/null
cmake --build "$work/second-app" >/dev/null
"$work/second-app/app" && "$work/second-app/app-c"
! cmake -S "$source/examples/embed" -B "$work/other" "-DCMAKE_PREFIX_PATH=$work/nowhere" >/dev/null 2>&1 ||
  { echo "a package was found where there is none"; exit 1; }
# As FetchContent has it.
mkdir "$work/fetch"
cat >"$work/fetch/CMakeLists.txt" <<CMAKE
cmake_minimum_required(VERSION 3.16)
project(fetch LANGUAGES CXX)
include(FetchContent)
FetchContent_Declare(gearkv GIT_REPOSITORY $work/origin GIT_TAG HEAD)
FetchContent_MakeAvailable(gearkv)
if(NOT TARGET gearkv::core)
  message(FATAL_ERROR "no gearkv::core")
endif()
CMAKE
cmake -S "$work/fetch" -B "$work/fetch/build" >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }

# meson is asked for what README says; what it would install was built before.
mkdir "$work/bin"
cat >"$work/bin/meson" <<MESON
#!/usr/bin/env bash
set -euo pipefail
case "\$1 \$*" in
  install*) "$work/install" ;;
  setup*app-meson*) exec $(command -v meson) "\$@" --force-fallback-for=gearkv --buildtype=debug -Dgearkv:levels=none \
    -Dgearkv:precompiled=true ;;
  *) exec $(command -v meson) "\$@" ;;
esac
MESON
cat >"$work/install" <<INSTALL
#!/usr/bin/env bash
set -euo pipefail
$(command -v meson) install -C "$build" --no-rebuild --destdir "$work/root"
pc=\$(find "$work/root" -name gearkv.pc)
libraries=\${pc%/pkgconfig*} prefix=\${pc%/lib/*}
mkdir -p "$work/user/out"
mv "\$libraries" "$work/user/out/lib"
mv "\$prefix/include" "$work/user/out/include"
sed -i "s|^prefix=.*|prefix=$work/user/out|; s|^libdir=.*|libdir=\\\${prefix}/lib|" "$work"/user/out/lib/pkgconfig/*.pc
INSTALL
chmod +x "$work/bin/meson" "$work/install"
export PATH=$work/bin:$PATH
run install 0
if [ -e "$work/user/out/lib/libgearkv.so" ]; then
  run pkg-config 2
else
  echo "no shared library in this build: pkg-config is left to the others"
fi
run find-package 2
run subproject 0
grep -qE '^Ok: +1' "$work/subproject.log"
