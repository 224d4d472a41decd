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

# unpack_packages FOLDER ARCHITECTURE NAME... : Debian packages of another architecture, unpacked into a folder and not
# installed. Nothing of the system changes and none of the packages they depend on come along, so this is for
# libraries that need nothing but the C library; they are left as archives, which need no search at run time.
unpack_packages() {
  local folder=$1 architecture=$2 file
  shift 2
  [ -e "$folder/unpacked" ] && return 0
  rm -rf "$folder"
  mkdir -p "$folder/apt/lists/partial" "$folder/apt/cache"
  folder=$(cd "$folder" && pwd)
  local options=(-qq -o "APT::Architecture=$architecture" -o "APT::Architectures=$architecture"
    -o "Dir::State::lists=$folder/apt/lists" -o Dir::State::status=/dev/null -o "Dir::Cache=$folder/apt/cache"
    -o APT::Sandbox::User=root)
  echo "unpacking $* for $architecture"
  apt-get "${options[@]}" update || true
  (cd "$folder/apt" && apt-get "${options[@]}" download "$@") ||
    { echo "the package sources of this system have no $* for $architecture" >&2; return 1; }
  for file in "$folder"/apt/*.deb; do dpkg-deb -x "$file" "$folder"; done
  find "$folder" -name '*.so*' -delete
  find "$folder" -name '*.pc' -exec sed -i "s|^prefix=.*|prefix=$folder/usr|" {} +
  rm -rf "$folder/apt"
  touch "$folder/unpacked"
}
