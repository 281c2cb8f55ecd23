"""Drives the dashboard in headless Chromium as a reader does, beside the API that it shows.

Run by tests/browser_test.sh. Prints a PASS or FAIL line per check; exits non-zero if one failed.
"""

import csv
import io
import json
import os
import sys
import tempfile
import threading

from selenium.common.exceptions import NoSuchElementException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from harness import Checks, Page, Server, dense_family_model, random_model, serving, until

SMALL = ("--layers", "4", "--embedding", "64", "--heads", "4", "--experts", "8", "--expert-feed-forward", "32",
         "--feed-forward", "128", "--vocabulary", "600", "--moe-every", "2", "--type", "F32", "--context", "512")
WIDE = ("--layers", "32", "--embedding", "64", "--heads", "2", "--experts", "64", "--expert-feed-forward", "32",
        "--feed-forward", "64", "--vocabulary", "600", "--moe-every", "1", "--context", "512")


# --- what a stranger sees first ---

def loads_clean(page, server):
    """No console message, nothing from elsewhere, and the page says that nothing runs and how to begin."""
    page.console_errors()
    page.requested()
    page.open(server)
    model = server.call("v1/models")["data"][0]
    page.until_text("model", model["id"])
    page.until_text("quiet-text", "Nothing runs yet")
    assert f"{model['shape']['experts']} experts" in page.text("shape")
    assert "until their sum reaches the\nthreshold" in page.js(
        "return document.querySelector('.lead').textContent")
    until(lambda: page.js("return document.querySelectorAll('.tile').length") == 8, "eight tiles")
    assert page.console_errors() == []
    foreign = [url for url in page.requested() if not url.startswith((server.url, "data:"))]
    assert foreign == [], foreign


def policy_holds(page, server):
    """Inline script without the nonce, and requests to elsewhere, are blocked."""
    page.open(server)
    blocked = page.driver.execute_async_script("""
        const done = arguments[arguments.length - 1], seen = [];
        document.addEventListener('securitypolicyviolation', (event) => {
          seen.push(event.effectiveDirective);
          if (seen.length === 4) done(seen);
        });
        const script = document.createElement('script');
        script.textContent = 'window.intruder = true';
        document.head.append(script);
        const style = document.createElement('style');
        style.textContent = 'body { display: none }';
        document.head.append(style);
        fetch('http://127.0.0.1:9/').catch(() => {});
        const image = new Image();
        image.src = 'http://127.0.0.1:9/x.png';""")
    assert sorted(part.removesuffix("-elem") for part in blocked) == [
        "connect-src", "img-src", "script-src", "style-src"], blocked
    assert page.js("return window.intruder") is None
    page.console_errors()


# --- the numbers ---

def show_since_start(page, server):
    usage = server.call("v1/experts/usage")
    page.choose("source", "all")
    page.until_text("summary", f"{usage['tokens']:,} tokens")
    return usage


def numbers_are_the_servers(page, server):
    """Summary, every row and every cell against /v1/experts/usage."""
    for seed in range(3):
        server.generate(seed=seed, router={"threshold": 0.5})
    page.open(server)
    usage = show_since_start(page, server)
    assert f"{usage['summary']['mean_active']:.2f} of 8 experts" in page.text("summary")
    assert f"{usage['summary']['dead_experts']} of 16 dead" in page.text("summary")
    rows = page.js("return [...document.querySelectorAll('#layers tbody tr')].map((row) =>"
                   " [...row.cells].map((cell) => cell.textContent))")
    for row, layer in zip(rows, usage["layers"], strict=True):
        assert row[0] == f"L{layer['layer']}"
        assert row[1] == f"{layer['mean_active']:.2f}"
        assert row[3:6] == [f"{layer['load_balance']:.2f}", str(len(layer["dead"])),
                            f"{layer['distinct_per_step']:.1f}"], row
    page.find("map").send_keys(Keys.HOME, Keys.PAGE_UP)
    for row, layer in enumerate(usage["layers"]):
        page.find("map").send_keys(Keys.HOME)
        for expert, count in enumerate(layer["counts"]):
            text = page.text("readout")
            assert f"Layer {layer['layer']}, expert {expert}: {count:,} token" in text, (row, text)
            page.find("map").send_keys(Keys.ARROW_RIGHT)
        page.find("map").send_keys(Keys.ARROW_DOWN)


