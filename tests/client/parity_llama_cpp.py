#!/usr/bin/env python3
"""Quantised models against llama.cpp on the same files; run by hand.

    parity_llama_cpp.py tiny DIRECTORY [TABLE.csv]
        Each NAME-wide.gguf there (tests/fixtures/make_families.py --gguf) is quantised by llama.cpp
        to each type and run by both engines. What is exact: the file's weights made F32 by the gguf
        package, run by llama.cpp in F32 (but see OTHERWISE). Columns: KL divergence from exact in nats, mean and
        largest over the rows, of each engine; rows with exact's likeliest token, of each; rows where
        both engines have the same one.
    parity_llama_cpp.py text MODEL.gguf TEXT
        Perplexity of a real model (a few hundred MB at most) on a text, in the same windows, and its
        greedy answers to a few questions; this engine through build/xmoe-server.

needs: llama-cpp-python, gguf, numpy; `make all` before. Run it from the project's directory.
"""
import csv
import json
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.request

import gguf
import llama_cpp
import numpy as np

# Name and number of llama.cpp's file types; what a row does not suit, it stores in another type.
TYPES = {"F16": 1, "BF16": 32, "Q4_0": 2, "Q4_1": 3, "Q5_0": 8, "Q5_1": 9, "Q8_0": 7, "Q2_K": 10, "Q3_K": 11, "Q4_K": 14,
         "Q5_K": 16, "Q6_K": 18, "IQ4_NL": 25, "IQ4_XS": 30, "MXFP4": 38}
# Where llama.cpp computes something else than transformers (make_families.py), this engine in F32 is
# the one that is exact: tests/test_families.c.
OTHERWISE = ("phimoe-wide",)
ROWS = 96
WINDOW = 256
QUESTIONS = ("What is the capital of France?", "Write one sentence about the sea.", "Count from one to ten.",
             "Translate to French: Good morning.", "What is 2 + 2?")
LOGITS = "build/print_logits"


# --- two engines ----------------------------------------------------------------------------------


def build_print_logits():
    libraries = subprocess.check_output(["pkg-config", "--libs", "libpcre2-8"], text=True).split()
    subprocess.check_call(["cc", "-O1", "-std=c17", "-D_GNU_SOURCE", "-Iinclude", "-Iengine",
                           "tests/client/print_logits.c", "build/libxmoe.a", "-o", LOGITS, *libraries, "-lpthread",
                           "-lm"])


def xmoe_logits(path, tokens):
    ran = subprocess.run([LOGITS, str(path)], input=" ".join(map(str, tokens)).encode(), capture_output=True)
    if ran.returncode != 0:
        raise SystemExit(ran.stderr.decode())
    return np.frombuffer(ran.stdout, np.float32).reshape(len(tokens), -1)


def open_llama_cpp(path, context):
    return llama_cpp.Llama(str(path), n_ctx=context, n_batch=context, n_ubatch=context, logits_all=True, verbose=False,
                           type_k=0, type_v=0, flash_attn=False, n_threads=2, n_threads_batch=2)


def llama_cpp_logits(path, tokens):
    model = open_llama_cpp(path, 256)
    model.eval(tokens)
    logits = np.array(model.scores[:len(tokens)])
    model.close()
    return logits


# --- tiny models ----------------------------------------------------------------------------------


def quantize(source, target, file_type):
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = file_type
    parameters.pure = True
    parameters.nthread = 2
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), parameters) != 0:
        raise SystemExit(f"{source}: llama.cpp cannot quantise it")


