# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The page in a real browser: what its filters show, and that a model's text never runs."""

import shutil
import time

import pytest

from rlvlm_jax.report import __main__ as report
from tests.run_directories import response, write_run

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")

HOSTILE = (
    "</script><script>window.ran = 1</script><img src=x onerror='window.ran = 2'>"
    "<svg onload='window.ran = 3'> wait \\boxed{2}"
)


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def rows_of(step, prompts, samples=4):
    return [
        response(
            f"q{n // samples}",
            correct=n % samples == 1,
            text=HOSTILE if n % samples == 0 else f"response {n} of step {step}",
            reflective=n % samples == 0,
            truncated=n % samples == 3,
            pieces=["resp", "onse"],
            logprobs=[-0.1, -2.0],
            advantages=[0.5, -0.5],
        )
        for n in range(prompts * samples)
    ]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """Three steps of 30 prompts with four responses each; id, question and keys are hostile too."""
    root = tmp_path_factory.mktemp("report")
    steps = [
        ({"response/length": 10.0 + s, "reflection/ratio": 0.25}, rows_of(s, 30)) for s in (1, 2, 3)
    ]
    for _, rows in steps:
        for row in rows:
            row["question"] = f"<b>{row['id']}</b> <script>window.ran = 4</script>"
    write_run(root / "run", steps=steps, model={"path": "</pre><script>window.ran = 5</script>"})
    out = root / "report.html"
    assert (
        report.main([str(root / "run"), f"--out={out}", "--title=<script>window.ran=6</script>"])
        == 0
    )
    return out


@pytest.fixture
def opened(chromium, page_file):
    errors = []
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(page_file.as_uri())
    yield page
    assert errors == []
    assert page.evaluate("window.ran") is None
    page.close()


def count(page):
    return page.locator("#count").inner_text().split(";")[0]


def test_filters_show_what_they_say(opened):
    assert count(opened) == "360 responses to 90 prompts"
    assert opened.locator(".group").count() == 20
    opened.click("#more")
    assert opened.locator(".group").count() == 40
    opened.select_option("#step", "2")
    assert count(opened) == "120 responses to 30 prompts"
    opened.select_option("#correct", "yes")
    assert count(opened) == "30 responses to 30 prompts"
    assert opened.locator(".sample").count() == opened.locator(".sample.correct").count() == 20
    assert opened.locator(".sample p").first.inner_text() == "response 1 of step 2"
    opened.select_option("#truncated", "yes")
    assert count(opened) == "0 responses to 0 prompts"
    opened.select_option("#correct", "")
    assert "truncated" in opened.locator(".sample .facts").first.inner_text()
    opened.select_option("#truncated", "")
    opened.select_option("#reflective", "yes")
    assert count(opened) == "30 responses to 30 prompts"
    opened.select_option("#reflective", "")
    opened.fill("#text", "response 7 of")
    assert count(opened) == "1 responses to 1 prompts"


def test_hostile_text_is_shown_and_reflection_words_are_marked(opened):
    first = opened.locator(".sample p").first
    assert first.inner_text() == HOSTILE
    assert first.locator("mark").all_inner_texts() == ["wait"]
    assert "<script>window.ran = 4</script>" in opened.locator(".group > p").first.inner_text()
    assert opened.locator("h1").inner_text() == "<script>window.ran=6</script>"
    opened.click("summary")
    assert "window.ran = 5" in opened.locator("pre").inner_text()


def test_tokens_are_coloured(opened):
    opened.select_option("#colour", "logprobs")
    tokens = opened.locator(".sample p span")
    assert tokens.nth(1).get_attribute("title") == "-2.000"
    colours = [tokens.nth(n).evaluate("e => e.style.backgroundColor") for n in (0, 1)]
    assert colours[0] != colours[1]
    opened.select_option("#colour", "advantages")
    assert tokens.nth(0).get_attribute("title") == "0.500"


@pytest.mark.parametrize("width", [360, 1400])
def test_nothing_overflows(chromium, page_file, width):
    page = chromium.new_page(viewport={"width": width, "height": 800})
    page.goto(page_file.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    columns = page.evaluate(
        "getComputedStyle(document.querySelector('.panels')).gridTemplateColumns.split(' ').length"
    )
    assert columns == (1 if width < 800 else 3)
    page.close()


@pytest.mark.slow
def test_ten_thousand_responses_open_within_two_seconds(chromium, tmp_path):
    steps = [({"response/length": 10.0}, rows_of(s, 250, 8)) for s in range(5)]
    write_run(tmp_path / "run", steps=steps)
    out = tmp_path / "r.html"
    assert report.main([str(tmp_path / "run"), f"--out={out}"]) == 0
    page = chromium.new_page()
    start = time.perf_counter()
    page.goto(out.as_uri())
    assert count(page) == "10000 responses to 1250 prompts"
    assert time.perf_counter() - start < 2
    page.close()
