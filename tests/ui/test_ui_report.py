"""The report as a reader opens it: one file, no network."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.ui, pytest.mark.timeout(900)]


@pytest.fixture
def report(browser, finished, watch):
    handle = finished.workspace().store.manifest("report").handle
    context = browser.new_context(viewport={"width": 1300, "height": 1000}, offline=True)
    context.set_default_timeout(120_000)
    watched = watch(context.new_page(), ("file:", "data:", "blob:"))
    watched.page.goto(f"{handle.uri}/report.html")
    yield watched
    context.close()


def test_it_opens_without_errors_and_asks_the_network_for_nothing(report):
    report.page.locator("h1").first.wait_for()
    report.page.locator(".js-plotly-plot").first.wait_for()
    report.shot("report")
    report.page.locator("body").press("End")
    report.page.wait_for_timeout(1000)
    assert report.errors == [] and report.outside == []


def test_hovering_tells_numbers(report):
    plot = report.page.locator(".js-plotly-plot").first
    plot.scroll_into_view_if_needed()
    box = plot.locator(".nsewdrag").first.bounding_box()
    texts = plot.locator(".hoverlayer .hovertext")
    for across in range(5, 100, 5):
        for down in range(5, 100, 5):
            report.page.mouse.move(box["x"] + box["width"] * across / 100, box["y"] + box["height"] * down / 100)
            if texts.count():
                report.page.wait_for_timeout(300)
                report.shot("report-hover")
                assert any(c.isdigit() for c in texts.first.text_content())
                return
    raise AssertionError("no point of the first plot tells its numbers")


def test_candidates_are_sorted_by_a_click_and_by_the_keyboard(report):
    table = report.page.locator("#candidates-table")
    table.scroll_into_view_if_needed()
    header = table.locator("thead th").filter(has=report.page.locator("button")).filter(has_text="statistic").first
    place = header.evaluate("e => [...e.parentElement.children].indexOf(e)")

    def column():
        cells = table.locator(f"tbody tr > :nth-child({place + 1})").all_inner_texts()
        return [float(c.replace("−", "-").replace(",", "")) for c in cells]

    loudest_first = column()
    assert len(set(loudest_first)) > 1, "nothing to sort"
    header.locator("button").click()
    assert column() == sorted(loudest_first) and header.get_attribute("aria-sort") == "ascending"
    report.shot("report-sorted")
    header.locator("button").press("Enter")
    assert column() == sorted(loudest_first, reverse=True) and header.get_attribute("aria-sort") == "descending"
    assert report.errors == []


def test_a_candidate_has_a_page_of_its_own(report):
    """A link of the table opens it alone, the focus goes there, and the way back leads to the table."""
    page = report.page
    link = page.locator("#candidates-table tbody a").first
    name = link.get_attribute("href").removeprefix("#")
    link.click()
    opened = page.locator(f"#{name}")
    opened.wait_for()
    assert page.evaluate("document.activeElement.id") == name
    assert page.locator("main > section").evaluate_all("all => all.every(e => getComputedStyle(e).display === 'none')")
    assert opened.locator("img").evaluate_all("all => all.every(i => i.complete && i.naturalWidth > 400)")
    assert opened.locator("img").count() == 2
    report.shot("report-candidate")
    opened.locator("a", has_text="All candidates").click()
    page.locator("#candidates-table").wait_for()
    assert not opened.is_visible() and report.errors == [] and report.outside == []


@pytest.mark.parametrize("place", ["", "#candidate-1"])
def test_rules_of_accessibility_hold(report, place):
    """axe-core's: names, roles, contrast, landmarks, headings, tables; of the whole page and of an opened candidate."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed: pip install '.[ui]'").Axe()
    report.page.evaluate(f"location.hash = '{place}'")
    report.page.locator(place or ".js-plotly-plot").first.wait_for()
    found = axe.run(report.page).response["violations"]
    assert not found, [(v["id"], v["help"], [n["html"][:200] for n in v["nodes"][:3]]) for v in found]


def test_the_keyboard_reaches_everything_and_is_seen_where_it_is(report):
    page, seen = report.page, []
    page.locator(".js-plotly-plot .modebar-btn").first.wait_for()
    for _ in range(60):
        page.keyboard.press("Tab")
        style = "e => { const s = getComputedStyle(e); return [e.tagName, s.outlineStyle, parseFloat(s.outlineWidth)]; }"
        seen.append(page.locator("*:focus").evaluate(style))
    assert all(line == "solid" and width >= 2 for _, line, width in seen), seen
    assert {"A", "BUTTON", "DIV", "INPUT"} <= {tag for tag, *_ in seen}


def test_no_plot_offers_to_send_its_data_away(report):
    names = report.page.locator(".modebar-btn").evaluate_all("all => all.map(e => e.getAttribute('aria-label'))")
    assert "Reset axes" in names and not [n for n in names if "hare" in n or "loud" in n]


def test_a_narrow_window_needs_no_scrolling_sideways(report):
    report.page.set_viewport_size({"width": 360, "height": 800})
    # plots follow after a moment
    report.page.wait_for_function("document.documentElement.scrollWidth <= 360", timeout=20_000)
    report.page.evaluate("window.scrollTo(1000, 0)")
    assert report.page.evaluate("window.scrollX") == 0


def test_a_filter_says_how_many_rows_are_left(report):
    field, rows = report.page.get_by_label("Show only rows with"), report.page.locator("#candidates-table tbody tr")
    total = rows.count()
    field.fill("no row has this")
    report.page.get_by_text(f"0 of {total} shown").wait_for()
    assert not rows.first.is_visible()
    field.fill("")
    assert rows.first.is_visible()


def test_on_paper_nothing_is_folded_away(report):
    report.page.emulate_media(media="print")
    report.page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    shown = "all => all.every(e => getComputedStyle(e).display !== 'none')"
    assert report.page.locator("main > section, article.event").evaluate_all(shown)
    assert report.page.locator("details").evaluate_all("all => all.every(d => d.open)")
    report.page.emulate_media(media="screen")
    report.page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert not report.page.locator("details").evaluate_all("all => all.some(d => d.open)")
