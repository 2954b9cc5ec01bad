#!/usr/bin/env bash
# The first hour on a GPU: all that nothing without one can show, stage by stage, predictions next to results.
#
#   bench/first_hour.sh [--quick] [--device cuda] [--out DIR] [--data ARCHIVE] [STAGE...]
#
# Options and stages: bench/first_hour.sh --help. PYTHON names the interpreter whose torch, 2.11 or newer,
# knows the GPU: by default that of ./setup.sh, or python3 where there is none. WHEELS names a folder of wheels to install from where there is no network: of the packages
# of requirements.lock that the machine lacks (usually fastai, fastcore, fastdownload, fastprogress,
# fasttransform, plum-dispatch, beartype, structlog, tenacity, torchstat,
# python-fasthtml, starlette, itsdangerous, python-multipart) and of this project, for its metadata.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$root/.venv/bin/python
[ -x "$python" ] || python=python3
python=${PYTHON:-$python}
site=$root/build/first-hour-site

if [ -n "${WHEELS:-}" ] && [ ! -d "$site" ]; then
  "$python" -m pip install --quiet --no-index --no-deps --target "$site" "$WHEELS"/*.whl
fi
export PYTHONPATH="$root:$site${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" -m bench.first_hour "$@"