def colours_follow_counts(page, server):
    """In the light theme, the more an expert served, the darker its cell; the dead are empty."""
    page.prefer(prefers_color_scheme="light", prefers_reduced_motion="reduce")
    page.open(server)
    usage = show_since_start(page, server)
    shares = [count / layer["activations"] for layer in usage["layers"] for count in layer["counts"]]

    def looks_right():
        lights = page.js("""
            const canvas = document.getElementById('map-canvas'), ratio = devicePixelRatio;
            const context = canvas.getContext('2d');
            const pitchX = (canvas.clientWidth - 34) / 8, pitchY = (canvas.clientHeight - 22) / 2;
            return Array.from({length: 16}, (_, i) => {
              const x = 34 + (i % 8 + 0.5) * pitchX, y = 22 + (Math.floor(i / 8) + 0.5) * pitchY;
              const [r, g, b, a] = context.getImageData(Math.round(x * ratio), Math.round(y * ratio), 1, 1).data;
              return a ? 0.2126 * r + 0.7152 * g + 0.0722 * b : 999;
            });""")
        ordered = [light for _, light in sorted(zip(shares, lights), key=lambda pair: (pair[0], -pair[1]))]
        return (ordered == sorted(ordered, reverse=True) and
                [light == 999 for light in lights] == [share == 0 for share in shares])
    until(looks_right, "lightness in the order of shares")
    page.prefer()


def switches_ask_the_right_thing(page, server):
    """Phase and window choose what is shown; the weight is what it says."""
    page.open(server)
    page.choose("source", "all")
    for phase in ("prefill", "decode", "all"):
        page.choose("phase", phase)
        tokens = server.call(f"v1/experts/usage?phase={phase}")["tokens"]
        page.until_text("summary", f"{tokens:,} tokens")
    page.choose("source", "3600")
    recent = server.call("v1/experts/usage?window=3600")["tokens"]
    page.until_text("summary", f"{recent:,} tokens")
    page.choose("scale", "weight")
    page.until_text("legend-high", "weight")
    page.choose("scale", "share")
    page.until_text("legend-high", "choices")


def live_view_follows(page, server):
    """The stream shows a request that runs, keeps its picture, and says that it is quiet since."""
    page.open(server)
    page.until_text("quiet-text", "Since start")
    stop = threading.Event()

    def load():
        while not stop.is_set():
            server.generate(tokens=100)
    thread = threading.Thread(target=load)
    thread.start()
    try:
        page.until_text("summary", "tokens, each with")
        until(lambda: float(page.js("return document.querySelector('.tile .value').firstChild.data"
                                    ".replace(',', '')")) > 0, "tokens per second")
    finally:
        stop.set()
        thread.join()
    page.until_text("summary", "Quiet now")


def downloads_parse(page, server):
    """JSON and CSV of what is shown, to the last digit."""
    page.open(server)
    usage = show_since_start(page, server)
    page.click("download-json")
    saved = json.loads(page.downloaded(".json"))
    assert saved == usage
    page.click("download-csv")
    rows = list(csv.DictReader(io.StringIO(page.downloaded(".csv"))))
    assert rows and list(rows[0]) == ["layer", "expert", "tokens", "weight"]
    wanted = [(layer["layer"], expert, count, weight) for layer in usage["layers"]
              for expert, (count, weight) in enumerate(zip(layer["counts"], layer["weights"]))]
    assert [(int(row["layer"]), int(row["expert"]), int(row["tokens"]), float(row["weight"]))
            for row in rows] == wanted


