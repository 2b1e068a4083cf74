#!/usr/bin/env bash
# Look for known vulnerabilities of what requirements.lock pins; `make audit` calls it.
# Usage: scripts/audit.sh PIP_AUDIT
set -euo pipefail
cd "$(dirname "$0")/.."
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if "$1" --vulnerability-service osv --disable-pip --require-hashes --progress-spinner off \
    --requirement requirements.lock 2>"$log"; then
    tail -n 1 "$log"
elif grep -q "ConnectionError\|Timeout" "$log"; then
    echo "medvq: nothing was audited: the database of vulnerabilities, api.osv.dev, cannot be reached" >&2
else
    tail -n 5 "$log" >&2
    exit 1
fi
