#!/usr/bin/env python3
"""Training speed beside PyTorch: the same model, batch, threads and F32, in turns.

    tools/compare_torch.py [--threads 2] [--rounds 3] [--steps 20]

Needs torch and numpy, and build/xmoe-train. Each round runs `steps` training steps of one, then of
the other (forward, backward, clipping, AdamW); the first step of each is left out. Prints tokens per
second of every round, medians and their ratio. In PyTorch, experts get their rows gathered and give
them back by index_add, one loop turn an expert; attention is scaled_dot_product_attention. Both
take the top 4 experts, so that the work is the same, and no capacity limit drops any.
"""
import argparse
import csv
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHAPE = {"vocabulary": 4096, "context": 256, "width": 256, "blocks": 4, "heads": 4,
         "feed-forward": 1024, "experts": 32, "expert-feed-forward": 128, "moe-every": 2,
         "sequences": 8}
TOP_K = 4


def make_model(torch):
    nn, functional = torch.nn, torch.nn.functional
    d, heads = SHAPE["width"], SHAPE["heads"]

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.output = nn.Linear(d, 3 * d), nn.Linear(d, d)

        def forward(self, x):
            b, t, _ = x.shape
            q, k, v = (y.view(b, t, heads, d // heads).transpose(1, 2)
                       for y in self.qkv(x).split(d, dim=2))
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            return self.output(y.transpose(1, 2).reshape(b, t, d))

    class Dense(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = (nn.Linear(d, SHAPE["feed-forward"]),
                                  nn.Linear(SHAPE["feed-forward"], d))

        def forward(self, x):
            return self.down(functional.gelu(self.up(x), approximate="tanh")), 0.0

    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            e, hidden = SHAPE["experts"], SHAPE["expert-feed-forward"]
            self.router = nn.Parameter(torch.randn(e, d) * 2.0 / d ** 0.5)
            self.up = nn.Parameter(torch.randn(e, hidden, d) * 0.02)
            self.up_bias = nn.Parameter(torch.zeros(e, hidden))
            self.down = nn.Parameter(torch.randn(e, d, hidden) * 0.02)
            self.down_bias = nn.Parameter(torch.zeros(e, d))

        def forward(self, x):
            h = x.reshape(-1, d)
            p = functional.softmax(h @ self.router.t(), dim=1)
            order = p.topk(TOP_K, dim=1).indices
            chosen = torch.zeros_like(p, dtype=torch.bool).scatter(1, order, True)
            y = torch.zeros_like(h)
            for e in range(SHAPE["experts"]):
                rows = chosen[:, e].nonzero(as_tuple=True)[0]
                if len(rows) == 0:
                    continue
                a = functional.gelu(functional.linear(h[rows], self.up[e], self.up_bias[e]),
                                    approximate="tanh")
                out = functional.linear(a, self.down[e], self.down_bias[e])
                y = y.index_add(0, rows, out * p[rows, e].unsqueeze(1))
            top = functional.one_hot(order[:, 0], SHAPE["experts"]).float().mean(dim=0)
            return y.view_as(x), SHAPE["experts"] * (p.mean(dim=0) * top).sum()

    class Block(nn.Module):
        def __init__(self, moe):
            super().__init__()
            self.attn_norm, self.ffn_norm = nn.LayerNorm(d), nn.LayerNorm(d)
            self.attention, self.ffn = Attention(), Experts() if moe else Dense()

        def forward(self, x):
            x = x + self.attention(self.attn_norm(x))
            y, balance = self.ffn(self.ffn_norm(x))
            return x + y, balance

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Embedding(SHAPE["vocabulary"], d)
            self.position = nn.Embedding(SHAPE["context"], d)
            nn.init.normal_(self.token.weight, std=0.02)
            nn.init.normal_(self.position.weight, std=0.02)
            every = SHAPE["moe-every"]
            self.blocks = nn.ModuleList(Block(i % every == every - 1)
                                        for i in range(SHAPE["blocks"]))
            self.norm = nn.LayerNorm(d)

        def forward(self, tokens, targets):
            x = self.token(tokens) + self.position.weight
            balance = 0.0
            for block in self.blocks:
                x, b = block(x)
                balance = balance + b
            logits = functional.linear(self.norm(x), self.token.weight)
            return functional.cross_entropy(logits.flatten(0, 1),
                                            targets.flatten()) + 0.01 * balance

    return Model()


def run_torch(torch, model, optimizer, steps):
    shape = (SHAPE["sequences"], SHAPE["context"])
    for step in range(steps + 1):
        if step == 1:
            start = time.perf_counter()
        tokens = torch.randint(SHAPE["vocabulary"], shape)
        optimizer.zero_grad(set_to_none=True)
        model(tokens, tokens.roll(-1, 1)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return steps * shape[0] * shape[1] / (time.perf_counter() - start)


def write_corpus(directory):
    """Words of random letters, so that the vocabulary is filled and the text cannot be learned."""
    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 8)))
             for _ in range(20000)]
    for part, count in (("train", 200000), ("valid", 5000)):
        text = " ".join(rng.choice(words) for _ in range(count))
        (directory / f"text.{part}.txt").write_text(text + "\n")


def run_xmoe(directory, steps, threads):
    for name in ("checkpoint", "log.csv"):
        (directory / "run" / name).unlink(missing_ok=True)
    flags = [f"--{name}={value}" for name, value in SHAPE.items()]
    subprocess.run([ROOT / "build/xmoe-train", "--data", directory, "--directory",
                    directory / "run", "--domains", "text", "--router", "top_k",
                    "--top-k", str(TOP_K), "--capacity", "0", "--groups", str(threads), "--threads", str(threads),
                    "--steps", str(steps + 1), "--log-every", "1", "--validate-every", "0",
                    "--checkpoint-every", "0", "--quiet", *flags], check=True)
    with open(directory / "run" / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))[1:]
    return len(rows) / sum(1 / float(row["tokens_per_second"]) for row in rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    try:
        import torch
    except ImportError:
        sys.exit("compare_torch.py: needs the Python package torch")
    torch.manual_seed(1)
    torch.set_num_threads(arguments.threads)
    model = make_model(torch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95),
                                  weight_decay=0.1)
    speeds = {"xmoe-train": [], "PyTorch": []}
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        write_corpus(directory)
        run_xmoe(directory, 2, arguments.threads)  # learns the vocabulary
        run_torch(torch, model, optimizer, 2)
        for turn in range(arguments.rounds):
            for who in speeds:
                speed = (run_xmoe(directory, arguments.steps, arguments.threads)
                         if who == "xmoe-train" else
                         run_torch(torch, model, optimizer, arguments.steps))
                speeds[who].append(speed)
                print(f"round {turn + 1}  {who:10}  {speed:8.0f} tokens/s")
    medians = {who: statistics.median(values) for who, values in speeds.items()}
    print(f"medians: xmoe-train {medians['xmoe-train']:.0f}, PyTorch {torch.__version__} "
          f"{medians['PyTorch']:.0f} tokens/s on {arguments.threads} threads: "
          f"{medians['xmoe-train'] / medians['PyTorch']:.2f} times")


if __name__ == "__main__":
    main()
