#!/usr/bin/env bash
# symbols.sh ARCHIVE: what the core library defines and asks for.
set -euo pipefail
archive=$1
fail=0

# Everything it defines for others is in namespace gearkv (or a template of the runtime, which may be shared).
foreign=$(nm -C --defined-only --extern-only "$archive" 2>/dev/null | awk 'NF >= 3 && $2 ~ /[TDBR]/' |
  grep -vE ' (gearkv::|(typeinfo|typeinfo name|vtable|guard variable) for gearkv::)' || true)
if [ -n "$foreign" ]; then echo "defined outside namespace gearkv:"; echo "$foreign"; fail=1; fi

# Nothing runs before main.
if readelf -SW "$archive" 2>/dev/null | grep -E '\.(init_array|ctors)' ; then echo "global constructors"; fail=1; fi

# It neither prints nor ends the process, and changes nothing of its host.
asked=$(nm --undefined-only "$archive" 2>/dev/null | awk '{print $NF}' | sed 's/@.*//' |
  grep -xE 'printf|fprintf|vfprintf|puts|fputs|putchar|abort|exit|_exit|setenv|putenv|signal|sigaction|setlocale|fesetround|_ZSt4cout|_ZSt4cerr|__assert_fail' | sort -u || true)
if [ -n "$asked" ]; then echo "asks for:"; echo "$asked"; fail=1; fi
exit $fail
