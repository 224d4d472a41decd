#!/usr/bin/env bash
# musl.sh ARCHIVE : of the C library the core asks for nothing that musl has not (musl-dev of Debian has its archive).
set -euo pipefail
archive=$1
musl=$(find /usr/lib/*-linux-musl /usr/local/musl/lib -name libc.a 2>/dev/null | head -n 1 || true)
[ -n "$musl" ] || { echo "SKIPPED: there is no libc.a of musl"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
nm --defined-only "$archive" "$musl" 2>/dev/null | awk 'NF == 3 {print $3}' | sort -u >"$work/there"
nm --undefined-only "$archive" | awk 'NF == 2 {print $2}' | sort -u >"$work/asked"
# The rest is the C++ runtime's, oneTBB's and the compiler's own, or a name that headers of glibc give a function for a check.
missing=$(comm -23 "$work/asked" "$work/there" |
  grep -vE '^(_Z|__cxa_|__gxx_personality_v0$|_Unwind_|_GLOBAL_OFFSET_TABLE_$|__popcount[sd]i2$|__aarch64_|__isoc[0-9]+_|__[a-z_]+_chk$)' || true)
grep -qx memcpy "$work/asked" && grep -qx memcpy "$work/there"
[ -z "$missing" ] || { printf 'musl has no\n%s\n' "$missing"; exit 1; }
echo "$(comm -12 "$work/asked" "$work/there" | wc -l) functions, all of them in $musl or here"
