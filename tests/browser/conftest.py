"""A headless chromium that may reach this machine only, and the demo running on a free port."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

ROOT = Path(__file__).parents[2]
CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
LOCAL = ("http://127.0.0.1:", "data:", "blob:", "file:")
START_SECONDS = 480


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory) -> Path:
    """Where pictures of the pages go."""
    folder = Path(os.environ.get("PARTSEG_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def browser_page(tmp_path_factory):
    """A page of a fresh profile; a request to another machine is refused and fails the test at the end."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: scripts/test_browser.sh")
    if not CHROMIUM.exists():
        pytest.skip("needs Debian's chromium: scripts/test_browser.sh")
    refused: list[str] = []
    errors: list[str] = []

    def gate(route):
        url = route.request.url
        if url.startswith(LOCAL):
            route.continue_()
        else:
            refused.append(url)
            route.abort()

    with sync_api.sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(tmp_path_factory.mktemp("profile")),
            executable_path=str(CHROMIUM),
            headless=True,
            args=FLAGS,
            viewport={"width": 1360, "height": 960},
        )
        context.set_default_timeout(60_000)
        context.route("**/*", gate)
        page = context.pages[0]
        page.on("pageerror", lambda error: errors.append(str(error)))
        yield page
        context.close()
    assert not refused, "the page asked for something outside this machine"
    assert not errors, "the page's script failed"


@pytest.fixture(scope="session")
def photo(tmp_path_factory) -> Path:
    """A dark animal of circles on a meadow, stored on its side with an orientation tag."""
    image = Image.new("RGB", (320, 240), (120, 170, 90))
    draw = ImageDraw.Draw(image)
    draw.ellipse((90, 90, 230, 170), fill=(90, 60, 40))
    draw.ellipse((200, 60, 270, 130), fill=(110, 75, 50))
    noise = np.random.default_rng(0).integers(-12, 12, (240, 320, 3))
    image = Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path_factory.mktemp("photos") / "my dog.png"
    image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    return path


@pytest.fixture(scope="module")
def demo(toy_run, photo, tmp_path_factory):
    """Address of tools/demo.py on the tiny checkpoint."""
    pytest.importorskip("gradio", reason="needs the demo extra: scripts/test_browser.sh")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = [f"ckpt={toy_run}", f"port={port}", f"photos={photo.parent}", "max_megapixels=1", "device=cpu"]
    log = tmp_path_factory.mktemp("demo") / "log.txt"
    with log.open("w") as stream:
        command = [sys.executable, str(ROOT / "tools" / "demo.py"), *arguments]
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
        try:
            wait_for(f"http://127.0.0.1:{port}", process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)


def wait_for(address: str, process: subprocess.Popen, log: Path) -> None:
    """Until the address answers; the log is the error when it does not."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        try:
            with opener.open(address, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise AssertionError(f"the demo did not answer within {START_SECONDS} s:\n{log.read_text()}")
