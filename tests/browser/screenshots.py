"""Makes the pictures of the README, server/dashboard/*.png, from the bundled model under real traffic.

    BUILD=build /usr/bin/python3 tests/browser/screenshots.py
"""

import base64
import os
import random
import tempfile
import threading

from harness import ROOT, Page, serving, until

PROMPTS = ["The old man looked at the sea and", "Once upon a time there was a", "She opened the letter and",
           "Es war einmal ein König, der", "Der alte Mann ging langsam", "Il y avait une fois une reine qui",
           "Monsieur, dit-il, vous", "static int read_line(FILE *file)", "#include <stdio.h>\n\nint main(",
           "/* Frees what the caller"]
MOST = 200 * 1000  # bytes of a picture
WIDTH = 960
SCALES = (2, 1.75, 1.5, 1.3, 1.15, 1)  # the first whose picture is small enough


def readers(server, stop, count):
    """Requests as several readers would send them, one after the other each."""
    def read(number):
        draw = random.Random(number)
        while not stop.is_set():
            router = {"threshold": 0.6} if number == 0 else {}
            server.generate(draw.choice(PROMPTS), draw.randint(40, 200), seed=draw.randint(1, 10**6),
                            router=router, ignore_eos=False)
            stop.wait(draw.uniform(0, 0.4))
    threads = [threading.Thread(target=read, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    return threads


def take(page, name, top, bottom):
    """The page from one element's top to another's bottom, as wide as the page."""
    low, high = page.js("""
        document.activeElement.blur();
        scrollTo(0, 0);
        return [document.querySelector(arguments[0]).getBoundingClientRect().top,
                document.querySelector(arguments[1]).getBoundingClientRect().bottom];""", top, bottom)
    for more, scale in enumerate(SCALES):
        page.resize(WIDTH, int(high) + 40 + more, scale)  # another ratio alone is not told to the page
        until(lambda: page.js("""
            const canvas = document.getElementById('map-canvas');
            return canvas.width === Math.round(document.getElementById('map').clientWidth * devicePixelRatio);"""),
              "the map in this resolution")
        page.driver.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
        picture = page.driver.execute_cdp_cmd("Page.captureScreenshot", {"clip": {
            "x": 0, "y": max(0, low - 16), "width": WIDTH, "height": high - max(0, low - 16) + 16, "scale": 1}})
        data = base64.b64decode(picture["data"])
        if len(data) < MOST:
            break
    else:
        raise SystemExit(f"{name}: {len(data)} bytes are too many")
    with open(os.path.join(ROOT, "server", "dashboard", name), "wb") as file:
        file.write(data)
    print(f"{name}: {len(data)} bytes at scale {scale}")


def main():
    stop = threading.Event()
    with tempfile.TemporaryDirectory() as directory, serving() as server:
        page = Page(directory)
        threads = readers(server, stop, 3)
        try:
            page.prefer(prefers_color_scheme="light")
            page.resize(WIDTH, 1000)
            page.open(server)
            page.choose("source", "60")
            until(lambda: page.js("return document.querySelector('.tile path.line').getAttribute('d')"
                                  ".split('L').length") > 40, "a line of two minutes")
            take(page, "heatmap.png", "body", "#experts .legend")
            stop.set()
            page.prefer(prefers_color_scheme="dark")
            page.click("run")
            until(lambda: "fewer experts" in page.text("comparison"), "both texts")
            take(page, "playground.png", "#playground", "#playground")
        finally:
            stop.set()
            for thread in threads:
                thread.join()
            page.quit()


if __name__ == "__main__":
    main()
