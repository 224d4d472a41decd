#!/usr/bin/env bash
# symbols.sh ARCHIVE: what a library defines and asks for.
set -euo pipefail
archive=$1
fail=0

# complain TITLE LINES: fails when there are any
complain() {
  [ -z "$2" ] && return
  printf '%s\n%s\n\n' "$1:" "$2"
  fail=1
}

# Everything it defines for others is in namespace gearkv, or an inline function or template of the C++ runtime,
# which are weak.
defined=$(nm -C --defined-only --extern-only "$archive")
grep -q ' T gearkv::' <<<"$defined"
complain "defined outside of gearkv" "$(awk 'NF >= 3 && $2 ~ /[A-TX-Z]/' <<<"$defined" |
  grep -vE ' (gearkv::|gearkv_|(typeinfo|typeinfo name|vtable|guard variable) for gearkv::)' || true)"

# Nothing runs before main or after it.
sections=$(readelf -SW "$archive")
grep -q '\.text' <<<"$sections"
complain "runs before or after main" "$(grep -oE '\.(init_array|fini_array|ctors|dtors)[^ ]*' <<<"$sections" || true)"

# It neither prints nor ends the process, and changes nothing of its host. cpu.cpp alone reads the environment, and
# atomic_file.cpp alone writes, to a file of the caller's; stale_files.cpp asks whether a process lives, by signal 0.
asked=$(nm -A --undefined-only "$archive" | awk '{print $NF, $1}' | sed 's/^\([^ @]*\)@[^ ]*/\1/')
grep -q '^malloc \|^_Znw\|^memcpy ' <<<"$asked"
complain "prints" "$(grep -E '^(__)?(v?f?printf|v?dprintf|f?puts|f?putc|putchar|fwrite|write|perror|syslog)(_chk|_unlocked)? ' <<<"$asked" |
  grep -v '^write .*[:/]file_atomic_file\.cpp\.o:' || true)"
complain "uses iostream" "$(grep -E '^(_ZNSt8ios_base|_ZNS[oi][0-9E]|_ZSt4c(out|err|in|log) )' <<<"$asked" || true)"
complain "ends the process" "$(grep -E '^(abort|exit|_exit|_Exit|quick_exit|__assert_fail|raise|kill) ' <<<"$asked" |
  grep -v '^kill .*[:/]file_stale_files\.cpp\.o:' || true)"
complain "changes its host" "$(grep -E '^(setenv|unsetenv|putenv|signal|sigaction|setlocale|atexit|__cxa_atexit|srand|chdir|umask|setrlimit) ' <<<"$asked" || true)"
complain "reads the environment" "$(grep -E '^(secure_)?getenv ' <<<"$asked" | grep -v '[:/]cpu\.cpp\.o:' || true)"
exit $fail
