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
                assert any(c.isdigit() for c in texts.first.inner_text())
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
