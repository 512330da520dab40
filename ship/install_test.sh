#!/bin/bash
# Install a wheel on Debian 12 and 13, which have no compiler, and use it there as a person would.
#
#     ship/install_test.sh [--tests] WHEEL        as root; `make install-test` calls it
#
# mmdebstrap makes the systems once, in the cache. Wheels of what xenemu needs are fetched here, and
# installed there without a network. With --tests, the main parts of the test suite run on Debian 13,
# with its compiler and its Python 3.13; or those that the variable TESTS names.
set -eu
cd "$(dirname "$0")/.."

[ "${1:-}" = --tests ] && { tests=yes; shift; }
wheel=$(realpath "$1")
cache=${XDG_CACHE_HOME:-$HOME/.cache}/xenemu
bin=$PWD/.venv/bin
scratch=$(mktemp -d)
trap 'rm -rf --one-file-system "$scratch"' EXIT
declare -A python=([bookworm]=3.11 [trixie]=3.13)
USED=python3-venv,busybox-static,zsh,fish
BUILDS=gcc,libc6-dev,binutils,make,gdb,cpio,file,man-db,procps
MAIN="${TESTS:-tests/hv tests/pv tests/pvh tests/cpu tests/entries tests/image tests/hypercalls tests/abi
    tests/dom0 tests/machine tests/recording tests/guests tests/smoke tests/cli tests/gdb
    tests/test_machine.py tests/test_snapshot.py tests/test_packaging.py tests/test_debian.py}"

# A system of Debian's, as a directory; its path.
system() {
    local suite=$1 packages=$2 path=$cache/systems/$1-$3
    [ -e "$path.whole" ] || {
        echo "$suite: making the system" >&2
        rm -rf --one-file-system "$path"
        mkdir -p "$cache/systems"
        mmdebstrap --quiet --variant=minbase --include="$packages" \
            --aptopt='APT::Install-Recommends "false"' "$suite" "$path" >&2
        touch "$path.whole"
    }
    echo "$path"
}

# What a wheel needs, as wheels for a Python: nothing may have to be compiled.
fetch() {
    local version=$1 folder=$2 platforms
    shift 2
    platforms=$(printf -- '--platform %s ' manylinux_2_{34,31,28,27,24,17,12,5}_x86_64 \
        manylinux2014_x86_64 manylinux1_x86_64 linux_x86_64)
    # shellcheck disable=SC2086
    "$bin/pip" download -qq --only-binary :all: --implementation cp --python-version "$version" \
        $platforms -d "$folder" "$@"
}

# Run a shell's text in a system, as a user; /work there is a directory of here, with the images.
inside() {
    local path=$1 here=$2 text=$3
    unshare --mount --pid --fork -- bash -eu -c '
        mount --make-rprivate /
        mount --bind "$1" "$1"
        mkdir -p "$1/work"
        mount --bind "$2" "$1/work"
        mount --bind "$4" "$1/work/.cache/xenemu/images"
        mount -o remount,bind,ro "$1/work/.cache/xenemu/images"
        mount -t proc proc "$1/proc"
        mount --rbind /dev "$1/dev"
        mount -t tmpfs -o mode=1777 tmp "$1/tmp"
        exec chroot --userspec=1000:1000 "$1" env -i HOME=/work LANG=C.UTF-8 PATH=/usr/bin:/bin \
            PIP_NO_INDEX=1 PIP_FIND_LINKS=/work/wheels PIP_DISABLE_PIP_VERSION_CHECK=1 \
            bash -eu -c "cd /work; $3"
    ' inside "$path" "$here" "$text" "$cache/images"
}

used() {
    local suite=$1 place=$scratch/$1
    mkdir -p "$place/wheels" "$place/.cache/xenemu/images"
    cp "$wheel" "$scratch/hello" "$scratch/vmlinuz" "$scratch/initrd.gz" ship/used.sh "$place"
    fetch "${python[$suite]}" "$place/wheels" "$wheel"
    chown -R 1000:1000 "$place"
    inside "$(system "$suite" $USED used)" "$place" "bash used.sh"
    echo "$suite: all is well"
}

tested() {
    local place=$scratch/tests
    mkdir -p "$place/wheels" "$place/.cache/xenemu/images"
    git archive HEAD --prefix=xenemu/ | tar x -C "$place"
    fetch "${python[trixie]}" "$place/wheels" "$wheel[test]" 'setuptools>=77' wheel
    chown -R 1000:1000 "$place"
    inside "$(system trixie "$USED,$BUILDS" tested)" "$place" "
        cd xenemu; python3 -m venv .venv; .venv/bin/pip install -q -e '.[test]'
        .venv/bin/python -m pytest -q $(echo $MAIN)"
}

"$bin/python" guests/fetch.py debian-cloud-amd64 busybox
"$bin/python" guests/build.py hello
cp guests/hello/build/hello-pv64 "$scratch/hello"
cp -L "$("$bin/python" guests/fetch.py --path debian-cloud-amd64)" "$scratch/vmlinuz"
"$bin/python" guests/initramfs.py "$scratch/initrd.gz" --busybox \
    "$("$bin/python" guests/fetch.py --path busybox)"
used bookworm
used trixie
[ -z "${tests:-}" ] || tested
