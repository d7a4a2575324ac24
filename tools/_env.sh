# shellcheck shell=bash
# Sourced by install.sh, quickstart.sh and run_tests.sh: goes to the repository's root and puts the Python
# environment to use (the active one, else .venv) first on PATH, so that `python` means that one.
# MMLK_STACK=classic takes OpenMMLab's last own releases in place of the maintained forks, and .venv-classic.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

fail() {
    printf '\nerror: %s\n' "$1" >&2
    exit 1
}

# Debian keeps venv, headers and the compiler in packages of their own. Root (a container, CI) gets what is
# missing; anybody else gets the command.
need_packages() {
    local why=$1
    shift
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        fail "$why. On Debian or Ubuntu: sudo apt-get install -y $*"
    fi
    echo "$why: installing $* with apt-get (you are root)"
    apt-get update -qq </dev/null >/dev/null || true
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" \
        </dev/null >/dev/null || fail "apt-get could not install $*, and $why"
}

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python >= 3.11 on PATH, which the pinned packages need.
Install one, or name it:  PYTHON=/path/to/python3.11 bash $0"
}

make_venv() {
    local python version
    python=$(find_python) || exit 1
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        need_packages "Python $version has no venv module" "python$version-venv"
    echo "making a virtual environment in $1 with $("$python" --version)"
    "$python" -m venv "$1" || fail "'$python -m venv $1' failed"
}

MMLK_STACK=${MMLK_STACK:-onedl}
case $MMLK_STACK in
    onedl) venv=.venv ;;
    classic) venv=.venv-classic ;;
    *) fail "MMLK_STACK is onedl (the default) or classic, got $MMLK_STACK" ;;
esac

if [ -n "${VIRTUAL_ENV:-}" ]; then
    [ -x "$VIRTUAL_ENV/bin/python" ] ||
        fail "VIRTUAL_ENV is $VIRTUAL_ENV, which has no bin/python. Run 'deactivate' or 'unset VIRTUAL_ENV'."
    ENV_DIR=$VIRTUAL_ENV
elif [ -n "${CONDA_PREFIX:-}" ] && [ "${CONDA_DEFAULT_ENV:-base}" != base ]; then
    ENV_DIR=$CONDA_PREFIX
else
    ENV_DIR=$PWD/$venv
    [ -x "$ENV_DIR/bin/python" ] || make_venv "$ENV_DIR"
    export VIRTUAL_ENV=$ENV_DIR
fi
export PATH="$ENV_DIR/bin:$PATH"
unset PYTHONHOME
