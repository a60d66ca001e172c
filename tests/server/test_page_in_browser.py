"""The page in a real browser, before a live server with the demo's world."""

from __future__ import annotations

import asyncio
import io
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from server.live import LiveServer, live

from ragvl import Document, Reranker
from ragvl.server.access import ApiKeys
from ragvl.server.stages import Stages

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

OpenPage = Callable[..., "Page"]
KEY = "a-key-of-this-test"
_WAIT = 30_000  # milliseconds; a bound, not a wait

# What can be read and does not stand out from what is behind it, by WCAG 2.2's contrast of 4.5
LOW_CONTRAST = """() => {
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  const luminance = ([red, green, blue]) => {
    const linear = [red, green, blue].map((c) => c / 255).map(
      (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const behind = (one) => {
    for (; one; one = one.parentElement) {
      const [red, green, blue, alpha = 1] = numbers(getComputedStyle(one).backgroundColor);
      if (alpha > 0) return [red, green, blue];
    }
    return [255, 255, 255];
  };
  return [...document.body.querySelectorAll("*")]
    .filter((one) => [...one.childNodes].some((n) => n.nodeType === 3 && n.data.trim()))
    .filter((one) => one.checkVisibility() && !one.closest(".unseen, .skip"))
    .map((one) => {
      const [ink, ground] = [numbers(getComputedStyle(one).color), behind(one)].map(luminance);
      const contrast = (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
      return [one.textContent, contrast];
    })
    .filter(([, contrast]) => contrast < 4.5);
}"""

# Controls that a finger misses, by WCAG 2.2's 24 pixels
SMALL_CONTROLS = """() => [...document.querySelectorAll("button, summary, textarea, label, a")]
  .filter((one) => one.checkVisibility() && !one.matches(".skip"))
  .filter((one) => one.querySelector("input[type=radio]") || !one.matches("label"))
  .filter((one) => Math.min(one.offsetHeight, one.offsetWidth) < 24)
  .map((one) => one.textContent)"""

# Elements that do not change at once
MOVING = """[...document.querySelectorAll("*")]
  .filter((one) => getComputedStyle(one).transitionDuration !== "0s").length"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("there is no chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    # Its event loop runs in this thread, and must be gone before another module's tests
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def world(make_services: Callable[..., Any], demo: Stages) -> Iterator[LiveServer]:
    """What `ragvl serve --demo` serves."""
    services = make_services(
        demo.reranker,
        retriever=demo.retriever,
        generator=demo.generator,
        examples=demo.examples,
    )
    with live(services) as server:
        yield server


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """`open_page(server)` is its page, which may load nothing of others and meet no error."""
    wrong: list[str] = []
    contexts = []

    def open_page(server: LiveServer, **settings: Any) -> Page:
        def look_at(url: str) -> None:
            if not url.startswith((server.url, f"blob:{server.url}", "data:")):
                wrong.append(url)

        def listen(words: str) -> None:
            if "Content Security Policy" in words:
                wrong.append(words)

        context = browser.new_context(**settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(_WAIT)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: listen(message.text))
        page.on("request", lambda request: look_at(request.url))
        page.goto(server.url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong


def ask(page: Page, question: str) -> None:
    """Asks, and waits for what comes of it."""
    page.get_by_label("Question", exact=True).fill(question)
    page.get_by_role("button", name="Ask", exact=True).click()
    wait_for_result(page)


def wait_for_result(page: Page) -> None:
    page.get_by_role("status").filter(has_text="kept.").wait_for()


@contextmanager
def busy(server: LiveServer) -> Iterator[None]:
    """Keeps the model's thread from all other work."""
    engine, loop, over = server.services.engine, server.server._loop, threading.Event()
    held = asyncio.run_coroutine_threadsafe(engine.run(over.wait, kind="test"), loop)
    try:
        yield
    finally:
        over.set()
        held.result(_WAIT / 1e3)


def rows_of(page: Page, *lists: str) -> list[tuple[int, float]]:
    """(place before reranking, figure) of the candidates in lists of the page."""
    return [
        (int(row.get_attribute("data-index")), float(row.locator("data").get_attribute("value")))  # type: ignore[arg-type]
        for name in lists
        for row in page.locator(f"#{name} > li").all()
    ]


