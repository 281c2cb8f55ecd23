#!/usr/bin/env bash
# The scripts of tools/experiments: the queue from nothing to a table, on models of a few thousand
# parameters, and the figures on numbers that are known; then whether the tables of the README are those
# of the committed results. BUILD names the directory of the programs.
set -u
cd "$(dirname "$0")/.." || exit 1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
WORK=$work BUILD=${BUILD:-build} python3 -B -m unittest -q tests/experiments_test.py || exit 1
python3 -B tools/experiments/table.py check
