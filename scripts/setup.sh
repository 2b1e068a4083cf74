#!/usr/bin/env bash
# Make the virtual environment; `make setup` calls it. Usage: scripts/setup.sh FOLDER
#
# PYTHON names the interpreter; without it FOLDER keeps the one that it has, and a new FOLDER gets the
# newest of Python 3.13, 3.12 and 3.11 that is installed.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1
cpu_builds=https://download.pytorch.org/whl/cpu

say() { echo "medvq: $*" >&2; }

# A command may exist and not run, as those of pyenv do for versions that are not selected.
runs() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; }

if [ -z "${PYTHON:-}" ] && runs "$venv/bin/python"; then
    say "1 of 3: $venv is there, $("$venv/bin/python" --version)"
else
    for python in ${PYTHON:-python3.13 python3.12 python3.11 python3}; do
        runs "$python" && break
        python=
    done
    if [ -z "$python" ]; then
        say "no Python 3.11 to 3.13 runs here${PYTHON:+ under the name $PYTHON}; install one, or" \
            "name it: make setup PYTHON=/path/to/python"
        exit 2
    fi
    say "1 of 3: $("$python" --version) ($python) into $venv"
    "$python" -m venv --clear "$venv"
fi
install() { "$venv/bin/pip" install --quiet --disable-pip-version-check "$@"; }
# What is installed is what the lock has the hashes of.
locked() { install --require-hashes --requirement "$@"; }
# Print the requirements of the lock whose names do, or do not (!), begin with a pattern.
requirements() { awk "/^[a-z]/ {chosen = $1 /^($2)/} chosen" requirements.lock; }

# PyPI's torch for Linux brings CUDA, gigabytes that are of no use without an NVIDIA GPU. Builds for
# the CPU have versions such as 2.13.0+cpu; pip may know a place of its own for them (find-links).
lock=requirements.lock
if [ "$(uname -s)" != Linux ]; then
    say "2 of 3: torch, about 100 MB, comes with the others"
elif command -v nvidia-smi >/dev/null; then
    say "2 of 3: torch for the NVIDIA GPU, about 3 GB to download (10 minutes at 5 MB/s), comes with" \
        "the others"
else
    say "2 of 3: torch for the CPU, about 200 MB, as there is no nvidia-smi here"
    requirements "" "torch==" | sed 's/^torch==[0-9.]*/&+cpu/' >"$venv/torch.lock"
    requirements ! "torch==|triton==|cuda-|nvidia-" | cat "$venv/torch.lock" - >"$venv/cpu.lock"
    if locked "$venv/torch.lock" --no-deps --retries 1 --timeout 15 --extra-index-url "$cpu_builds" \
        2>/dev/null; then
        lock=$venv/cpu.lock
    else
        say "$(grep -o '^torch==[^ ]*' "$venv/torch.lock") cannot be had (from $cpu_builds or pip's" \
            "own places): the build for CUDA is installed instead, about 3 GB to download and 6 GB on" \
            "disk"
    fi
fi

say "3 of 3: the packages of requirements.lock, about 300 MB without torch (one to three minutes)"
locked "$lock"
# Built with what the lock has, too.
install --no-deps --no-build-isolation --editable .
say "ready: $(du -sh "$venv" | cut -f 1) in $venv"