def snapshots_are_compared(page, server):
    """Saved by its dialog, chosen from the list: drift and change of share as the API gives them; deleted."""
    page.open(server)
    server.generate("a a a a a a a a", router={"threshold": 0.3})
    page.click("snapshot-save")
    set_field(page, "ask-input", "before")
    page.click("ask-yes")
    page.until_text("action-note", "Saved as before")
    server.generate("Something else, and quite another", router={"type": "top_k", "top_k": 3})
    page.js("arguments[0].value = 'before'; arguments[0].dispatchEvent(new Event('change'))", page.find("compare"))
    page.until_text("summary", "drift")
    assert page.js("return document.querySelector('#source input:checked').value") == "10"
    page.choose("source", "all")
    usage = server.call("v1/experts/usage?compare=before")
    page.until_text("summary", f"{usage['tokens']:,} tokens")
    drifts = page.js("return [...document.querySelectorAll('#layers td.drift')].map((cell) => cell.textContent)")
    for shown, layer in zip(drifts, usage["layers"], strict=True):
        assert abs(float(shown) - layer["divergence"]) <= 0.05 * layer["divergence"]
    assert page.find("#layers td.drift").is_displayed()
    page.find("map").send_keys(Keys.HOME, Keys.PAGE_UP)
    page.until_text("readout", "in the snapshot")
    page.until_text("legend-high", "+")
    page.click("snapshot-delete")
    page.click("ask-yes")
    page.until_text("action-note", "deleted")
    page.until_text("legend-high", "choices")
    assert server.call("v1/experts/snapshots")["data"] == []


def reset_is_confirmed(page, server):
    """Cancel keeps the counters, the answer yes zeroes them."""
    page.open(server)
    before = show_since_start(page, server)["tokens"]
    page.click("reset")
    page.click("ask-no")
    assert server.call("v1/experts/usage")["tokens"] == before > 0
    page.click("reset")
    page.click("ask-yes")
    page.until_text("action-note", "zero")
    assert server.call("v1/experts/usage")["tokens"] == 0
    page.until_text("quiet-text", "Nothing runs yet")


# --- the playground ---

def set_field(page, name, value):
    page.js("arguments[0].value = arguments[1]", page.find(name), value)


def run_playground(page, tokens=120):
    set_field(page, "max-tokens", tokens)
    page.click("run")
    until(lambda: not page.find("stop").is_enabled(), "both sides are done")


def read_side(page, name):
    return page.js("""
        const side = document.getElementById(`side-${arguments[0]}`);
        const text = side.querySelector('.text');
        return {text: text.textContent, tokens: [...text.querySelectorAll('.token')].map((span) =>
                  ({prompt: span.classList.contains('prompt'), active: span.token.active ?? null,
                    colour: span.style.backgroundColor})),
                stats: Object.fromEntries(['mean', 'bytes', 'speed', 'time'].map((part) =>
                  [part, side.querySelector(`.${part}`).textContent]))};""", name)


def set_dial(page, name, value):
    page.js("""const slider = document.querySelector(`#side-${arguments[0]} .slider`);
               slider.value = arguments[1];
               slider.dispatchEvent(new Event('input'));""", name, value)


def playground_streams(page, server):
    """Two columns at once, each with the text and experts that the API gives for its threshold."""
    page.open(server)
    assert page.text("#side-B .own") == "model’s own 0.7"
    set_dial(page, "A", 0.8)
    set_dial(page, "B", 0.4)
    page.js("""window.growth = {A: 0, B: 0};
        for (const name of ['A', 'B'])
          new MutationObserver(() => window.growth[name]++)
            .observe(document.querySelector(`#side-${name} .text`), {childList: true});""")
    run_playground(page)
    for name, threshold in (("A", 0.8), ("B", 0.4)):
        shown = read_side(page, name)
        answer = server.call("v1/completions", {
            "prompt": page.find("prompt").get_property("value"), "max_tokens": 120, "temperature": 0.7, "seed": 1,
            "router": {"type": "threshold", "threshold": threshold}, "echo": True, "logprobs": 0,
            "routed_experts": True, "cache_prompt": False})
        choice = answer["choices"][0]
        assert shown["text"] == choice["text"], (shown["text"], choice["text"])
        routed = [[len(experts) for experts in layers] for layers in choice["routed_experts"]["experts"]]
        assert len(shown["tokens"]) == len(choice["logprobs"]["tokens"]) == len(routed) + 1
        assert sum(token["prompt"] for token in shown["tokens"]) == answer["usage"]["prompt_tokens"]
        for token, layers in zip(shown["tokens"], routed):
            assert token["active"] == sum(layers) / len(layers)
            assert token["colour"].startswith("rgb")
        colours = {token["active"]: token["colour"] for token in shown["tokens"][:-1]}
        assert len(set(colours.values())) > 1
        assert shown["stats"]["mean"] == f"{answer['timings']['mean_active_experts']:.2f}"
        assert shown["stats"]["bytes"].endswith("B") and shown["stats"]["time"].endswith("s")
        assert page.js("return window.growth[arguments[0]]", name) > 1, "the text came in one piece"
    page.until_text("comparison", "fewer experts per token than A")


