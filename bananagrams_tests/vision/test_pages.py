"""The overlay pages in a browser: step through, filter and label 500 samples."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from bananagrams_assets.stages.reviews import bad_samples
from bananagrams_assets.storage.local import LocalStore
from bananagrams_assets.vision.images import encode_jpeg
from bananagrams_assets.vision.overlay import heat_map, outline_path
from bananagrams_assets.vision.page import PageRow, render_contents, render_page, render_summary
from bananagrams_tests.vision.images import box, textured

pytestmark = pytest.mark.slow

SAMPLES = 500
SHARD = "train-00000"
MARKUP = '</script><img src="x.jpg" onerror="document.title=\'broken\'">'


def page_rows() -> list[PageRow]:
    """Return rows, least confident first. The first text contains markup; the last two were rejected."""
    rows = []
    for number in range(SAMPLES):
        image = textured(number % 7, 120, 90)
        mask = box(image, 0.2, 0.2, 0.6, 0.7)
        rows.append(
            PageRow(
                key=f"sft-{number:03d}",
                text=MARKUP if number == 0 else f"Remove thing number {number}.",
                type="Remove an existing object" if number % 2 else "Add a new object",
                scope="global" if number % 5 == 0 else "local",
                mask="local" if number < SAMPLES - 2 else "rejected",
                confidence=number / SAMPLES if number < SAMPLES - 2 else 0.0,
                area=0.2,
                source="a photo",
                split="train",
                shard=SHARD,
                reason="" if number < SAMPLES - 2 else "no inliers",
                image=f"pictures/sft-{number:03d}.jpg" if number < SAMPLES - 1 else "",
                panels=3 if number < SAMPLES - 2 else 2,
                width=120,
                height=90,
                outline=outline_path(mask, (120, 90)) if number < SAMPLES - 2 else "",
            )
        )
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rows = tmp_path_factory.mktemp("overlays"), page_rows()
    (folder / SHARD / "pictures").mkdir(parents=True)
    for number, row in enumerate(rows):
        before = textured(number % 7, row.width, row.height)
        after = before.copy()
        after[20:60, 30:70] = 255 - after[20:60, 30:70]
        heat = heat_map(np.abs(after.astype(np.float32) - before).mean(axis=2))
        panels = np.concatenate([before, after, heat][: row.panels], axis=1)
        if row.image:
            (folder / SHARD / row.image).write_bytes(encode_jpeg(panels, 80))
    figures = {"masks": 498, "rejected": 2, "unsure": 250, "confidence": 0.5, "histogram": [50] * 10}
    (folder / SHARD / "summary.js").write_text(render_summary(SHARD, "train", figures, rows))
    (folder / SHARD / "index.html").write_text(
        render_page(f"Edit masks: {SHARD}", SHARD, rows, "../index.html")
    )
    (folder / "index.html").write_text(render_contents("Edit masks", [SHARD, "train-00001"]))
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("google-chrome")
    assert program, "this test needs a Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, folder: Path) -> Iterator[Page]:
    """Open the shard's page from its file; an error in a script fails the test."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page, errors = context.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((folder / SHARD / "index.html").as_uri())
    yield page
    context.close()
    assert errors == []


def expect_selected(page: Page, key: str) -> None:
    """Wait until the page's address ends with ``key``; Playwright is notified of changes with a delay."""
    expect(page).to_have_url(re.compile(f"#{re.escape(key)}$"))


def shown_count(page: Page) -> int:
    return page.locator("#list li[role=option]:visible").count()


def test_only_visible_images_are_requested(browser: Browser, folder: Path) -> None:
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page, requested = context.new_page(), set[str]()
    page.on("request", lambda request: requested.add(request.url))
    page.goto((folder / SHARD / "index.html").as_uri())
    page.wait_for_function("stage.image.complete && stage.image.naturalWidth > 0")
    page.wait_for_function("rows[8].item.thumbs[0].image.naturalWidth > 0")
    images = {url for url in requested if url.endswith(".jpg")}
    assert (folder / SHARD / "pictures/sft-000.jpg").as_uri() in images
    assert len(images) < 20  # nine rows fit the window
    assert all(url.startswith("file:") for url in requested)
    page.keyboard.press("End")
    page.wait_for_function("rows[490].item.thumbs[0].image.naturalWidth > 0")
    assert len({url for url in requested if url.endswith(".jpg")}) < 45
    context.close()


def test_markup_in_text_is_shown_and_not_executed(page: Page) -> None:
    expect(page.locator("#text")).to_have_text(MARKUP)
    assert page.title() == f"Edit masks: {SHARD}"
    assert page.locator("img[src='x.jpg']").count() == 0


def test_keys_step_through_the_samples(page: Page) -> None:
    for key, expected in (
        ("j", "001"),
        ("ArrowDown", "002"),
        ("k", "001"),
        ("End", "499"),
        ("j", "499"),
        ("Home", "000"),
    ):
        page.keyboard.press(key)
        expect_selected(page, f"sft-{expected}")
    expect(page.locator("#position")).to_have_text("1 of 500")
    page.locator("#list li").nth(3).click()
    expect_selected(page, "sft-003")
    page.reload()
    expect_selected(page, "sft-003")
    expect(page.locator("#text")).to_have_text("Remove thing number 3.")


