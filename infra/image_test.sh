#!/bin/sh
# Builds the images with podman and checks them in containers: infra/image_test/. For Debian, as root.
#
# The images are built in a folder of their own, which is removed at the end. With KEEP=1, they are
# built where this machine's podman keeps images, and stay there. The arguments go to pytest.
set -eu
cd "$(dirname "$0")/.."

[ "$(id -u)" = 0 ] || { echo "image-test: must run as root" >&2; exit 1; }
install() {
    DEBIAN_FRONTEND=noninteractive apt-get install --quiet --quiet --yes --no-install-recommends \
        podman runc conmon netavark aardvark-dns iptables debootstrap git make python3-venv >/dev/null
}
install 2>/dev/null || { apt-get update --quiet --quiet && install; }
make .venv/.installed-tests .venv-sam/.installed

folder=$(mktemp -d)
storage=$PWD/build/image-test
clean_up() {
    if [ "${KEEP:-}" = 1 ]; then
        podman ps --all --quiet --filter name=lambda-comfyui-test | xargs -r podman rm --force --time 1
    else
        podman rm --all --force --time 1 >/dev/null || true
        # What a build that was interrupted has mounted.
        umount --recursive --lazy "$storage/overlay" 2>/dev/null || true
    fi
    rm -rf "$storage" "$folder"
}
trap clean_up EXIT
trap 'exit 1' INT TERM

# runc and cgroupfs also work where there is no systemd. Nothing in /etc is changed.
cat >"$folder/containers.conf" <<CONF
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=4096:4096"]
[network]
network_backend = "netavark"
network_config_dir = "$folder/networks"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
CONF
cat >"$folder/storage.conf" <<CONF
[storage]
driver = "overlay"
graphroot = "$storage"
runroot = "$folder/run"
CONF
export CONTAINERS_CONF="$folder/containers.conf"
[ "${KEEP:-}" = 1 ] || export CONTAINERS_STORAGE_CONF="$folder/storage.conf"

started=$(date +%s)
# Builds write many gigabytes; /tmp can be in memory.
mkdir -p "$storage/tmp"
TMPDIR="$storage/tmp" ENGINE=podman infra/build_image.sh
echo "image: built in $(($(date +%s) - started)) s"
.venv/bin/python -m pytest infra/image_test --verbose --capture=no --tb=short --timeout 2400 "$@"