def kept_in(page: Page) -> list[int]:
    """What is marked as kept."""
    marked = page.locator("#after > li").filter(has_text="kept").all()
    return [int(row.get_attribute("data-index")) for row in marked]  # type: ignore[arg-type]


def answer_of(server: LiveServer, body: dict[str, Any]) -> dict[str, Any]:
    """What the server says to the same question, without the page."""
    with server.client() as client:
        answer = client.post("/v1/answer", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def png() -> bytes:
    """A picture that no test has seen before."""
    file = io.BytesIO()
    Image.frombytes("RGB", (48, 48), os.urandom(48 * 48 * 3)).save(file, "PNG")
    return file.getvalue()


def file(name: str, content: bytes, media_type: str = "image/png") -> dict[str, Any]:
    return {"name": name, "mimeType": media_type, "buffer": content}


def choose_own(page: Page) -> None:
    """Chooses the visitor's documents, once the page knows whether there are others."""
    page.locator("#own-panel:visible, #index-panel:visible").first.wait_for()
    if page.get_by_label("my own").is_visible():
        page.get_by_label("my own").check()


def add_documents(page: Page, captions: Sequence[str], texts: Sequence[str] = ()) -> list[bytes]:
    """Adds a new picture for each caption, then texts; the pictures."""
    choose_own(page)
    pictures = [png() for _ in captions]
    chooser = page.get_by_label("Drop pictures here, or choose files")
    chooser.set_input_files([file(f"{i}.png", picture) for i, picture in enumerate(pictures)])
    for i, caption in enumerate(captions):
        page.get_by_label(f"Caption of {i}.png").fill(caption)
    for i, text in enumerate(texts, len(captions) + 1):
        page.get_by_role("button", name="Add a text").click()
        page.get_by_label(f"Words of text {i}").fill(text)
    return pictures


def test_an_example_of_the_demo_is_answered_as_the_server_does(
    world: LiveServer, open_page: OpenPage
) -> None:
    page = open_page(world)
    question = world.services.examples[0]
    page.get_by_role("button", name=question).click()
    wait_for_result(page)
    answer = answer_of(world, {"query": question})
    assert page.locator("#answer-text").inner_text() == answer["answer"]
    stages = page.locator("#timing-rows th").all_inner_texts()
    assert stages == ["Waiting", "Retrieve", "Rerank", "Generate", "Server", "This page"]
    ranked = [(one["index"], one["relevance_score"]) for one in answer["results"]]
    assert rows_of(page, "after", "below") == ranked
    assert rows_of(page, "after") == ranked[: sum(one["kept"] for one in answer["results"])]
    given = sorted((one["index"], one["retrieval_score"]) for one in answer["results"])
    assert rows_of(page, "before") == given
    assert kept_in(page) == answer["evidence"]
    texts = {one.document.caption for one in world.services.retriever.retrieve(question, 20)}
    assert set(page.locator("#before .words").all_inner_texts()) == texts
    # The pictures of what was kept are there
    for picture in page.locator("#after img").all():
        picture.scroll_into_view_if_needed()
        page.wait_for_function("(one) => one.naturalWidth > 0", arg=picture.element_handle())


def test_what_is_below_the_threshold_is_below_all_that_pass(
    demo: Stages, make_services: Callable[..., Any], open_page: OpenPage
) -> None:
    """Where the index's order counts, documents that pass stand among others."""
    services = make_services(
        demo.reranker, retriever=demo.retriever, retriever_weight=1e6, examples=demo.examples
    )
    with live(services) as server:
        question = demo.examples[0]
        with server.client() as client:
            results = client.post("/v1/search", json={"query": question}).json()["results"]
        passed = [one["kept"] for one in results]
        assert passed != sorted(passed, reverse=True), "or nothing is shown"
        page = open_page(server)
        page.get_by_role("button", name=question).click()
        wait_for_result(page)
        ranked = [(one["index"], one["relevance_score"]) for one in results]
        last = max(place for place, one in enumerate(passed) if one)
        assert rows_of(page, "after") == ranked[: last + 1]
        assert rows_of(page, "below") == ranked[last + 1 :]


def test_times_are_shown_cold_and_then_warm(world: LiveServer, open_page: OpenPage) -> None:
    page = open_page(world)
    rerank = page.locator("#timing-rows tr.score data")
    # A picture that nobody has asked about
    add_documents(page, ["A red door"])
    ask(page, "What color is the door?")
    page.get_by_text("The prefixes of 1 of 1 documents were computed for this question").wait_for()
    assert rerank.count() == 1
    page.get_by_role("button", name="Ask again").click()
    page.get_by_text("Every prefix was known").wait_for()
    assert [float(one.get_attribute("value") or 0) > 0 for one in rerank.all()] == [True, True]
    ask(page, "What color is the roof?")
    assert rerank.count() == 1  # another question begins anew


def test_settings_reach_the_server(world: LiveServer, open_page: OpenPage) -> None:
    page = open_page(world)
    page.get_by_text("Settings").click()
    page.get_by_label("Candidates").fill("7")
    page.get_by_label("Kept at most").fill("1")
    page.get_by_role("button", name="natural: 0.500").click()
    assert page.get_by_label("Threshold", exact=True).input_value() == "0.5"
    page.get_by_label("Threshold", exact=True).fill("0")
    ask(page, world.services.examples[1])
    assert len(rows_of(page, "before")) == len(rows_of(page, "after")) == 7
    assert len(kept_in(page)) == 1
    page.get_by_label("Threshold", exact=True).fill("1")
    ask(page, world.services.examples[1])
    page.get_by_text("Nothing reaches the threshold of 1.000").wait_for()
    assert "From no document" in page.locator("#answer-source").inner_text()


def test_the_index_is_browsed_to_its_end(world: LiveServer, open_page: OpenPage) -> None:
    page = open_page(world)
    tiles, more = page.locator("#known-list > li"), page.get_by_role("button", name="Show more")
    more.wait_for()
    while more.is_visible():
        before = tiles.count()
        more.click()
        page.wait_for_function(
            f"() => document.querySelector('#known-list').childElementCount > {before}"
        )
    captions = sorted(str(one.caption) for one in world.services.retriever.documents.values())
    assert sorted(page.locator("#known-list .words").all_inner_texts()) == captions


def test_documents_of_the_visitor_are_ranked_as_in_python(
    world: LiveServer, open_page: OpenPage, tiny_reranker: Reranker
) -> None:
    page = open_page(world)
    captions = ["A red door", "", "A green roof"]
    pictures = add_documents(page, captions, ["The door is blue."])
    ask(page, "What color is the door?")
    documents = [
        Document(image=picture, caption=caption or None)
        for picture, caption in zip(pictures, captions, strict=True)
    ]
    ranked = tiny_reranker.rank(
        "What color is the door?", [*documents, Document(text="The door is blue.")]
    )
    assert rows_of(page, "after", "below") == [(one.index, one.score) for one in ranked]
    words = ["A red door", "1.png", "A green roof", "The door is blue."]
    assert page.locator("#before .words").all_inner_texts() == words
    assert page.locator("#before img").count() == 3


def test_pictures_can_be_dropped_and_what_is_none_is_named(
    world: LiveServer, open_page: OpenPage
) -> None:
    page = open_page(world)
    page.get_by_role("button", name="Others…").wait_for()
    dropped = page.evaluate_handle(
        """(bytes) => {
          const data = new DataTransfer();
          data.items.add(new File([new Uint8Array(bytes)], "red.png", {type: "image/png"}));
          data.items.add(new File(["words"], "notes.pdf", {type: "application/pdf"}));
          return data;
        }""",
        list(png()),
    )
    page.dispatch_event("body", "drop", {"dataTransfer": dropped})
    page.get_by_role("status").filter(has_text="Not a picture: notes.pdf").wait_for()
    assert page.get_by_label("my own").is_checked()
    assert page.locator("#own-list > li").count() == 1
    page.get_by_role("button", name="Remove red.png").click()
    assert page.locator("#own-list > li").count() == 0
    assert page.evaluate("document.activeElement.id") == "files"  # the focus is not lost


def test_a_broken_picture_is_told_with_its_place_and_shows_no_result(
    world: LiveServer, open_page: OpenPage
) -> None:
    page = open_page(world)
    add_documents(page, ["A red door"])
    ask(page, "What color is it?")
    chooser = page.get_by_label("Drop pictures here, or choose files")
    chooser.set_input_files([file("broken.png", b"no picture")])
    page.locator("#own-list > li").nth(1).wait_for()
    page.get_by_role("button", name="Ask", exact=True).click()
    page.get_by_role("alert").filter(has_text="broken.png: documents[1]").wait_for()
    assert page.locator("[aria-invalid]").get_attribute("aria-label") == "Caption of broken.png"
    assert not page.locator("#orders").is_visible()


def test_a_server_without_room_says_when_to_try_again(
    make_services: Callable[..., Any], open_page: OpenPage
) -> None:
    with live(make_services(max_pairs=1)) as server, busy(server):
        page = open_page(server)
        add_documents(page, ["A red door"])
        page.get_by_label("Question", exact=True).fill("What color is the door?")
        page.get_by_role("button", name="Ask", exact=True).click()
        alert = page.get_by_role("alert").filter(has_text=re.compile(r"; try again in \d+ s"))
        alert.wait_for()
        assert not page.locator("#orders").is_visible()


def test_text_of_documents_is_never_markup(world: LiveServer, open_page: OpenPage) -> None:
    page = open_page(world)
    markup = "<img src=x onerror=\"document.title='hit'\"><b>bold</b>"
    add_documents(page, [], [markup])
    ask(page, markup)
    assert page.locator("#after .words, #below .words").inner_text() == markup
    assert page.title() == "ragvl"


def test_a_question_is_asked_by_keyboard_alone(world: LiveServer, open_page: OpenPage) -> None:
    page = open_page(world)
    page.get_by_role("button", name="Others…").wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the question"
    page.keyboard.press("Enter")
    page.keyboard.type(world.services.examples[2])
    page.keyboard.press("Enter")
    wait_for_result(page)
    assert page.evaluate("document.activeElement.id") == "question"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"  # where the focus is can be seen


def test_a_question_can_be_stopped(world: LiveServer, open_page: OpenPage) -> None:
    page = open_page(world)
    with busy(world):
        page.get_by_label("Question", exact=True).fill(world.services.examples[3])
        page.get_by_role("button", name="Ask", exact=True).click()
        page.get_by_role("button", name="Stop").click()
        page.get_by_role("status").filter(has_text="Stopped.").wait_for()
    assert not page.locator("#answer").is_visible()
    page.get_by_role("button", name="Ask", exact=True).click()
    wait_for_result(page)


def test_a_key_is_asked_for_and_kept_nowhere_else(
    make_services: Callable[..., Any], open_page: OpenPage
) -> None:
    with live(make_services(keys=ApiKeys([KEY]))) as server:
        page = open_page(server)
        page.get_by_label("API key").fill("another-key")
        page.get_by_role("button", name="Use key").click()
        page.get_by_role("alert").filter(has_text="key").wait_for()
        page.get_by_label("API key").fill(KEY)
        page.get_by_role("button", name="Use key").click()
        page.get_by_text("tiny-reranker").wait_for()
        assert page.get_by_label("API key").is_hidden()
        add_documents(page, ["A red door", "A green roof"])
        ask(page, "What color is the door?")
        kept = page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie])")
        assert KEY not in kept + page.url + page.content()