def colours_come_while_it_streams(page, server):
    """Before the end, timings_per_token tells what each token took; the end only confirms it."""
    page.open(server)
    page.js("""
        window.early = new Map();
        const text = document.querySelector('#side-A .text');
        new MutationObserver(() => text.querySelectorAll('.token').forEach((span) => {
          if (span.token.active !== undefined && !span.token.layers && !window.early.has(span.token))
            window.early.set(span.token, span.token.active);
        })).observe(text, {childList: true});""")
    run_playground(page)
    early = page.js("return [...window.early].map(([token, active]) => [active, token.active])")
    assert len(early) > 20, f"{len(early)} tokens were coloured early"
    assert all(abs(first - last) < 1e-6 for first, last in early)


def dial_runs_again(page, server):
    """Released, the dial runs its own side anew; not where the tick is off."""
    page.open(server)
    run_playground(page)
    before = [read_side(page, name)["stats"]["mean"] for name in "AB"]
    slider = page.find("#side-B .slider")
    slider.send_keys(*[Keys.ARROW_RIGHT] * 5)
    until(lambda: read_side(page, "B")["stats"]["mean"] not in ("–", before[1]), "another mean of B")
    until(lambda: not page.find("stop").is_enabled(), "the side is done")
    assert read_side(page, "A")["stats"]["mean"] == before[0]
    page.click("live")
    again = read_side(page, "B")["text"]
    slider.send_keys(*[Keys.ARROW_LEFT] * 20)
    assert not page.find("stop").is_enabled()
    assert read_side(page, "B")["text"] == again


def stop_stops(page, server):
    """The stop button ends both sides at once, without a complaint, and the server lets go of them."""
    page.open(server)
    server.process.send_signal(19)  # SIGSTOP: an answer that would not come
    try:
        page.click("run")
        until(lambda: page.find("stop").is_enabled(), "the stop button is there")
        page.click("stop")
        until(lambda: not page.find("stop").is_enabled(), "nothing runs")
    finally:
        server.process.send_signal(18)  # SIGCONT
    assert page.js("return document.querySelectorAll('.problem').length") == 0
    until(lambda: not any(slot["is_processing"] for slot in server.call("slots")), "the slots are free")


def mistakes_are_told(page, server):
    """What the server refuses stands in the column."""
    page.open(server)
    set_field(page, "prompt", "many words " * 600)
    page.click("run")
    until(lambda: "512" in page.text("#side-A .text"), "the refusal with the length of the context")
    assert "Stop" in page.text("stop") and not page.find("stop").is_enabled()


# --- how it is used ---

def works_by_keyboard(page, server):
    """From the top by Tab to the map, over it by arrows, through the switches, and a run by Ctrl+Enter."""
    page.open(server)
    server.generate()
    usage = show_since_start(page, server)
    page.js("document.activeElement.blur(); window.scrollTo(0, 0)")

    def press(*keys):
        ActionChains(page.driver).send_keys(*keys).perform()

    def active():
        return page.js("return document.activeElement.id || document.activeElement.name")
    seen = []
    while active() != "map":
        press(Keys.TAB)
        seen.append(active())
        assert len(seen) < 40, seen
    assert {"theme", "source", "phase", "scale"} <= set(seen), seen
    press(Keys.HOME, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_DOWN)
    layer = usage["layers"][1]
    said = f"Layer {layer['layer']}, expert 2: {layer['counts'][2]:,} token"
    page.until_text("readout", said)
    assert said in page.js("return document.getElementById('spoken').textContent")
    assert page.js("return document.getElementById('map-cell').getAttribute('aria-colindex')") == "3"
    page.js("document.querySelector('#source input:checked').focus()")
    press(Keys.ARROW_LEFT)
    until(lambda: page.js("return document.querySelector('#source input:checked').value") == "3600", "1 h is chosen")
    page.find("prompt").send_keys(Keys.CONTROL, Keys.ENTER)
    until(lambda: read_side(page, "B")["tokens"], "tokens of B")
    until(lambda: not page.find("stop").is_enabled(), "both sides are done")
    page.find("#side-A .text").send_keys(Keys.HOME, Keys.ARROW_RIGHT)
    assert "experts per layer" in page.text("#side-A .token-readout")


