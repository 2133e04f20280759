#!/usr/bin/env bash
# bash benchmarks/gpu/run.sh [OUT] [options of benchmarks.gpu.main]
#
# Measures bipline on this machine's GPU, without network. Where pydantic and the like are missing
# they come from build/gpu-bundle (python -m benchmarks.gpu.bundle), unpacked for this run alone.
set -euo pipefail
out=$(realpath -m "${1:-build/gpu-results}")
shift $(($# > 0))
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
bundle=$PWD/build/gpu-bundle/wheels
site=$PWD/build/gpu-site
needed="import pydantic, rich, typer"

if ! "$python" -c "$needed" 2>/dev/null; then
  if ! compgen -G "$bundle/*.whl" >/dev/null; then
    echo "error: $bundle holds no wheels; make them with python -m benchmarks.gpu.bundle" >&2
    exit 3
  fi
  rm -rf "$site"
  # A wheel is an archive of what it installs. An environment made by another environment's python
  # would not see that one's packages, so none is made.
  for wheel in "$bundle"/*.whl; do
    "$python" -m zipfile -e "$wheel" "$site"
  done
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
  "$python" -c "$needed"
fi
exec "$python" -u -m benchmarks.gpu.main --out "$out" "$@"
