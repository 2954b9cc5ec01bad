#!/usr/bin/env bash
# Makes the environment (.venv, once; under a second after that), then
#   ./setup.sh                    puts CIFAR-100 in place
#   ./setup.sh test [--soak]      runs every check and test; --soak adds the long proofs
#   ./setup.sh test --container   builds the image and runs the tests of its containers (as root, 25 GB of disk)
#   ./setup.sh install EXTRA      adds the packages of an extra: google, kubernetes, onnx, tensorboard, or dev
#   ./setup.sh COMMAND ...        runs `micronet COMMAND ...`, for example: ./setup.sh train --demo
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=$root/.venv

# fail MESSAGE [CODE]: the codes are the README's.
fail() {
  printf 'setup.sh: %s\n' "$1" >&2
  exit "${2:-78}"
}

find_python() {
  local candidate candidates=(python3 python3.13 python3.12 python3.11)
  [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  fail "there is no Python 3.11, 3.12 or 3.13${PYTHON:+: $PYTHON is another}. Install one and name it: PYTHON=/path/to/python3.12 ./setup.sh"
}

# Debian and Ubuntu ship python3 without the part that makes virtual environments.
ensure_venv_module() {
  local python=$1
  "$python" -c 'import ensurepip, venv' 2>/dev/null && return
  local package
  package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
  if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    { apt-get update -qq && apt-get install -y -qq "$package"; } >&2 || fail "apt-get could not install $package"
  else
    fail "$python cannot make virtual environments. Install its package: sudo apt-get install $package"
  fi
}

# install LOCKFILE: the packages of that file, each checked against its hash, and this project.
install() {
  local lock=$root/$1 stamp=$venv/$1.installed wanted python
  wanted=$(cat "$lock" "$root/pyproject.toml" | sha256sum)
  [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return
  (
    flock 9
    [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && exit 0
    if [ ! -x "$venv/bin/pip" ]; then
      python=$(find_python)
      ensure_venv_module "$python"
      printf 'setup.sh: making the environment in %s (about 6 GB)\n' "$venv" >&2
      "$python" -m venv --clear "$venv"
    fi
    "$venv/bin/pip" install --quiet --require-hashes -r "$lock" >&2
    "$venv/bin/pip" install --quiet --no-deps --no-build-isolation --editable "$root" >&2
    printf '%s\n' "$wanted" >"$stamp"
  ) 9>"$root/.venv.lock"
}

# locked NAME ...: the entries of these packages in the lock of all extras, with their hashes.
locked() {
  awk -v names=" $(printf '%s ' "$@" | tr '[:upper:]_.' '[:lower:]--')" \
    '/^[^ ]/ { split($1, part, "=="); wanted = index(names, " " part[1] " ") } wanted' "$root/requirements-dev.lock"
}

# install_extra NAME: what that extra of pyproject.toml adds, each package checked against its hash.
install_extra() {
  local python=$venv/bin/python pip=("$venv/bin/pip" --quiet --disable-pip-version-check install) report packages
  read -ra packages < <("$python" -c 'import sys, tomllib
print(*tomllib.load(sys.stdin.buffer)["project"]["optional-dependencies"][sys.argv[1]])' "$1" <"$root/pyproject.toml")
  # pip takes a lock, or names, but no names out of a lock: so a dry run lists them first.
  report=$(mktemp)
  "${pip[@]}" --dry-run --report "$report" "${packages[@]}" \
    --constraint <(sed -n 's/^\([^ ]*==.*\) \\$/\1/p' "$root/requirements-dev.lock") >&2
  read -ra packages < <("$python" -c 'import json, sys
print(*(entry["metadata"]["name"] for entry in json.load(sys.stdin)["install"]))' <"$report")
  rm "$report"
  [ "${#packages[@]}" -eq 0 ] || "${pip[@]}" --require-hashes --no-deps -r <(locked "${packages[@]}") >&2
}

# ensure COMMAND=PACKAGE ...: installs the packages of missing commands. Where that cannot be, the tests say what
# is missing.
ensure() {
  local pair missing=()
  for pair in "$@"; do
    command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
  done
  [ "${#missing[@]}" -gt 0 ] && [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null || return 0
  {
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
  } >&2 || fail "apt-get could not install ${missing[*]}"
}

run_tests() {
  local selected='not soak and not container'
  cd "$root"
  PATH=$venv/bin:$PATH
  case "${1:-}" in
    '') ;;
    --soak) selected='not container' ;;
    --container)
      ensure podman=podman runc=runc mmdebstrap=mmdebstrap
      python -m pytest -m container -rsP --durations=5 tests/container
      return
      ;;
  esac
  ensure g++=g++ chromium=chromium bindfs=bindfs \
    munged=munge slurmctld=slurmctld slurmd=slurmd sbatch=slurm-client
  ruff check .
  ruff format --check .
  mypy
  lint-imports
  shellcheck setup.sh .ci/run entrypoint.sh bench/first_hour.sh infra/slurm/micronet.sbatch
  hadolint Dockerfile
  # Three processes on two cores: a quarter of the tests' time is waiting. With more threads than one they would mostly
  # wait for one another. On a processor with AVX512-FP16 oneDNN takes a reference kernel for fp16's backward pass:
  # 0.77 s a step where PyTorch's own takes 0.07 s.
  OMP_NUM_THREADS=1 ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 \
    python -m pytest -m "$selected" -n 3 --dist loadfile --no-loadscope-reorder
}

[ -z "${PYTHON:-}" ] || command -v "$PYTHON" >/dev/null || fail "there is no PYTHON=$PYTHON"
case "${1:-}" in
  test)
    case "${*:2}" in
      '' | --soak | --container) ;;
      *) fail "test takes --soak, --container or nothing, not ${*:2}" 2 ;;
    esac
    install requirements-dev.lock
    run_tests "${@:2}"
    ;;
  install)
    extra=${*:2}
    case "$extra" in
      dev) install requirements-dev.lock ;;
      google | kubernetes | onnx | tensorboard)
        install requirements.lock
        install_extra "$extra"
        ;;
      *) fail "install takes google, kubernetes, onnx, tensorboard or dev, not ${extra:-nothing}" 2 ;;
    esac
    ;;
  '')
    install requirements.lock
    exec "$venv/bin/micronet" data
    ;;
  *)
    install requirements.lock
    exec "$venv/bin/micronet" "$@"
    ;;
esac
