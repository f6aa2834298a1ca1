#!/bin/sh
# Builds the images with podman and checks them in containers: infra/image_test/. For Debian, as root.
#
# The images are built in a folder of their own, which is removed at the end. With KEEP=1, they are
# built where this machine's podman keeps images, and stay there. The arguments go to pytest.
set -eu
cd "$(dirname "$0")/.."

[ "$(id -u)" = 0 ] || { echo "image-test: runs as root" >&2; exit 1; }
packages="podman runc conmon netavark aardvark-dns iptables debootstrap"
# shellcheck disable=SC2086
if ! dpkg-query --show $packages >/dev/null 2>&1; then
    apt-get update -q
    apt-get install -q -y --no-install-recommends $packages
fi

folder=$(mktemp -d)
storage=$PWD/build/image-test
clean_up() {
    podman rm --all --force --time 1 >/dev/null || true
    if [ "${KEEP:-}" != 1 ]; then
        podman rmi --all --force >/dev/null || true
        rm -rf "$storage"
    fi
    rm -rf "$folder"
}

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
trap clean_up EXIT
trap 'exit 1' INT TERM

ENGINE=podman infra/build_image.sh
.venv/bin/python -m pytest infra/image_test --verbose --capture=no --tb=short --timeout 1200 "$@"
