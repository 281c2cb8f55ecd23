"""Which tokens take many experts, and whether experts belong to domains: figures from the trace of a
model on the test text (xmoe-eval --trace). run.py calls it; it fills results/classes.csv,
results/experts.csv, results/specialisation.csv and results/switches.csv.

A position's experts work on the token that is read there, not on the one that is predicted.
"""
import collections
import math
import random
import re
import sys

import plan

sys.path.insert(0, str(plan.HERE.parent))
import read_trace  # noqa: E402

CLASSES = ("run", "seed", "domain", "class", "layer", "tokens", "mean_active", "error")
EXPERTS = ("run", "seed", "layer", "expert", *plan.DOMAINS)
SPECIALISATION = ("run", "seed", "layer", "measure", "bits", "shuffled_mean", "shuffled_most",
                  "p_value", "domain_entropy", "choices")
SWITCHES = ("run", "seed", "layer", "distance", "tokens", "steady", "switched", "difference", "error")

BEGIN = 256                   # the token that begins a document
SHUFFLES = 200
SHARED_TIMES = 50             # a token is shared if it appears so often in every domain
PASSAGE_BYTES = 300           # at least; whole lines
PAIRS = 48                    # of passages, per domain
DISTANCES = (0, 1, 2, 4, 8, 16, 32, 64, 1 << 30)  # tokens since a passage began: edges of the bins

WORD = re.compile(rb"[A-Za-z_\x80-\xff][0-9A-Za-z_\x80-\xff'\x92]*")
COMMENT = re.compile(rb"/\*.*?\*/", re.DOTALL)
KEYWORDS = frozenset(b"""auto break case char const continue default do double else enum extern float
    for goto if int long register return short signed sizeof static struct switch typedef union
    unsigned void volatile while""".split())


def is_worth_it(name):
    """Routers that always take all experts say nothing about domains."""
    return plan.is_moe(name) and not (plan.router(name) == "threshold"
                                      and float(plan.flag(plan.FLAGS[name], "--threshold")) >= 1)


def varies(name):
    """Whether the router takes more experts for one token than for another."""
    return plan.is_set_by_threshold(name)


def read_vocabulary(path):
    """The bytes of every token: engine/train/vocabulary.h says how the file is made."""
    lines = path.read_text().split("\n")
    tokens = [bytes([i]) for i in range(256)] + [b""]
    for line in lines[1:]:
        if line:
            left, right = map(int, line.split())
            tokens.append(tokens[left] + tokens[right])
    return tokens


def read_documents(trace):
    """Lists of (token, {layer: experts in order of rank}), one a document, BEGIN left out."""
    document = None
    for _, token, layers in read_trace.read(trace):
        if token == BEGIN:
            if document is not None:
                yield document
            document = []
        else:
            document.append((token, {layer: [expert for expert, _ in chosen]
                                     for layer, chosen in layers.items()}))
    if document is not None:
        yield document


# --- token classes ---------------------------------------------------------------------------------


def classify(pieces, domain):
    """The classes of each of a document's tokens, given as bytes: what it is, and for words where
    they stand. A name is a word with a capital that does not begin a sentence or a line; German
    writes all nouns so, hence only English and French."""
    text = b"".join(pieces)
    words = [(match.start(), match.end()) for match in WORD.finditer(text)]
    comments = [match.span() for match in COMMENT.finditer(text)] if domain == "code" else []
    classes, start, word, comment = [], 0, 0, 0
    for piece in pieces:
        end = start + len(piece)
        first = start + len(piece) - len(piece.lstrip())  # of what is not white space
        while word < len(words) and words[word][1] <= first:
            word += 1
        while comment < len(comments) and comments[comment][1] <= first:
            comment += 1
        inside = words[word] if word < len(words) and words[word][0] <= first < end else None
        found = [kind_of(text, first, end, inside)]
        if inside and inside[0] == first:
            found += word_classes(text, inside, domain)
        if comment < len(comments) and comments[comment][0] <= first:
            found.append("in a comment")
        classes.append(found)
        start = end
    return classes


def kind_of(text, first, end, word):
    if first == end:
        return "white space"
    if word:
        if word[0] < first:
            return "later part of a word"
        return "whole word" if word[1] <= end else "first part of a word"
    return "digits" if text[first:first + 1].isdigit() else "punctuation"


def word_classes(text, word, domain):
    if domain == "code":
        return ["keyword" if text[word[0]:word[1]] in KEYWORDS else "other word of code"]
    if domain == "de":
        return []
    before = text[:word[0]].rstrip(b" ")[-1:]
    if not (before.isalpha() or before in (b",", b";") or before >= b"\x80"):
        return []  # may begin a sentence, a line or a speech
    return ["name" if text[word[0]:word[0] + 1].isupper() else "not a name"]


