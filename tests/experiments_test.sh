#!/usr/bin/env bash
# The scripts of tools/experiments: the queue from nothing to a table, on models of a few thousand
# parameters, and the figures on numbers that are known. BUILD names the directory of the programs.
set -u
cd "$(dirname "$0")/.." || exit 1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
WORK=$work BUILD=${BUILD:-build} python3 -B -m unittest -q tests/experiments_test.py