@pytest.mark.parametrize(("width", "scheme"), [(320, "light"), (375, "dark"), (1280, "light")])
def test_it_fits_and_can_be_read(
    world: LiveServer, open_page: OpenPage, width: int, scheme: str
) -> None:
    page = open_page(
        world,
        color_scheme=scheme,
        viewport={"width": width, "height": 800},
        reduced_motion="reduce",
    )
    ask(page, world.services.examples[0])
    page.get_by_text("Settings").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(LOW_CONTRAST) == []
    assert page.evaluate(SMALL_CONTROLS) == []
    sides = [page.locator(name).bounding_box() for name in ("#before", "#after")]
    assert (sides[0]["x"] < sides[1]["x"]) == (width > 700)  # type: ignore[index]
    assert page.evaluate(MOVING) == 0


def test_each_control_says_what_it_is(world: LiveServer, open_page: OpenPage) -> None:
    page = open_page(world)
    ask(page, world.services.examples[0])
    page.get_by_text("Settings").click()
    add_documents(page, ["A door"], ["A text"])
    tree = page.locator("body").aria_snapshot()
    controls = [
        line.strip()
        for line in tree.splitlines()
        if line.strip().startswith(("- button", "- textbox", "- spinbutton", "- radio", "- link"))
    ]
    assert len(controls) > 10
    assert [line for line in controls if '"' not in line] == []
    assert tree.count("- heading") >= 6 and "- main" in tree
