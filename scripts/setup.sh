#!/usr/bin/env bash
# Makes this checkout ready to run: system packages (apt, when we are root), then .venv.
#
#   scripts/setup.sh run      what `puzzlefs` itself and `make demo` need
#   scripts/setup.sh dev      that, and everything `make check` needs
#   scripts/setup.sh bench    what `puzzlefs` needs, and the peers and the plots of `make bench`
#   scripts/setup.sh verity   kernel and emulator of the virtual machine that tests fs-verity
#   scripts/setup.sh original the original implementation's programs, which tests and `make bench` compare with
#
# Safe to repeat and quick when nothing is missing: packages are asked for by name, and .venv carries a stamp
# made of everything that decides its contents. Only `.venv` and `__pycache__` are written inside the checkout.
# PYTHON=... chooses the interpreter (3.11 or newer) for a new .venv.
# With CI=true a system package that cannot be installed is an error; elsewhere it is a warning, because only
# the tests that need it are lost, and each of them says so.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
venv=$root/.venv
export DEBIAN_FRONTEND=noninteractive DEBCONF_NONINTERACTIVE_SEEN=true
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

RUN_PACKAGES=(ca-certificates fuse3 libfuse3-dev pkg-config gcc libc6-dev)
DEMO_PACKAGES=(debootstrap)
TEST_PACKAGES=(capnproto skopeo umoci fsverity squashfs-tools squashfuse runc acl attr jq e2fsprogs libcap2-bin
               rsync strace fio busybox-static procps util-linux mount uidmap fuse-overlayfs
               buildah libarchive-tools tree)
BENCH_PACKAGES=(casync erofs-utils squashfs-tools squashfuse borgbackup restic e2fsprogs util-linux mount)

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }
seconds_since() { awk -v start="$1" -v now="$EPOCHREALTIME" 'BEGIN { printf "%.1f s", now - start }'; }

# --- system packages ---------------------------------------------------------------------------------------

have_apt() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }

# The packages of "$@" that are not installed, one per line; nothing on a machine without dpkg.
missing_packages() {
    command -v dpkg-query >/dev/null || return 0
    local package
    for package in "$@"; do
        [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || echo "$package"
    done
}

apt_updated=
apt_install() {
    if [ -z "$apt_updated" ]; then
        # One unreachable source must not stop us: the package may well come from another.
        apt-get -q update </dev/null >&2 || say "apt-get update failed; going on with the package lists there are"
        apt_updated=yes
    fi
    # INITRD=No: a kernel that only ever boots inside the tests needs no initramfs on this machine.
    INITRD=No apt-get -q -y -o DPkg::Lock::Timeout=600 -o Dpkg::Options::=--force-confold \
        install --no-install-recommends "$@" </dev/null >&2
}

lost() {
    say "$*"
    if [ "${CI:-}" = true ]; then exit 1; fi
}

# Installs what is missing of "$@".
need_packages() {
    local missing known=() unknown=() package start=$EPOCHREALTIME
    mapfile -t missing < <(missing_packages "$@")
    [ "${#missing[@]}" -gt 0 ] || return 0
    if ! have_apt; then
        lost "missing system packages; as root: apt-get install ${missing[*]}"
        return 0
    fi
    say "installing ${missing[*]}"
    if ! apt_install "${missing[@]}"; then
        # A distribution that lacks one package refuses the whole list: take those it has.
        for package in "${missing[@]}"; do
            if apt-cache show "$package" >/dev/null 2>&1; then known+=("$package"); else unknown+=("$package"); fi
        done
        [ "${#unknown[@]}" -eq 0 ] || lost "this distribution has no package ${unknown[*]}"
        [ "${#known[@]}" -eq 0 ] || apt_install "${known[@]}" || lost "apt-get could not install ${known[*]}"
    fi
    say "system packages: $(seconds_since "$start")"
}

# --- python ------------------------------------------------------------------------------------------------

# Prints the interpreter proper (behind pyenv's shims and any active virtual environment), if it is new enough.
interpreter() {
    "$1" -c 'import sys
if sys.version_info < (3, 11): raise SystemExit(1)
print(getattr(sys, "_base_executable", None) or sys.executable)' 2>/dev/null
}

find_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        interpreter "$PYTHON" || fail "PYTHON=$PYTHON is not a Python of version 3.11 or newer"
        return
    fi
    for candidate in python3 python3.13 python3.12 python3.11 python3.14 /usr/bin/python3; do
        if interpreter "$candidate"; then return; fi
    done
    return 1
}

# A distribution's own Python comes in parts; one built from source (pyenv, /usr/local) has them all.
python_parts() {
    "$1" -c 'import importlib.util, pathlib, sys, sysconfig
if sys.base_prefix == "/usr":
    name = f"python3.{sys.version_info.minor}"
    if importlib.util.find_spec("ensurepip") is None:
        print(name + "-venv")
    if not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists():
        print(name + "-dev")'
}

make_venv() {
    local python parts
    if ! python=$(find_python); then
        [ -z "${PYTHON:-}" ] || exit 1
        if have_apt; then
            say "installing python3"
            apt_install python3 python3-venv python3-dev || fail "apt-get could not install python3"
        fi
        python=$(find_python) || fail "no Python of version 3.11 or newer found; install one, or name it with PYTHON=/path/to/python3"
    fi
    mapfile -t parts < <(python_parts "$python")
    if [ "${#parts[@]}" -gt 0 ]; then
        have_apt || fail "$python lacks parts; as root: apt-get install ${parts[*]}"
        say "installing ${parts[*]}"
        apt_install "${parts[@]}" || fail "apt-get could not install ${parts[*]}"
    fi
    say "making .venv with $("$python" -V) ($python)"
    "$python" -m venv --clear "$venv"
}

