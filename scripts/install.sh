#!/bin/sh
# Makes .venv and installs the locked versions into it; `scripts/install.sh dev` the tests' tools, too. On Linux without an
# NVIDIA GPU torch's CPU build is taken: the default one brings gigabytes of CUDA libraries. With a GPU, and on macOS, the
# default build is the right one. So it is on a login node whose .venv machines with a GPU share: say VDMREASON_TORCH=cuda there.
set -eu
cd "$(dirname "$0")/.."
PYTHON="${PYTHON:-python3}"
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "vdmreason needs Python 3.11 or newer; '$PYTHON' is $("$PYTHON" -V). Try: make PYTHON=python3.12" >&2; exit 2; }

[ -x .venv/bin/python ] || "$PYTHON" -m venv .venv
pip() { .venv/bin/python -m pip "$@"; }
torch=$(sed -n 's/^torch==//p' requirements.lock)

if [ "$(uname)" = Linux ] && [ "${VDMREASON_TORCH-}" != cuda ] && ! nvidia-smi -L >/dev/null 2>&1 && ! .venv/bin/python -c 'import torch' 2>/dev/null; then
    echo "No NVIDIA GPU here: installing torch's CPU build. For machines with one that share this .venv: VDMREASON_TORCH=cuda make"
    # First as pip is configured (a local wheel or index may offer it), then by uv, which knows torch's own CPU index.
    pip install -q "torch==$torch+cpu" 2>/dev/null || {
        pip install -q uv && .venv/bin/uv pip install -q --python .venv/bin/python --torch-backend=cpu "torch==$torch"
    } || {
        echo "torch's CPU build could not be had. Install it into .venv by hand (torch's site has the line), then run make again." >&2
        exit 2
    }
fi
pip install -q "torch==$torch"  # with a GPU, torch's own CUDA libraries come along here
pip install -q --no-deps -r requirements.lock  # the lock is whole: nothing is left to resolve
[ "${1-}" != dev ] || pip install -q --no-deps -r requirements-dev.lock
pip install -q --no-deps -e .
pip check  # the lock is whole, or this says what it lacks
echo "Installed into .venv."
