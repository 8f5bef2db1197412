#!/bin/sh
# Prints the versions that .venv holds, without this project, torch's build tag and CUDA's packages (torch names those itself).
echo "# Made by \`make lock\`. What the two commands install; the ranges are in pyproject.toml."
.venv/bin/python -m pip freeze --exclude-editable | grep -viE '^(vdmreason|nvidia|triton|cuda|uv==)' | sed -E 's/ @ .*//; s/\+cpu$//'
