#!/usr/bin/env bash
# Builds the container image with Docker where its engine answers, else with buildah (as root, no
# engine and no kernel features needed).
#
#   deploy/build-image.sh [--bootstrap] [TAG]        default TAG: xmoe
#
# --bootstrap makes the base image from Debian packages with debootstrap, for machines that reach a
# Debian mirror (MIRROR; default: the one that apt uses) but no image registry; buildah only. BASE
# names another base image.
set -eu
cd "$(dirname "$0")/.."
bootstrap=0
if [ "${1:-}" = --bootstrap ]; then
    bootstrap=1
    shift
fi
tag=${1:-xmoe}
base=${BASE:-debian:12-slim}

if [ "$bootstrap" -eq 0 ] && command -v docker >/dev/null && docker info >/dev/null 2>&1; then
    exec docker build --build-arg BASE="$base" -f deploy/Dockerfile -t "$tag" .
fi
deploy/install-deps.sh container
export BUILDAH_ISOLATION=${BUILDAH_ISOLATION:-chroot}

# The mirrors that this machine's apt uses.
sites() {
    apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | sort -u | grep '/debian'
}

# A minimal Debian without what official slim images leave out too.
bootstrap_base() {
    local root container mirror site
    mirror=${MIRROR:-$(sites | grep -v security | head -n 1)}
    root=$(mktemp -d)
    debootstrap --variant=minbase bookworm "$root" "$mirror" >&2
    for site in $(sites); do
        case $site in
        *-security) echo "deb $site bookworm-security main" ;;
        *) echo "deb $site bookworm main" ;;
        esac
    done >"$root/etc/apt/sources.list"
    cat >"$root/etc/dpkg/dpkg.cfg.d/slim" <<'RULES'
path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
path-exclude /usr/share/man/*
path-exclude /usr/share/info/*
path-exclude /usr/share/locale/*
path-exclude /usr/share/lintian/*
RULES
    find "$root/usr/share/doc" -mindepth 2 ! -name copyright ! -type d -delete
    rm -rf "$root"/usr/share/{man,info,locale,lintian}/* "$root"/var/cache/apt/* \
        "$root"/var/lib/apt/lists/* "$root"/var/log/*
    container=$(buildah from scratch)
    tar -C "$root" -cf "$root.tar" .
    buildah add --quiet "$container" "$root.tar" / >&2
    buildah config --cmd /bin/bash "$container"
    buildah commit --quiet --format docker "$container" localhost/xmoe-base >&2
    buildah rm "$container" >&2
    rm -rf "$root" "$root.tar"
}

if [ "$bootstrap" -eq 1 ]; then
    bootstrap_base
    base=localhost/xmoe-base
fi
# The docker format: OCI images have no HEALTHCHECK.
buildah build --format docker --build-arg BASE="$base" -f deploy/Dockerfile -t "$tag" .
buildah images "$tag"
