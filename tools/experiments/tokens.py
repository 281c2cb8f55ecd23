#!/usr/bin/env python3
"""Which tokens take many experts, and whether experts specialise by domain.

    tokens.py --corpus DIR --work DIR RUN-sSEED

Traces a trained run (queue.py) over the first documents of each test text and over a text that
changes language with every paragraph, and writes results/tokens-RUN.csv (mean experts per class of
token, domain and layer) and results/domains-RUN.csv (mutual information of expert and domain).

A class is that of the token which the router sees. Mutual information is that of the pair (expert
chosen, domain of its document) over all choices, domains weighed equally; the baseline is the same
with the domains of whole documents shuffled, so that what documents alone explain is in it too.
"""
import argparse
import collections
import csv
import math
import pathlib
import random
import re
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import read_trace  # noqa: E402

HERE = pathlib.Path(__file__).resolve().parent
DOMAINS = ("en", "fr", "de", "code")
DOCUMENTS = 12      # of each domain
SHUFFLES = 50
SWITCH_TOKENS = 8   # after a change of language
END_OF_TEXT = 256
SEPARATOR = "<|endoftext|>\n"


def token_bytes(directory):
    """The bytes of every token: merges of two earlier ones."""
    tokens = [bytes([i]) for i in range(256)] + [b""]
    with open(directory / "vocabulary.txt") as file:
        next(file)
        for line in file:
            left, right = map(int, line.split())
            tokens.append(tokens[left] + tokens[right])
    return tokens


def is_letter(text):
    return bool(text) and text[0].isalpha()


def classify(before, token, after):
    """Of a token's text, given its neighbours'."""
    word = token.lstrip(" ")
    if token == "":
        return "start of document"
    if not word.strip():
        return "white space"
    if word[0].isdigit():
        return "digits"
    if not is_letter(word):
        return "punctuation" if word.isascii() or not word.isalnum() else "other"
    if not token.startswith(" ") and is_letter(before[-1:]):
        return "continuation of a word"
    whole = not is_letter(after)
    sentence_start = re.search(r"[.!?:\n\"”»]\s*$", before) is not None or not before
    if word[0].isupper() and word[1:].islower() and not sentence_start:
        return "capitalised inside a sentence"
    return "whole word" if whole else "first part of a word"


def trace(binaries, directory, text, documents):
    path = directory / "trace.xmt"
    subprocess.run(["nice", "-n", "19", binaries / "xmoe-eval", "--quiet", "--csv", "--model",
                    directory / "model.gguf", "--documents", str(documents), "--trace", path, text],
                   check=True, stdout=subprocess.DEVNULL)
    return list(read_trace.read(path))


def split_documents(positions):
    documents = []
    for item in positions:
        if item.token == END_OF_TEXT or not documents:
            documents.append([])
        documents[-1].append(item)
    return documents


def count_classes(domain, documents, tokens, sums):
    for document in documents:
        texts = [tokens[item.token].decode("utf-8", "replace") for item in document]
        for i, item in enumerate(document):
            before = texts[i - 1] if i > 0 else ""
            kind = classify(before, texts[i], texts[i + 1] if i + 1 < len(texts) else "")
            for layer, chosen in item.layers.items():
                for name in (kind, "all"):
                    entry = sums[(domain, name, layer)]
                    entry[0] += 1
                    entry[1] += len(chosen)


def mixed_text(corpus, path):
    """Paragraphs of English, French and German in turn, 60 to a document."""
    paragraphs = [[p for p in (corpus / f"{d}.test.txt").read_text().split("\n\n")
                   if 200 < len(p) < 500 and SEPARATOR.strip() not in p] for d in DOMAINS[:3]]
    turns = [p for turn in zip(*paragraphs) for p in turn][:240]
    texts = ["\n\n".join(turns[i:i + 60]) for i in range(0, len(turns), 60)]
    path.write_text(SEPARATOR.join(text + "\n" for text in texts))


def count_switches(documents, tokens, sums):
    for document in documents:
        since, text = 0, ""
        for item in document:
            text = (text + tokens[item.token].decode("utf-8", "replace"))[-4:]
            since = 0 if text.endswith("\n\n") else since + 1
            name = (f"first {SWITCH_TOKENS} after a change of language" if since < SWITCH_TOKENS
                    else "later in the paragraph")
            for layer, chosen in item.layers.items():
                entry = sums[("mixed", name, layer)]
                entry[0] += 1
                entry[1] += len(chosen)


def information(tables, labels):
    """Of expert and domain in bits; tables: choices of each expert, one a document."""
    joint = collections.defaultdict(lambda: collections.Counter())
    for table, label in zip(tables, labels):
        joint[label].update(table)
    shares = {label: {e: n / sum(t.values()) for e, n in t.items()} for label, t in joint.items()}
    mean = collections.Counter()
    for share in shares.values():
        for expert, p in share.items():
            mean[expert] += p / len(shares)
    return sum(p / len(shares) * math.log2(p / mean[expert])
               for share in shares.values() for expert, p in share.items() if p > 0)


def measure_domains(documents):
    """Rows of layer, information, mean and standard deviation of the shuffled."""
    labels = [domain for domain, _ in documents]
    layers = sorted(documents[0][1][0].layers)
    for layer in layers:
        tables = [collections.Counter(e for item in d for e, _ in item.layers[layer])
                  for _, d in documents]
        shuffled = []
        for seed in range(SHUFFLES):
            order = labels[:]
            random.Random(seed).shuffle(order)
            shuffled.append(information(tables, order))
        mean = sum(shuffled) / SHUFFLES
        deviation = math.sqrt(sum((x - mean) ** 2 for x in shuffled) / (SHUFFLES - 1))
        yield layer, information(tables, labels), mean, deviation


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--corpus", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    directory, binaries = arguments.work / arguments.run, arguments.work / "bin"
    tokens = token_bytes(directory)
    sums = collections.defaultdict(lambda: [0, 0])
    documents = []
    for domain in DOMAINS:
        parts = split_documents(trace(binaries, directory,
                                      arguments.corpus / f"{domain}.test.txt", DOCUMENTS))
        count_classes(domain, parts, tokens, sums)
        documents += [(domain, part) for part in parts]
    mixed = directory / "mixed.txt"
    mixed_text(arguments.corpus, mixed)
    count_switches(split_documents(trace(binaries, directory, mixed, DOCUMENTS)), tokens, sums)
    with open(HERE / "results" / f"tokens-{arguments.run}.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("domain", "class", "layer", "tokens", "mean_active"))
        for (domain, kind, layer), (count, active) in sums.items():
            writer.writerow((domain, kind, layer, count, f"{active / count:.4f}"))
    with open(HERE / "results" / f"domains-{arguments.run}.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("layer", "bits", "shuffled_mean", "shuffled_deviation"))
        for row in measure_domains(documents):
            writer.writerow((row[0], *(f"{x:.5f}" for x in row[1:])))


if __name__ == "__main__":
    main()
