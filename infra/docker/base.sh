#!/bin/sh
# A base for the Dockerfile without Docker's registry: Debian's smallest with Python, as a tar file
# on standard output. Needs root and mmdebstrap: sh infra/docker/base.sh | podman import - base
set -eu
# Licences stay; pages, translations and other documents do not.
exec mmdebstrap --quiet --variant=minbase --include=python3.11,python3.11-venv,ca-certificates \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    bookworm -