# Everything that decides what .venv holds. The path is part of it: scripts in a virtual environment name it.
stamp_text() {
    printf '%s\n' "$root"
    cat pyproject.toml scripts/setup.sh | sha256sum
}

venv_works() { "$venv/bin/python" -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' 2>/dev/null; }

# $1: run, dev or bench. "dev" and "bench" contain "run".
need_venv() {
    local what=$1 stamp start=$EPOCHREALTIME old= enough=("$venv/.stamp-$1")
    [ "$what" != run ] || enough+=("$venv/.stamp-dev" "$venv/.stamp-bench")
    for stamp in "${enough[@]}"; do
        if [ -x "$venv/bin/puzzlefs" ] && venv_works && [ "$(cat "$stamp" 2>/dev/null)" = "$(stamp_text)" ]; then
            return
        fi
        [ ! -e "$stamp" ] || old=$(head -n 1 "$stamp")
    done
    if ! venv_works || { [ -n "$old" ] && [ "$old" != "$root" ]; }; then
        make_venv
    fi
    for stamp in "$venv"/.stamp-*; do
        [ "$(cat "$stamp" 2>/dev/null)" = "$(stamp_text)" ] || rm -f "$stamp"
    done
    "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$venv/bin/python" -m ensurepip -q || make_venv
    # Dependency groups of pyproject.toml need pip 25.1; a fresh .venv brings the pip of its Python's day.
    "$venv/bin/python" -c 'import sys
from importlib.metadata import version
sys.exit(tuple(map(int, version("pip").split(".")[:2])) < (25, 1))' || "$venv/bin/python" -m pip install -q --upgrade 'pip>=25.1'
    say "installing Python packages ($what)"
    if [ "$what" = dev ]; then
        "$venv/bin/python" -m pip install -q --group dev --editable .
    elif [ "$what" = bench ]; then
        "$venv/bin/python" -m pip install -q --group bench --editable .
    else
        "$venv/bin/python" -m pip install -q --editable .
    fi || fail "pip failed; building pyfuse3 needs: ${RUN_PACKAGES[*]} and the headers of Python"
    stamp_text >"$venv/.stamp-$what"
    say "Python packages: $(seconds_since "$start")"
}

# An editable install compiles nothing, and where PYTHONDONTWRITEBYTECODE is set (containers, CI) nothing ever would:
# each start of `puzzlefs` would then parse all of its sources, which doubles the time that a mount takes to be ready.
compile_bytecode() { "$venv/bin/python" -m compileall -q puzzlefs exe; }

# --- the machine that tests fs-verity ----------------------------------------------------------------------

# A kernel that is there already will do: nobody wants a further one among the boot entries of a real machine.
have_kernel() {
    local image
    for image in /boot/vmlinuz-*; do
        if [ -r "$image" ] && [ -d "/lib/modules/${image#/boot/vmlinuz-}/kernel" ]; then return 0; fi
    done
    return 1
}

need_verity_machine() {
    local packages=() emulator
    case $(uname -m) in
        x86_64) emulator=qemu-system-x86 ;;
        aarch64) emulator=qemu-system-arm ;;
        *) say "no fs-verity test machine for $(uname -m)"; return 0 ;;
    esac
    if ! have_kernel; then
        if [ "$(id -u)" != 0 ] && compgen -G '/boot/vmlinuz-*' >/dev/null; then
            say "the kernels in /boot are not readable for this user: the tests in the virtual machine will be skipped"
        fi
        packages+=("linux-image-$(dpkg --print-architecture 2>/dev/null || echo amd64)")
    fi
    command -v "qemu-system-$(uname -m)" >/dev/null || packages+=("$emulator")
    packages+=(busybox-static fsverity e2fsprogs btrfs-progs file kmod udev)   # vng asks for `file` without depending on it
    need_packages "${packages[@]}"
}

# --- the original's programs ------------------------------------------------------------------------------

# Whoever lacks cargo loses only the tests that run them, and each of those says so.
need_original() {
    local start=$EPOCHREALTIME
    need_packages capnproto gcc libc6-dev
    "$venv/bin/python" scripts/original.py >&2 || say "without the original's programs"
    say "the original's programs: $(seconds_since "$start")"
}

# -----------------------------------------------------------------------------------------------------------

# Two makes at once must not build one .venv: the second waits here.
exec 9<pyproject.toml
flock 9

case ${1:-} in
    run)
        need_packages "${RUN_PACKAGES[@]}"
        # Only root can debootstrap; others get the demonstration on a tree that is there already.
        [ "$(id -u)" != 0 ] || need_packages "${DEMO_PACKAGES[@]}"
        need_venv run
        compile_bytecode
        ;;
    dev)
        need_packages "${RUN_PACKAGES[@]}" "${DEMO_PACKAGES[@]}" "${TEST_PACKAGES[@]}"
        need_venv dev
        compile_bytecode
        ;;
    bench)
        need_packages "${RUN_PACKAGES[@]}" "${BENCH_PACKAGES[@]}"
        [ "$(id -u)" != 0 ] || need_packages "${DEMO_PACKAGES[@]}"
        need_venv bench
        compile_bytecode
        ;;
    verity) need_verity_machine ;;
    original)
        need_venv run
        need_original
        ;;
    *) fail "usage: scripts/setup.sh run|dev|bench|verity|original" ;;
esac
