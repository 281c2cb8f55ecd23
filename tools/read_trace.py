#!/usr/bin/env python3
"""Reads a trace of xmoe-eval --trace, in either of its forms, and sums it up per layer.

    tools/read_trace.py FILE.csv|FILE.xmt

As a module: read(path) yields a Position for each position of the text, in order:

    for position, token, layers in read("en.xmt"):
        for layer, chosen in layers.items():
            for expert, weight in chosen:        # in order of rank
                ...

The layout of .xmt files is described in tools/trace_file.h, with the same for numpy. Weights are
exact in CSV and have 11 significant bits in .xmt. A file that is cut or damaged is a ValueError.
"""

import collections
import csv
import struct
import sys

Position = collections.namedtuple("Position", "position token layers")

HEADER = struct.Struct("<4s7I2Q")


def read(path):
    with open(path, "rb") as file:
        binary = file.read(4) == b"XMTR"
    return read_binary(path) if binary else read_csv(path)


def read_csv(path):
    with open(path, newline="") as file:
        rows = csv.reader(file)
        if next(rows, None) != ["position", "token", "layer", "expert", "weight"]:
            raise ValueError(f"{path}: neither a CSV trace nor an .xmt file")
        current = None
        for row in rows:
            try:
                position, token, layer, expert = map(int, row[:4])
                weight = float(row[4])
            except (ValueError, IndexError):
                raise ValueError(f"{path}: line {rows.line_num} is damaged") from None
            if current is None or position != current.position:
                if current is not None:
                    yield current
                current = Position(position, token, {})
            current.layers.setdefault(layer, []).append((expert, weight))
        if current is not None:
            yield current


def read_binary(path):
    with open(path, "rb") as file:

        def take(layout, count):
            layout = f"<{count}{layout}"
            data = file.read(struct.calcsize(layout))
            if len(data) < struct.calcsize(layout):
                raise ValueError(f"{path}: the file ends too early")
            return struct.unpack(layout, data)

        header = file.read(HEADER.size)
        if len(header) < HEADER.size:
            raise ValueError(f"{path}: the file ends too early")
        _, version, length, experts, layer_count, width, _, name, total, _ = HEADER.unpack(header)
        if version != 1 or width not in (1, 2) or length < HEADER.size + 4 * layer_count + name:
            raise ValueError(f"{path}: not an .xmt file of version 1")
        numbers = take("I", layer_count)
        file.seek(length)
        index = "BH"[width - 1]
        position = 0
        while position < total:
            positions, choices = take("I", 2)
            tokens = take("i", positions)
            weights = take("e", choices)
            counts = take(index, positions * layer_count)
            chosen = take(index, choices)
            take("x", -(2 * choices + width * (len(counts) + choices)) % 4)
            if positions == 0 or sum(counts) != choices or max(chosen, default=0) >= experts:
                raise ValueError(f"{path}: position {position}: the block is damaged")
            pairs = zip(chosen, weights)
            cells = iter(counts)
            for token in tokens:
                layers = {n: [next(pairs) for _ in range(next(cells))] for n in numbers}
                yield Position(position, token, layers)
                position += 1


def main():
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    positions = 0
    counts = collections.defaultdict(collections.Counter)
    for _, _, layers in read(sys.argv[1]):
        positions += 1
        for layer, chosen in layers.items():
            counts[layer].update(expert for expert, _ in chosen)
    print(f"{positions} positions")
    for layer in sorted(counts):
        total = counts[layer].total()
        expert, most = counts[layer].most_common(1)[0]
        print(f"layer {layer}: {total / positions:.2f} experts per position, "
              f"most used: {expert} ({100 * most / total:.1f} %)")


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"read_trace.py: {error}")