class Means:
    """Mean active experts of classes, with the standard error over documents."""

    def __init__(self):
        self.sums = collections.defaultdict(lambda: collections.defaultdict(lambda: [0, 0]))

    def add(self, key, document, active):
        cell = self.sums[key][document]
        cell[0] += 1
        cell[1] += active

    def rows(self):
        for (domain, name, layer), documents in sorted(self.sums.items()):
            tokens = sum(count for count, _ in documents.values())
            mean = sum(active for _, active in documents.values()) / tokens
            squares = sum((active - mean * count) ** 2 for count, active in documents.values())
            n = len(documents)
            error = math.sqrt(squares * n / (n - 1)) / tokens if n > 1 else math.nan
            yield {"domain": domain, "class": name, "layer": layer, "tokens": tokens,
                   "mean_active": f"{mean:.4f}", "error": f"{error:.4f}"}


def class_means(documents, domains, tokens):
    """Rows of classes.csv. Classes overlap; the first of a token's is what it is."""
    means = Means()
    for i, (document, domain) in enumerate(zip(documents, domains)):
        classes = classify([tokens[token] for token, _ in document], domain)
        for (_, layers), found in zip(document, classes):
            for layer, experts in layers.items():
                for class_name in (*found, "every token"):
                    means.add((domain, class_name, layer), i, len(experts))
                means.add(("all", found[0], layer), i, len(experts))
                means.add(("all", "every token", layer), i, len(experts))
    return means.rows()


# --- experts and domains ---------------------------------------------------------------------------


def entropy(counts):
    total = sum(counts)
    return -sum(n / total * math.log2(n / total) for n in counts if n) if total else 0.0


def mutual_information(groups):
    """Bits that knowing the group tells about the item: groups are Counters of items."""
    groups = [group for group in groups if group]
    every = collections.Counter()
    for group in groups:
        every.update(group)
    total = every.total()
    return entropy(every.values()) - sum(group.total() / total * entropy(group.values())
                                         for group in groups)


def conditional_information(groups):
    """The same for items (token, expert), within each token: bits about the expert, averaged."""
    by_token = collections.defaultdict(lambda: [collections.Counter() for _ in groups])
    for i, group in enumerate(groups):
        for (token, expert), count in group.items():
            by_token[token][i][expert] += count
    total = sum(group.total() for group in groups)
    return sum(sum(g.total() for g in cell) / total * mutual_information(cell)
               for cell in by_token.values())


def choice_entropy(groups):
    """Bits of the domain of a choice; groups as above, one a domain."""
    return entropy([group.total() for group in groups])


def token_entropy(groups):
    """Bits of a choice's domain where its token is known; groups as above, one a domain."""
    sums = collections.defaultdict(lambda: [0] * len(groups))
    for i, group in enumerate(groups):
        for (token, _), count in group.items():
            sums[token][i] += count
    total = sum(map(sum, sums.values()))
    return sum(sum(counts) / total * entropy(counts) for counts in sums.values())


def by_domain(counters, domains):
    sums = collections.defaultdict(collections.Counter)
    for counter, domain in zip(counters, domains):
        sums[domain].update(counter)
    return list(sums.values())


def against_shuffled(information, counters, domains, shuffles=SHUFFLES):
    """The information, and what it is when domains are dealt to whole documents at random: texts of
    one document resemble each other, so tokens are not independent, but documents are."""
    real = information(by_domain(counters, domains))
    dealt, chance = list(domains), random.Random(1)
    values = []
    for _ in range(shuffles):
        chance.shuffle(dealt)
        values.append(information(by_domain(counters, dealt)))
    as_large = sum(value >= real for value in values)
    return {"bits": f"{real:.5f}", "shuffled_mean": f"{sum(values) / shuffles:.5f}",
            "shuffled_most": f"{max(values):.5f}", "p_value": f"{(1 + as_large) / (1 + shuffles):.4f}"}


def shared_tokens(documents, domains):
    counts = collections.defaultdict(collections.Counter)
    for document, domain in zip(documents, domains):
        counts[domain].update(token for token, _ in document)
    tokens = set.intersection(*(set(counter) for counter in counts.values()))
    return {token for token in tokens
            if all(counter[token] >= SHARED_TIMES for counter in counts.values())}


