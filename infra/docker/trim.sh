#!/bin/sh
# Leaves out of /opt/bipline what no run opens: tests of libraries, and torch's C++ headers and
# test programs. What stays is compiled here, on all cores: a pod cannot keep what it compiles.
set -eu
python=/opt/bipline/bin/python
site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
find "$site" -type d -name tests -prune -exec rm -r {} +
rm -rf "$site/torch/test" "$site/torch/include"
find "$site/torch/bin" -type f ! -name torch_shm_manager -delete
# A library may bring a file for another Python; it is named, and stays as it is.
"$python" -m compileall -q -j 0 "$site" || true
