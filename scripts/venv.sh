# For the other scripts to source: `make_venv DIR MINOR` makes an environment with the project in DIR, with Python 3.MINOR or
# newer. It installs only if pyproject.toml has changed since the last time. PYTHON=... chooses the Python to use.

python_at_least() { # 3.MINOR
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 ${PYENV_ROOT:-$HOME/.pyenv}/versions/3.*/bin/python}; do
        if "$candidate" -c "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, $1))" 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

make_venv() { # DIR MINOR
    if [ ! -x "$1/bin/python" ]; then
        made_by=$(python_at_least "$2") || {
            echo "error: no Python 3.$2 or newer with venv and pip found" >&2
            echo "hint: install one (Debian, Ubuntu: apt install python3 python3-venv), or PYTHON=/path/to/python $0" >&2
            return 1
        }
        "$made_by" -m venv "$1"
    fi
    wanted=$(cksum <pyproject.toml)
    if [ "$(cat "$1/installed" 2>/dev/null)" != "$wanted" ]; then
        echo "installing into $1" >&2
        # --no-compile saves a minute: most installed files are never imported.
        "$1/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile --editable ".[dev,s3]" >&2
        echo "$wanted" >"$1/installed"
    fi
}
