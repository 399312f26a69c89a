# shellcheck shell=bash
# What run, test, lock and bench share: the checkout's own Python environment, .venv.
#
# `provide run` and `provide test` install into .venv what the lock files name, and the project itself, editable.
# What was installed is recorded in .venv/.provided-*: as long as the lock files and pyproject.toml are unchanged,
# nothing is done and nothing is printed. Concurrent runs wait for each other; an interrupted one starts over.

root=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")
venv=$root/.venv

die() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 1
}

have() {
  command -v "$1" >/dev/null
}

# Prints the interpreter to build on. A name on PATH is not enough: pyenv's shims exist for versions that do not run,
# and Debian's python3 has no ensurepip. In an active virtual environment, it prints the one that this is based on.
find_python() {
  local name needs='sys'
  have uv || needs='sys, venv, ensurepip'
  for name in python3.15 python3.14 python3.13 python3.12 python3.11 python3 python; do
    "$name" -c "import $needs; sys.version_info >= (3, 11) or sys.exit(1); print(sys._base_executable)" 2>/dev/null &&
      return
  done
  have uv || die "wanted: Python 3.11 or newer with its venv module, found none on PATH" \
    "(Debian, Ubuntu: apt install python3 python3-venv)"
  die "wanted: Python 3.11 or newer, found none on PATH"
}

locks() {
  case $1 in
    run) printf '%s\n' requirements.txt requirements-build.txt ;;
    test) printf '%s\n' requirements-dev.txt ;;
  esac
}

# Everything that decides what is installed.
inputs() {
  local lock
  cat "$root/pyproject.toml"
  for lock in $(locks "$1"); do cat "$root/$lock"; done
}

provided() {
  reusable && [[ $(inputs "$1") == "$(cat "$venv/.provided-$1" 2>/dev/null)" ]]
}

# An unfinished .venv is not repaired, one that was moved has scripts that do not start, and one whose Python is gone
# or too old cannot be used. Any other is kept, whoever made it.
reusable() {
  [[ ! -e $venv/.incomplete && $(cat "$venv/.root" 2>/dev/null || printf '%s' "$root") == "$root" ]] &&
    "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

make_venv() {
  rm -rf "$venv"
  mkdir -p "$venv"
  touch "$venv/.incomplete"
  if have uv; then
    uv venv --quiet --allow-existing --python "$1" "$venv"
  else
    "$1" -m venv "$venv"
  fi
}

# uv does not read pip.conf: if that names the index or the certificates, uv fails and pip does not.
pip_in_venv() {
  if have uv; then
    uv pip "$1" --quiet --python "$venv/bin/python" "${@:2}" && return
    printf 'uv pip %s failed, trying pip\n' "$1" >&2
  fi
  "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$venv/bin/python" -m ensurepip >/dev/null
  "$venv/bin/python" -m pip --quiet --disable-pip-version-check --no-input "$@"
}

install() {
  local lock wanted=()
  for lock in $(locks "$1"); do wanted+=(--requirement "$root/$lock"); done
  touch "$venv/.incomplete"
  pip_in_venv install "${wanted[@]}"
  pip_in_venv install --no-deps --no-build-isolation --editable "$root"
  pip_in_venv check || die "the lock files do not satisfy pyproject.toml; run scripts/lock"
  printf '%s' "$root" >"$venv/.root"
  inputs "$1" >"$venv/.provided-$1"
  rm "$venv/.incomplete"
}

provide() {
  provided "$1" && return
  local python
  python=$(find_python)
  # The lock is held as long as this shell has descriptor 9 open; Python takes it because macOS has no flock(1).
  exec 9<"$root/pyproject.toml"
  "$python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'
  if ! provided "$1"; then
    printf 'setting up %s with %s, once\n' "$venv" "$(have uv && echo uv || echo pip)" >&2
    reusable || make_venv "$python"
    install "$1"
  fi
  exec 9<&-
}