def fits_every_width(page, server):
    """No sideways scroll of the page, nothing outside of it, from 320 to 1600 pixels."""
    page.open(server)
    run_playground(page)
    show_since_start(page, server)
    for width in (320, 360, 800, 1240, 1600):
        page.resize(width, 900)
        until(lambda w=width: page.js("return innerWidth") == w, f"{width} pixels")
        assert page.js("return document.documentElement.scrollWidth") <= width, width
        outside = page.js("""
            return [...document.querySelectorAll('body *')].filter((element) => {
              const box = element.getBoundingClientRect();
              return element.checkVisibility() && box.width > 1 && (box.right > innerWidth + 1 || box.left < -1) &&
                     !element.closest('.skip');
            }).map((element) => element.outerHTML.slice(0, 80));""")
        assert outside == [], (width, outside)
    page.resize(1280, 1000)


CONTRAST = """
    const canvas = new OffscreenCanvas(1, 1), context = canvas.getContext('2d', {willReadFrequently: true});
    const channels = (colour, under) => {
      context.fillStyle = `rgb(${under.join(' ')})`;
      context.fillRect(0, 0, 1, 1);
      context.fillStyle = colour;
      context.fillRect(0, 0, 1, 1);
      return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const ground = (element) => {
      const under = element.parentElement ? ground(element.parentElement) : [255, 255, 255];
      return channels(getComputedStyle(element).backgroundColor, under);
    };
    const light = (rgb) => {
      const [r, g, b] = rgb.map((part) => part / 255).map((part) =>
        part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const weak = [];
    for (const element of document.querySelectorAll('body *')) {
      const words = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
      if (!words || !element.checkVisibility({opacityProperty: true}) || element.closest('svg, option, :disabled, .unseen'))
        continue;
      const under = ground(element), over = channels(getComputedStyle(element).color, under);
      const [low, high] = [light(under), light(over)].sort((a, b) => a - b);
      const ratio = (high + 0.05) / (low + 0.05);
      if (ratio < 4.5)
        weak.push(`${element.tagName} ${element.className} "${element.textContent.slice(0, 30)}" ${ratio.toFixed(2)}`);
    }
    return weak;"""


def themes_have_contrast(page, server):
    """Every text against its ground, 4.5 to 1, in both themes, by the system's wish and by the button."""
    for scheme in ("light", "dark"):
        page.prefer(prefers_color_scheme=scheme)
        page.open(server)
        run_playground(page)
        show_since_start(page, server)
        assert page.js(CONTRAST) == [], scheme
    ground = "return getComputedStyle(document.body).backgroundColor"
    dark = page.js(ground)
    page.click("theme")
    page.until_text("theme", "light")
    assert page.js(ground) != dark
    page.open(server)
    page.until_text("theme", "light")
    page.click("theme")
    assert page.js(ground) == dark
    page.click("theme")
    page.until_text("theme", "auto")
    page.prefer()


def stillness_is_kept(page, server):
    page.prefer(prefers_reduced_motion="reduce")
    page.open(server)
    assert page.js("return document.getAnimations().length") == 0
    page.prefer(prefers_reduced_motion="no-preference")
    page.open(server)
    assert page.js("return document.getAnimations().length") > 0
    page.prefer()


# --- when things go wrong ---

def lost_server_heals(page, server):
    """Killed under load: a banner; back with other counters: healed by itself."""
    page.open(server)
    run_playground(page, 20)
    server.kill()
    page.until_text("banner-text", "Connection lost, trying again")
    page.until_text("status-text", "connection lost")
    page.click("run")
    until(lambda: "does not answer" in page.text("#side-A .text"), "the playground says so too")
    server.start()
    page.until_text("status-text", "serving")
    assert not page.find("banner").is_displayed()
    server.generate()
    show_since_start(page, server)
    page.console_errors()


