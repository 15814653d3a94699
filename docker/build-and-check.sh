#!/usr/bin/env bash
# Build the image and run `aqnet run` in it: read-only root file system, no network, no capabilities, not as root.
#
#   docker/build-and-check.sh
#
# Buildah where there is one (no daemon needed), else docker or podman; without any it says so and ends with 0.
# From the environment:
#   BASE           base image; without a registry, buildah makes one by debootstrap (as root)
#   TORCH_INDEX    package index of torch's CPU builds
#   PIP_CONF       pip configuration for the build: a secret mount, in no layer
#   BUILD_OPTIONS  further options of the builder, such as "--volume /srv/wheels:/srv/wheels:ro"
#   TAG            name of the image (aqnet-reanalysis:0.1.0)
#   WORK           folder for base, volumes and log (a temporary one, removed at the end)
#   CHECK_DEFAULT  1 runs the whole embedded default, a week of 590 stations; otherwise a day of 60
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "${BASH_SOURCE[0]}")/.."

TAG=${TAG:-aqnet-reanalysis:0.1.0}
SUITE=bookworm
SECONDS=0

say() { printf '%4d s  %s\n' "$SECONDS" "$*"; }
skip() { echo "SKIPPED the image: $*"; exit 0; }

engine() {
    if command -v buildah >/dev/null; then echo buildah
    elif docker info >/dev/null 2>&1; then echo docker
    elif podman info >/dev/null 2>&1; then echo podman
    fi
}

ENGINE=${ENGINE:-$(engine)}
[ -n "$ENGINE" ] || skip "no buildah, docker or podman that runs here (Debian: apt-get install buildah runc debootstrap)"
[ -n "${WORK:-}" ] || TEMPORARY=$(mktemp -d)
WORK=${WORK:-$TEMPORARY}
mkdir -p "$WORK"

cleanup() {
    [ -z "${CONTAINER:-}" ] || buildah rm "$CONTAINER" >/dev/null
    [ -z "${TEMPORARY:-}" ] || rm -rf "$TEMPORARY"
}
trap cleanup EXIT

# Build steps in a chroot need no runtime, no cgroup and no user namespace. (Where overlay mounts fail: STORAGE_DRIVER=vfs.)
export BUILDAH_ISOLATION=${BUILDAH_ISOLATION:-chroot}

debian() { # an image of Debian with Python and nothing else; prints its name
    local root="$WORK/base" container
    command -v debootstrap >/dev/null || skip "no registry answers, and there is no debootstrap"
    [ "$(id -u)" = 0 ] || skip "no registry answers, and debootstrap needs root"
    [ -d "$root/usr/lib/python3.11" ] || debootstrap --variant=minbase \
        --include=ca-certificates,python3-distutils,python3.11-venv "$SUITE" "$root" http://deb.debian.org/debian >&2
    rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
    container=$(buildah from scratch)
    buildah add --quiet "$container" "$root" / >/dev/null
    buildah commit --quiet --rm "$container" "localhost/debian-python:$SUITE" >/dev/null
    echo "localhost/debian-python:$SUITE"
}

base() { # the base to build on, where it is not the one of the Dockerfile
    if [ -n "${BASE:-}" ]; then echo "$BASE"
    elif [ "$ENGINE" = buildah ]; then
        local public
        public=$(sed -n 's/^ARG BASE=//p' docker/Dockerfile)
        timeout 120 buildah pull --quiet "$public" >/dev/null 2>&1 || debian
    fi
}

build() {
    local options=(--file docker/Dockerfile --tag "$TAG" --build-arg "CREATED=$(date -u +%Y-%m-%dT%H:%M:%SZ)")
    options+=(--build-arg "REVISION=$(git rev-parse HEAD 2>/dev/null || echo unknown)")
    [ -z "$BASE" ] || options+=(--build-arg "BASE=$BASE")
    [ -z "${TORCH_INDEX:-}" ] || options+=(--build-arg "TORCH_INDEX=$TORCH_INDEX")
    [ -z "${PIP_CONF:-}" ] || options+=(--secret "id=pip,src=$PIP_CONF")
    [ "$ENGINE" = docker ] || options+=(--format docker) # OCI's own format has no health check
    # shellcheck disable=SC2086 # BUILD_OPTIONS is words
    "$ENGINE" build "${options[@]}" ${BUILD_OPTIONS:-} .
}

volumes() { # folders that the container may write to, as its volumes are
    rm -rf "$WORK/volumes"
    install -d -o 10001 -g 10001 "$WORK"/volumes/{data,cache,state}
}

run_oci() { # buildah's image under runc or crun: chroot isolation alone would leave the root writable
    local runtime root environment
    runtime=$(command -v runc || command -v crun) || skip "built; running it needs runc or crun"
    CONTAINER=$(buildah from --quiet "$TAG")
    root=$(buildah mount "$CONTAINER")
    environment=$(buildah inspect --format '{{range .OCIv1.Config.Env}}"{{.}}",{{end}}' "$CONTAINER")
    [ -z "${CHECK_DEFAULT:-}" ] || environment+='"CHECK_DEFAULT=1",'
    mkdir -p "$WORK/bundle"
    sed -e "s|@ROOT@|$root|; s|@CHECK@|$PWD/docker/check|; s|@VOLUMES@|$WORK/volumes|; s|@ENVIRONMENT@|$environment|" \
        docker/check/runtime.json > "$WORK/bundle/config.json"
    leaks "$root"
    say "image: $(du -sm --apparent-size "$root" | cut -f1) MB unpacked"
    "$runtime" run --bundle "$WORK/bundle" "aqnet-check-$$"
}

run_engine() { # docker or podman
    local size
    size=$("$ENGINE" image inspect --format '{{.Size}}' "$TAG")
    say "image: $((size / 1000000)) MB"
    "$ENGINE" run --rm --read-only --network none --cap-drop ALL --security-opt no-new-privileges --tmpfs /tmp \
        --volume "$PWD/docker/check:/check:ro" --volume "$WORK/volumes/data:/data" \
        --volume "$WORK/volumes/cache:/var/cache/aqnet" --volume "$WORK/volumes/state:/var/lib/aqnet" \
        ${CHECK_DEFAULT:+--env CHECK_DEFAULT=1} --entrypoint /bin/sh "$TAG" /check/inside.sh
}

leaks() { # nothing of the pip configuration may lie in the image
    [ -n "${PIP_CONF:-}" ] || return 0
    local secret
    while read -r secret; do
        if grep -rqIF -- "$secret" "$1/etc" "$1/root" "$1/srv" "$1/opt/aqnet" "$1/var"; then
            echo "FAILED: the image holds '$secret' of $PIP_CONF" >&2
            exit 1
        fi
    done < <(sed -n 's/^[a-z-]* *= *//p' "$PIP_CONF" | grep /) # addresses and paths
    echo "ok     nothing of the pip configuration is in the image"
}

BASE=$(base)
case "$BASE" in SKIPPED*) echo "$BASE"; exit 0 ;; esac
say "building $TAG with $ENGINE${BASE:+ on $BASE}"
build
say "built"
volumes
if [ "$ENGINE" = buildah ]; then run_oci; else run_engine; fi
say "the image runs"
