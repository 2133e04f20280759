#!/bin/sh
# Audit each alias of aliases.txt (a line each, such as models:/acme-7m-pruned@production), and put what
# was found into the audit bucket. Ends with 1 where anything differs, 3 where something was not there.
set -u
day=$(date -u +%Y-%m-%dT%H%M%SZ)
worst=0
while read -r alias; do
  [ -n "$alias" ] || continue
  found=${TMPDIR:-/tmp}/found.json
  rm -f "$found"
  bipline audit "$alias" --json "$found"
  code=$?
  [ "$code" -gt "$worst" ] && worst=$code
  [ -f "$found" ] || continue
  key="$day/$(printf %s "$alias" | tr -c 'A-Za-z0-9.@\n-' _).json"
  python -c 'import sys, boto3; boto3.client("s3").upload_file(*sys.argv[1:])' \
    "$found" "$AUDIT_BUCKET" "$key" || worst=3
done < "$(dirname "$0")/aliases.txt"
exit "$worst"
