#!/bin/sh
# Installs the Debian packages that xmoe needs, and only those that are missing. The one place where
# dependencies are named; the Makefile, the Dockerfile and CI all call it.
#
#   deploy/install-deps.sh [build] [runtime] [mpi] [test] [lint] [container] [monitor] [browser]
#                          [experiments]
#
# Without a group: build.
set -eu

build="gcc libc6-dev make pkg-config libmicrohttpd-dev libcjson-dev libopenblas-pthread-dev libpcre2-dev
       libcurl4-openssl-dev"
runtime="libmicrohttpd12 libcjson1 libopenblas0-pthread libpcre2-8-0 libcurl4"
mpi="libopenmpi-dev openmpi-bin" # for xmoe-train-mpi, which is made where there is an MPI
test="libcmocka-dev curl python3 xz-utils"
lint="clang-format clang-tidy cppcheck"
container="buildah debootstrap"
experiments="python3-matplotlib" # for the plots of tools/experiments
browser="chromium chromium-driver python3-selenium"
monitor="prometheus" # for promtool and a scrape in the tests; as a service nobody needs it here

packages=
for group in "${@:-build}"; do
    case $group in
    build) packages="$packages $build" ;;
    runtime) packages="$packages $runtime" ;;
    mpi) packages="$packages $mpi" ;;
    test) packages="$packages $build $mpi $test" ;;
    lint) packages="$packages $build $mpi $lint" ;;
    container) packages="$packages $container" ;;
    monitor) packages="$packages $monitor" ;;
    browser) packages="$packages $browser" ;;
    experiments) packages="$packages $experiments" ;;
    *)
        echo "install-deps.sh: unknown group '$group' (build, runtime, mpi, test, lint, container, monitor, browser, experiments)" >&2
        exit 2
        ;;
    esac
done

missing=
for package in $packages; do
    status=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

as_root=
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || {
        echo "install-deps.sh: these packages are missing, install them as root:$missing" >&2
        exit 1
    }
    as_root=sudo
fi
echo "installing:$missing" >&2
export DEBIAN_FRONTEND=noninteractive
$as_root apt-get update -qq
# shellcheck disable=SC2086
$as_root apt-get install -y -qq --no-install-recommends $missing >/dev/null