def test_keys_switch_panels_and_outline(page: Page) -> None:
    image, badge = page.locator("#stage img"), page.locator("#stage .badge")
    for key, left, text in (
        ("3", "-200%", "difference"),
        ("2", "-100%", "after, aligned"),
        ("1", "0%", "before"),
    ):
        page.keyboard.press(key)
        expect(badge).to_have_text(text)
        assert image.evaluate("node => node.style.left").replace("-0%", "0%") == left
    expect(page.locator("#stage svg")).to_be_visible()
    page.keyboard.press("m")
    expect(page.locator("#stage svg")).to_be_hidden()
    page.keyboard.press(" ")
    expect(badge).to_have_text("after, aligned")


def test_blinking_alternates_before_and_after_until_stopped(page: Page) -> None:
    badge = page.locator("#stage .badge")
    page.keyboard.press("b")
    expect(page.locator("#blink")).to_have_attribute("aria-pressed", "true")
    for text in ("after, aligned", "before", "after, aligned"):
        expect(badge).to_have_text(text)
    page.keyboard.press("j")
    expect(page.locator("#blink")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("b")
    expect(page.locator("#blink")).to_have_attribute("aria-pressed", "false")
    expect(badge).to_have_text("before")


def test_filters_select_samples(page: Page) -> None:
    page.select_option("#type", "Add a new object")
    page.select_option("#scope", "local")
    page.fill("#low", "10")
    page.fill("#high", "20")
    expected = [number for number in range(50, 101) if number % 2 == 0 and number % 5]
    expect(page.locator("#shown")).to_have_text(f"{len(expected)} of 500 samples")
    assert shown_count(page) == len(expected)
    expect_selected(page, f"sft-{expected[0]:03d}")
    page.locator("#list").focus()
    page.keyboard.press("j")
    expect_selected(page, f"sft-{expected[1]:03d}")
    page.click("#clear")
    expect(page.locator("#shown")).to_have_text("500 samples")
    page.fill("#find", "NUMBER 42.")
    assert shown_count(page) == 1
    expect_selected(page, "sft-042")
    page.fill("#find", "no such words")
    expect(page.locator("#empty")).to_have_text("No sample passes these filters.")
    page.click("#clear")
    page.select_option("#mask", "rejected")
    expect(page.locator("#reason")).to_have_text("no inliers")
    page.click("#clear")
    page.select_option("#sort", "-confidence")
    page.locator("#list").focus()
    page.keyboard.press("Home")
    expect_selected(page, "sft-497")


def test_labels_are_stored_saved_and_read_by_a_build(page: Page, tmp_path: Path) -> None:
    page.keyboard.press("x")
    expect_selected(page, "sft-001")
    page.keyboard.press("g")
    page.keyboard.press("n")
    page.keyboard.type("the <b>sky</b> too")
    page.keyboard.press("Enter")
    page.keyboard.press("x")
    expect(page.locator("#labelled")).to_have_text("3 labelled, 2 bad")
    page.reload()
    expect(page.locator("#labelled")).to_have_text("3 labelled, 2 bad")
    page.select_option("#label", "bad")
    assert shown_count(page) == 2
    page.fill("#reviewer", "Ann")
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == f"verdicts-{SHARD}-Ann.json"
    file = tmp_path / "ann.json"
    download.value.save_as(file)
    assert bad_samples(LocalStore(tmp_path), (str(file),), SHARD) == {
        "sft-000": "judged bad by Ann",
        "sft-002": "judged bad by Ann: the <b>sky</b> too",
    }
    assert bad_samples(LocalStore(tmp_path), (str(file),), "dev-00000") == {}

    page.click("#clear")
    page.locator("#list").focus()
    page.keyboard.press("Home")
    page.keyboard.press("x")  # the same label again removes it
    expect_selected(page, "sft-000")
    expect(page.locator("#labelled")).to_have_text("2 labelled, 1 bad")
    page.set_input_files("#file", file)
    expect(page.locator("#labelled")).to_have_text("3 labelled, 2 bad")

    page.click("text=All shards")
    expect(page.locator("#totals")).to_contain_text("3labelled2bad1shards have no page yet")
    with page.expect_download() as download:
        page.click("#save")
    download.value.save_as(tmp_path / "all.json")
    assert json.loads((tmp_path / "all.json").read_text()) == json.loads(file.read_text())


def test_page_over_all_shards_links_to_the_least_confident(browser: Browser, folder: Path) -> None:
    page = browser.new_page()
    page.goto((folder / "index.html").as_uri())
    expect(page.locator("#least a")).to_have_count(12)
    expect(page.locator("#least a p").first).to_have_text(MARKUP)
    page.locator("#least a").nth(1).click()
    page.wait_for_url(re.compile(r"train-00000/index\.html#sft-001$"))
    expect(page.locator("#text")).to_have_text("Remove thing number 1.")
    page.close()


def test_pages_work_below_any_url(browser: Browser, folder: Path) -> None:
    handler = partial(QuietHandler, directory=str(folder.parent))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    page = browser.new_page()
    page.goto(f"http://127.0.0.1:{server.server_port}/{folder.name}/index.html")
    page.click(f"#shards a >> text={SHARD}")
    page.wait_for_function("stage.image.naturalWidth > 0")
    page.close()
    server.shutdown()
    server.server_close()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        """Print nothing."""
