# Completion of gearkv in bash. Commands and options are those the program has; nothing here need be kept in step.
_gearkv() {
  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} tool=${COMP_WORDS[0]}
  local i help=() known
  COMPREPLY=()
  # The commands before the cursor, "state verify" among them, and what the last of them says of itself.
  known=$("$tool" --help 2>/dev/null) || return
  for ((i = 1; i < COMP_CWORD; ++i)); do
    if grep -qE "^Subcommands:" <<<"$known" && [[ ${COMP_WORDS[i]} =~ ^[a-z]+$ ]] &&
      sed '1,/^Subcommands:/d' <<<"$known" | grep -qE "^  ${COMP_WORDS[i]} "; then
      help+=("${COMP_WORDS[i]}")
      known=$("$tool" "${help[@]}" --help 2>/dev/null) || return
    fi
  done
  if [[ $word == -* ]]; then
    mapfile -t COMPREPLY < <(compgen -W "$(grep -oE '^ {2,4}-[^ ]+' <<<"$known" | tr ', ' '\n\n')" -- "$word")
    return
  fi
  case $before in
    --kv) mapfile -t COMPREPLY < <(compgen -W "f16 q8 gear-4 gear-3 gear-2 gear-1 kivi-4 kivi-2 auto:3" -- "$word"); return ;;
    --level)
      mapfile -t COMPREPLY < <(compgen -W "automatic $("$tool" --version | sed -n 's/^levels available: *//p')" -- "$word")
      return
      ;;
    --stats) mapfile -t COMPREPLY < <(compgen -W "stdout stderr none" -- "$word"); return ;;
  esac
  if grep -qE "^Subcommands:" <<<"$known"; then
    mapfile -t COMPREPLY < <(compgen -W "$(sed '1,/^Subcommands:/d' <<<"$known" | awk 'NF && /^  [a-z]/ {print $1}')" -- "$word")
    return
  fi
  mapfile -t COMPREPLY < <(compgen -f -- "$word")
}
complete -o filenames -F _gearkv gearkv
