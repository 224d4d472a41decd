# install_packages NAME... : installs the Debian packages that are missing, and only these.
install_packages() {
  if ! command -v dpkg-query >/dev/null; then
    echo "not a Debian or Ubuntu system, nothing is installed; needed are the equivalents of: $*" >&2
    return 0
  fi
  local missing=() name
  for name in "$@"; do
    dpkg-query -W -f '${Status}' "$name" 2>/dev/null | grep -q 'install ok installed' || missing+=("$name")
  done
  [ ${#missing[@]} -eq 0 ] && return 0
  local as_root=(env DEBIAN_FRONTEND=noninteractive)
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { echo "install these as root: ${missing[*]}" >&2; return 1; }
    as_root=(sudo "${as_root[@]}")
  fi
  echo "installing ${missing[*]}"
  # A source of the system that is out of reach need not matter; the installation tells.
  "${as_root[@]}" apt-get update -qq || true
  "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}