def key_is_asked_for(page, model):
    """A guarded server: no key, a wrong key, the right one, kept over a reload, forgotten."""
    with serving("--model", model, "--http-api-keys", "secret") as server:
        page.open(server, wait=False)
        dialog = page.find("key-dialog")
        until(dialog.is_displayed, "the dialog")
        page.find("key-input").send_keys("wrong", Keys.ENTER)
        page.until_text("key-note", "refused")
        until(dialog.is_displayed, "the dialog again")
        page.find("key-input").send_keys("secret", Keys.ENTER)
        page.until_text("status-text", "serving")
        run_playground(page, 10)
        assert read_side(page, "A")["tokens"]
        page.open(server)
        page.click("forget-key")
        until(lambda: page.find("key-dialog").is_displayed(), "the dialog after forgetting")
        assert page.js("return JSON.stringify([localStorage, sessionStorage]).includes('secret')") is False
        page.console_errors()


def dense_model_is_told(page, directory):
    for model in (random_model(directory, "dense.gguf", *SMALL, "--moe-every", "0"), dense_family_model(directory)):
        with serving("--model", model) as server:
            page.console_errors()
            page.open(server)
            page.until_text("quiet-text", "no experts")
            run_playground(page, 10)
            assert "NaN" not in page.text("playground") and page.console_errors() == []


def wide_model_is_smooth(page, directory):
    """64 experts x 32 layers under load: every frame is drawn, keys are answered in between."""
    model = random_model(directory, "wide.gguf", *WIDE)
    with serving("--model", model) as server:
        page.open(server)
        stop = threading.Event()

        def load():
            while not stop.is_set():
                server.generate(tokens=200)
        thread = threading.Thread(target=load)
        thread.start()
        try:
            page.until_text("summary", "tokens, each with")
            page.js("""
                window.frames_ = []; window.long = []; window.updates = 0;
                new PerformanceObserver((list) => window.long.push(...list.getEntries().map((e) => e.duration)))
                  .observe({type: 'longtask'});
                new MutationObserver(() => window.updates++)
                  .observe(document.getElementById('summary'), {childList: true});
                let last = performance.now();
                const frame = (now) => { window.frames_.push(now - last); last = now; requestAnimationFrame(frame); };
                requestAnimationFrame(frame);""")
            page.find("map").send_keys(Keys.HOME)
            for expert in range(1, 12):
                page.find("map").send_keys(Keys.ARROW_RIGHT)
                page.until_text("readout", f"Layer 0, expert {expert}:")
            until(lambda: page.js("return window.updates") >= 5, "five updates")
            frames, long, updates = page.js("return [window.frames_, window.long, window.updates]")
        finally:
            stop.set()
            thread.join()
        show_since_start(page, server)
        painted = page.js("""
            const canvas = document.getElementById('map-canvas');
            const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
            return new Set(new Uint32Array(pixels.buffer)).size;""")
        assert painted > 20, painted
        assert len(frames) > 4 * updates, (len(frames), updates)
        frames.sort()
        print(f"     {updates} updates; frames: {len(frames)}, median {frames[len(frames) // 2]:.0f} ms, "
              f"worst {frames[-1]:.0f} ms; long tasks: {len(long)}, worst {max(long, default=0):.0f} ms")


def main():
    with tempfile.TemporaryDirectory() as directory:
        downloads = os.path.join(directory, "downloads")
        os.mkdir(downloads)
        model = random_model(directory, "small.gguf", *SMALL)
        page = Page(downloads)
        checks = Checks(page)
        try:
            with serving() as bundled:
                checks.run("the bundled model's page loads without a complaint", loads_clean, page, bundled)
            with serving("--model", model) as server:
                for check in (loads_clean, policy_holds, numbers_are_the_servers, colours_follow_counts,
                              switches_ask_the_right_thing, live_view_follows, downloads_parse,
                              playground_streams, colours_come_while_it_streams, dial_runs_again, stop_stops,
                              mistakes_are_told, works_by_keyboard, fits_every_width, themes_have_contrast,
                              stillness_is_kept, snapshots_are_compared, reset_is_confirmed, lost_server_heals):
                    checks.run(check.__name__.replace("_", " "), check, page, server)
            checks.run("key is asked for", key_is_asked_for, page, model)
            checks.run("dense model is told", dense_model_is_told, page, directory)
            checks.run("wide model is smooth", wide_model_is_smooth, page, directory)
        finally:
            page.quit()
        return checks.report()


if __name__ == "__main__":
    sys.exit(main())