def to_f32(source, target):
    """The same keys, and all tensors with the same values, but in F32; returns the types there were."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    types = {}
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            element = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=element)
    for tensor in reader.tensors:
        types[tensor.tensor_type.name] = types.get(tensor.tensor_type.name, 0) + 1
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return types


def log_softmax(logits):
    logits = logits.astype(np.float64)
    largest = logits.max(axis=1, keepdims=True)
    return logits - largest - np.log(np.exp(logits - largest).sum(axis=1, keepdims=True))


def divergence(exact, found):
    p, q = log_softmax(exact), log_softmax(found)
    return (np.exp(p) * (p - q)).sum(axis=1)


def compare_tiny(directory, table):
    columns = ["model", "type", "other_types", "rows", "xmoe_kl_mean", "xmoe_kl_max", "llama_cpp_kl_mean",
               "llama_cpp_kl_max", "xmoe_top1", "llama_cpp_top1", "both_top1"]
    rng = np.random.default_rng(5)
    print(*columns, sep=",", flush=True)
    rows = []
    for source in sorted(pathlib.Path(directory).glob("*-wide.gguf")):
        tokens = [int(t) for t in rng.integers(0, 288, ROWS)]
        for name, file_type in TYPES.items():
            with tempfile.TemporaryDirectory() as scratch:
                quantised, exact_file = pathlib.Path(scratch) / "q.gguf", pathlib.Path(scratch) / "f.gguf"
                quantize(source, quantised, file_type)
                types = to_f32(quantised, exact_file)
                exact = (xmoe_logits if source.stem in OTHERWISE else llama_cpp_logits)(exact_file, tokens)
                ours, theirs = xmoe_logits(quantised, tokens), llama_cpp_logits(quantised, tokens)
            ours_kl, theirs_kl = divergence(exact, ours), divergence(exact, theirs)
            top, ours_top, theirs_top = exact.argmax(1), ours.argmax(1), theirs.argmax(1)
            others = " ".join(f"{n}:{t}" for t, n in sorted(types.items()) if t not in (name, "F32"))
            row = [source.stem, name, others, ROWS, f"{ours_kl.mean():.2g}", f"{ours_kl.max():.2g}",
                   f"{theirs_kl.mean():.2g}", f"{theirs_kl.max():.2g}", int((ours_top == top).sum()),
                   int((theirs_top == top).sum()), int((ours_top == theirs_top).sum())]
            rows.append(row)
            print(*row, sep=",", flush=True)
    if table is not None:
        with open(table, "w", newline="") as file:
            file.write(f"# tests/client/parity_llama_cpp.py tiny, with llama-cpp-python {llama_cpp.__version__}\n"
                       "# phimoe: llama.cpp computes something else, see tests/fixtures/make_families.py\n")
            csv.writer(file, lineterminator="\n").writerows([columns, *rows])


# --- a real model ---------------------------------------------------------------------------------


class Server:
    def __init__(self, model):
        self.url = "http://127.0.0.1:18997"
        self.process = subprocess.Popen(["build/xmoe-server", "--model", model, "--port", "18997"],
                                        stderr=subprocess.DEVNULL)
        for _ in range(300):
            try:
                urllib.request.urlopen(self.url + "/ready").read()
                return
            except OSError:
                if self.process.poll() is not None:
                    raise SystemExit("xmoe-server does not start")
                time.sleep(0.1)

    def complete(self, **body):
        request = urllib.request.Request(self.url + "/v1/completions", json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        return json.load(urllib.request.urlopen(request))["choices"][0]

    def stop(self):
        self.process.terminate()
        self.process.wait()


def window_logprobs(model, window):
    """Of each token but the first, by llama.cpp."""
    model.reset()
    model.eval(window)
    rows = log_softmax(np.array(model.scores[:len(window) - 1]))
    return rows[np.arange(len(window) - 1), window[1:]]


def compare_perplexity(model, exact, server, text):
    tokens = model.tokenize(text, add_bos=False, special=False)
    windows = [tokens[i:i + WINDOW] for i in range(0, len(tokens) - WINDOW + 1, WINDOW)]
    logprobs = {"exact": [], "llama.cpp": [], "xmoe": []}
    for window in windows:
        answer = server.complete(prompt=window, max_tokens=0, echo=True, logprobs=0)
        logprobs["exact"].append(window_logprobs(exact, window))
        logprobs["llama.cpp"].append(window_logprobs(model, window))
        logprobs["xmoe"].append(np.array(answer["logprobs"]["token_logprobs"][1:], float))
    every = {name: np.concatenate(rows) for name, rows in logprobs.items()}
    for name, rows in every.items():
        print(f"{name}: perplexity {np.exp(-rows.mean()):.4f} over {len(rows)} tokens; log-probabilities off by at "
              f"most {np.abs(rows - every['exact']).max():.2g}", flush=True)


def compare_answers(model, server):
    for question in QUESTIONS:
        prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        ids = model.tokenize(prompt.encode(), add_bos=False, special=True)
        model.reset()
        theirs = model.create_completion(ids, max_tokens=40, temperature=0.0)["choices"][0]["text"]
        ours = server.complete(prompt=ids, max_tokens=40, temperature=0.0)["text"]
        print(f"{question}\n  xmoe:      {ours!r}\n  llama.cpp: {theirs!r}")


def compare_text(path, text_path):
    with tempfile.TemporaryDirectory() as scratch:
        exact_file = pathlib.Path(scratch) / "f.gguf"
        to_f32(path, exact_file)
        exact = open_llama_cpp(exact_file, WINDOW)
    model = open_llama_cpp(path, 8 * WINDOW)
    server = Server(path)
    try:
        compare_perplexity(model, exact, server, pathlib.Path(text_path).read_bytes())
        compare_answers(model, server)
    finally:
        server.stop()


def main():
    if len(sys.argv) in (3, 4) and sys.argv[1] == "tiny":
        build_print_logits()
        compare_tiny(sys.argv[2], sys.argv[3] if len(sys.argv) == 4 else None)
    elif len(sys.argv) == 4 and sys.argv[1] == "text":
        compare_text(sys.argv[2], sys.argv[3])
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
