"""The page as a reader meets it, in a real browser."""

from __future__ import annotations

import numpy as np
import pytest

from mutransfer.report import write_report

FIGURES = (
    "[...document.querySelectorAll('figure svg')].map(s => s.getBoundingClientRect()).map(b => [b.width, b.height])"
)
ATTACK = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_it_fits_the_window_shows_every_figure_and_the_console_stays_empty(browser, written, width, scheme):
    browser.open(written, width, scheme=scheme)
    assert browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert browser.evaluate("window.innerWidth") == width
    sizes = browser.evaluate(FIGURES)
    assert len(sizes) == 5  # SP and muP, the optima, size at init and change of the check
    assert all(w > 250 and h > 100 for w, h in sizes)
    assert browser.complaints() == []


def test_side_by_side_where_there_is_room_and_below_each_other_where_not(browser, written):
    tops = "['loss-0', 'loss-1'].map(id => document.getElementById(id).getBoundingClientRect().top)"
    browser.open(written, 1280)
    first, second = browser.evaluate(tops)
    assert first == second
    browser.open(written, 400)
    first, second = browser.evaluate(tops)
    assert first < second


def test_wide_tables_scroll_in_their_own_box(browser, written):
    browser.open(written, 400)
    boxes = "[...document.querySelectorAll('.scroll')].some(b => b.scrollWidth > b.clientWidth)"
    assert browser.evaluate(boxes)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_shadow_shows_on_which_side_a_table_goes_on(browser, written, scheme):
    table = (
        "[...document.querySelectorAll('.scroll')].find(b => !b.closest('details') && b.scrollWidth > b.clientWidth)"
    )
    browser.open(written, 400, scheme=scheme)
    contrast = {}
    for name, to in (("start", 0), ("end", 9999)):
        browser.evaluate(f"{table}.scrollIntoView({{block: 'center'}}); {table}.scrollLeft = {to}")
        edges = browser.evaluate(f"(b => [b.left, b.right, b.top, b.bottom])({table}.getBoundingClientRect())")
        contrast[name] = _contrasts(browser.picture(), *map(round, edges))
    (left, right), (left_at_end, right_at_end) = contrast["start"], contrast["end"]
    assert min(right, left_at_end) > 0.03  # of full brightness
    assert max(left, right_at_end) < 0.01


def test_a_table_that_fits_has_no_shadow(browser, written):
    fits = (
        "[...document.querySelectorAll('.scroll')].find(b => !b.closest('details') && b.scrollWidth <= b.clientWidth)"
    )
    browser.open(written, 1280)
    browser.evaluate(f"{fits}.scrollIntoView({{block: 'center'}})")
    edges = browser.evaluate(f"(b => [b.left, b.right, b.top, b.bottom])({fits}.getBoundingClientRect())")
    assert max(_contrasts(browser.picture(), *map(round, edges))) < 0.01


def _contrasts(picture, left, right, top, bottom):
    """How far a table's outermost columns of pixels are from the card beside it, where no letters are."""
    card = np.median(picture[top:bottom, left - 5, :3], axis=0)
    columns = (picture[top + 2 : bottom - 2, k, :3] for k in (left + 1, right - 2))
    return [float(np.abs(np.median(column, axis=0) - card).max()) for column in columns]


def test_nothing_is_fetched(browser, written):
    browser.open(written, 1280)
    assert browser.requests() == [written.as_uri()]


def test_dark_is_dark_and_figures_follow(browser, written):
    ground = "getComputedStyle(document.body).backgroundColor"
    ink = "getComputedStyle(document.querySelector('figure svg [style*=\"fill: var(--c1c2128\"]')).fill"
    browser.open(written, 1280, scheme="light")
    light = browser.evaluate(ground), browser.evaluate(ink)
    browser.open(written, 1280, scheme="dark")
    dark = browser.evaluate(ground), browser.evaluate(ink)
    assert light[0] == "rgb(246, 247, 249)"
    assert dark[0] == "rgb(15, 18, 22)"
    assert light[1] != dark[1]


def test_a_malicious_name_is_shown_and_not_run(browser, renamed, tmp_path):
    page = write_report(tmp_path, renamed(ATTACK), command=ATTACK, title=ATTACK, environment={ATTACK: ATTACK})
    browser.open(page, 1280)
    assert browser.evaluate("document.title") == ATTACK
    assert browser.evaluate("document.querySelectorAll('img, script').length") == 0
    assert ATTACK in browser.evaluate("document.querySelector('h1').textContent")
    assert browser.complaints() == []


def test_the_browser_would_notice_an_attack_and_a_page_that_is_too_wide(browser, tmp_path):
    """The controls of the tests above."""
    page = tmp_path / "bad.html"
    page.write_text(f"<!doctype html><div style='width:2000px'>wide</div>{ATTACK}<script>console.error('no')</script>")
    browser.open(page, 1280)
    assert browser.evaluate("document.title") == "owned"
    assert not browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert browser.complaints() != []
