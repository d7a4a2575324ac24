#!/usr/bin/env bash
# Builds the source distribution and the wheel into dist/ and checks them. With an argument, the tag that is released:
# v and the version of the package.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version=$(sed -n "s/^__version__ = '\(.*\)'$/\1/p" mmlk/__init__.py)
if [ $# -gt 0 ] && [ "$1" != "v$version" ]; then
    echo "error: the tag is $1 and mmlk/__init__.py says $version: tag v$version, or change the version" >&2
    exit 1
fi
grep -q "^## \[$version\] - [0-9]" CHANGELOG.md || {
    echo "error: CHANGELOG.md has no section '## [$version] - DATE'" >&2
    exit 1
}
python -m pip install --quiet 'build==1.6.1' 'twine==7.0.0'
rm -rf dist
python -m build
python -m twine check --strict dist/*
