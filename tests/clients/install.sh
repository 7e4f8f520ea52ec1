#!/bin/sh
# Installs the real clients that the tests run into DIR; quick where they are already.
# usage: install.sh DIR. Tests find them by RDEV_TEST_CLIENTS=DIR.
set -eu
mkdir -p "${1:?usage: install.sh DIR}"
dir=$(cd "$1" && pwd)
cd "$(dirname "$0")"

wanted=$(cat requirements.txt package-lock.json | cksum)
test "$(cat "$dir/installed" 2>/dev/null)" != "$wanted" || exit 0

missing() {
    echo "missing: $1. Install the package and run this again." >&2
    exit 1
}
command -v python3 >/dev/null 2>&1 || missing "python3 (Debian: python3, python3-venv)"
python3 -c 'import ensurepip, venv' 2>/dev/null || missing "Python's venv (Debian: python3-venv)"
command -v node >/dev/null 2>&1 || missing "node (Debian: nodejs, npm)"
command -v npm >/dev/null 2>&1 || missing "npm (Debian: npm)"

echo "installing the tests' clients into $dir" >&2
rm -rf "$dir/venv" "$dir/node_modules" "$dir/installed"
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
cp package.json package-lock.json "$dir"
(cd "$dir" && npm ci --silent --ignore-scripts --no-audit --no-fund >&2)
echo "$wanted" >"$dir/installed"