def specialisation(documents, domains):
    """Rows of experts.csv and of specialisation.csv."""
    experts, figures = [], []
    shared = shared_tokens(documents, domains)
    for layer in documents[0][0][1]:
        chosen = [collections.Counter(expert for _, layers in document for expert in layers[layer])
                  for document in documents]
        first = [collections.Counter((token, layers[layer][0]) for token, layers in document
                                     if token in shared) for document in documents]
        sums = dict(zip(dict.fromkeys(domains), by_domain(chosen, domains)))
        for expert in sorted(set().union(*sums.values())):
            experts.append({"layer": layer, "expert": expert,
                            **{domain: counter[expert] for domain, counter in sums.items()}})
        for measure, information, most, counters, shuffles in (
                ("all tokens", mutual_information, choice_entropy, chosen, SHUFFLES),
                ("shared tokens, same token", conditional_information, token_entropy, first,
                 SHUFFLES // 4)):
            groups = by_domain(counters, domains)
            figures.append({"layer": layer, "measure": measure,
                            **against_shuffled(information, counters, domains, shuffles),
                            "domain_entropy": f"{most(groups):.5f}",
                            "choices": sum(g.total() for g in groups)})
    return experts, figures


def describe(name, seed, trace, vocabulary, table, put):
    """table: the documents in the order of the trace, as run.put_documents returns them."""
    tokens = read_vocabulary(vocabulary)
    documents = list(read_documents(trace))
    domains = [row["file"] for row in table]
    if len(documents) != len(domains):
        raise ValueError(f"{trace}: {len(documents)} documents, expected {len(domains)}")
    same = {"run": name, "seed": str(seed)}
    if varies(name):
        put("classes.csv", CLASSES, ("run", "seed"),
            [{**same, **row} for row in class_means(documents, domains, tokens)])
    experts, figures = specialisation(documents, domains)
    put("experts.csv", EXPERTS, ("run", "seed"), [{**same, **row} for row in experts])
    put("specialisation.csv", SPECIALISATION, ("run", "seed"),
        [{**same, **row} for row in figures])


# --- language switches -----------------------------------------------------------------------------


def passages(text):
    """Whole lines together, each of at least PASSAGE_BYTES."""
    part = b""
    for line in text.splitlines(keepends=True):
        if part or line.strip():
            part += line
        if len(part) >= PASSAGE_BYTES and line.strip():
            yield part
            part = b""


def passage_pairs(path):
    """(passage, the one that follows it), from all documents by turns."""
    documents = [document for document in path.read_bytes().split(b"<|endoftext|>\n") if document]
    queues = [iter(list(passages(document))) for document in documents]
    pairs = []
    while queues and len(pairs) < PAIRS:
        alive = []
        for queue in queues:
            pair = (next(queue, None), next(queue, None))
            if pair[1] is not None:
                pairs.append(pair)
                alive.append(queue)
        queues = alive
    return pairs[:PAIRS]


def write_switches(corpus, path):
    """A text of documents in pairs: a passage after the one that it follows in the corpus, and the
    same passage after one of another domain. Returns the bytes of each first passage."""
    pairs = {domain: passage_pairs(corpus / f"{domain}.test.txt") for domain in plan.DOMAINS}
    lengths, text = [], b""
    for i, domain in enumerate(plan.DOMAINS):
        for j, (before, passage) in enumerate(pairs[domain]):
            other = plan.DOMAINS[(i + 1 + j % (len(plan.DOMAINS) - 1)) % len(plan.DOMAINS)]
            strange = pairs[other][j % len(pairs[other])][0]
            for first in (before, strange):
                lengths.append(len(first))
                text += first + passage + b"<|endoftext|>\n"
    path.write_bytes(text)
    return lengths


def describe_switches(name, seed, trace, vocabulary, lengths, put):
    """Mean active experts by the distance from a passage's begin, and the paired difference."""
    tokens = read_vocabulary(vocabulary)
    cells = collections.defaultdict(list)  # (layer, bin): (tokens, steady, switched) per passage
    pair = []
    for length, document in zip(lengths, read_documents(trace), strict=True):
        seen = 0
        tail = []
        for token, layers in document:
            if seen >= length:
                tail.append((token, {layer: len(chosen) for layer, chosen in layers.items()}))
            seen += len(tokens[token])
        pair.append(tail)
        if len(pair) == 2:
            # A token across the border would make them differ: then count from the end.
            n = min(len(pair[0]), len(pair[1]))
            add_pair(cells, *(half[len(half) - n:] for half in pair))
            pair = []
    rows = []
    for (layer, i), sums in sorted(cells.items()):
        n = sum(count for count, _, _ in sums)
        steady, switched = (sum(s[k] for s in sums) / n for k in (1, 2))
        squares = sum((b - a - (switched - steady) * count) ** 2 for count, a, b in sums)
        error = math.sqrt(squares * len(sums) / (len(sums) - 1)) / n if len(sums) > 1 else math.nan
        rows.append({"run": name, "seed": str(seed), "layer": layer, "distance": DISTANCES[i],
                     "tokens": n, "steady": f"{steady:.4f}", "switched": f"{switched:.4f}",
                     "difference": f"{switched - steady:.4f}", "error": f"{error:.4f}"})
    put("switches.csv", SWITCHES, ("run", "seed"), rows)


def add_pair(cells, steady, switched):
    sums = collections.defaultdict(lambda: [0, 0, 0])
    for distance, ((token, mine), (other_token, other)) in enumerate(zip(steady, switched)):
        if token != other_token:
            continue
        i = max(i for i, edge in enumerate(DISTANCES) if edge <= distance)
        for layer in mine:
            cell = sums[layer, i]
            cell[0] += 1
            cell[1] += mine[layer]
            cell[2] += other[layer]
    for key, cell in sums.items():
        cells[key].append(tuple(cell))
