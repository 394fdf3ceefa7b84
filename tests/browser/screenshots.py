"""Take the console's pictures: `python -m tests.browser.screenshots docs/console`. A signer is started, its primary
member pulled and put back, a record checked."""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright
from tests.support.console import Scene
from tests.support.softhsm import Folder, find_module, make_token

SECONDS = 100
"""How long it signs before the pictures: for charts that show something."""


def main(output: Path) -> None:
    """Write light.png, dark.png and phone.png."""
    output.mkdir(parents=True, exist_ok=True)
    module, folder, place = find_module(), Folder(), Path(tempfile.mkdtemp())
    assert module is not None
    try:
        scene = Scene(place, lambda *keys: make_token(folder, module, keys), callers=6)
        with scene, sync_playwright() as playwright:
            options = ["--no-sandbox", "--font-render-hinting=none"]
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=options)
            take(scene, browser, output)
            browser.close()
    finally:
        folder.remove()
        shutil.rmtree(place, ignore_errors=True)


def take(scene: Scene, browser: Any, output: Path) -> None:
    page = browser.new_page(viewport={"width": 1360, "height": 900}, color_scheme="light")
    page.goto(scene.address)
    page.wait_for_selector("#live:text-is('live')")
    time.sleep(SECONDS * 0.5)
    scene.site.kill(0)
    page.wait_for_selector("#events .tone:text-is('failover')")
    page.click("#token-button")
    page.fill("#token", scene.operator)
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Force secondary")
    time.sleep(SECONDS * 0.3)
    page.click("#audit-hold")
    scene.run(scene.manager.audit.checkpoint())
    page.locator("#audit tbody tr").nth(3).get_by_text("Check", exact=True).click()
    page.wait_for_selector(".proof[data-outcome='proven']")
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    shoot(page, output / "light.png", full_page=True)
    scene.site.revive(0)
    page.wait_for_selector("#events .tone:text-is('failback')")
    time.sleep(SECONDS * 0.2)
    page.emulate_media(color_scheme="dark")
    shoot(page, output / "dark.png")
    page.set_viewport_size({"width": 360, "height": 780})
    page.emulate_media(color_scheme="light")
    time.sleep(1.5)
    shoot(page, output / "phone.png")


def shoot(page: Any, path: Path, **options: Any) -> None:
    """As a PNG with a palette, which has a quarter of the bytes."""
    picture = Image.open(io.BytesIO(page.screenshot(**options))).convert("RGB")
    picture.quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
