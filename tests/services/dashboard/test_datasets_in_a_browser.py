"""A dataset in a real browser: its gallery, zoom, another set beside it, what can be taken along."""

import pytest

from tests.services.dashboard.contents import Contents
from tests.support.browser import Visit
from tests.support.services import eventually

pytestmark = pytest.mark.services


def require_pictures(visit: Visit, selector: str) -> None:
    """Require that the first pictures of a selector are there."""
    script = f"[...document.querySelectorAll({selector!r})].slice(0, 6).every((one) => one.naturalWidth > 0)"
    eventually(lambda: visit.page.evaluate(script), seconds=15)


def test_a_dataset_is_looked_through(visit: Visit, contents: Contents) -> None:
    page = visit.page
    visit.open("/datasets")
    visit.look("datasets")
    page.click(f"a[href='/datasets/{contents.dataset}']")
    page.wait_for_selector(".gallery img")
    require_pictures(visit, ".gallery img")
    visit.look("dataset")
    assert page.locator(".map circle").count() == 400
    assert "taken for" in page.locator(".map .ring title").first.text_content()
    page.click(".classes a:has-text('seven')")
    page.wait_for_url("**?class=7")
    assert "of seven" in page.inner_text("#images-title")
    assert page.locator(".map circle:not(.other) title").first.text_content().startswith("seven")
    page.locator(".map circle:not(.other)").first.click()
    page.wait_for_selector("#zoom img")
    assert "seven" in page.inner_text("#zoom")
    page.click("#zoom >> text=Close")
    page.click(".gallery a >> nth=1")
    page.wait_for_selector("#zoom img")
    require_pictures(visit, "#zoom img")
    first = page.get_attribute("#zoom img", "src")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector(f"#zoom img:not([src='{first}'])")
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector(f"#zoom img[src='{first}']")
    visit.look("dataset-zoom")
    page.select_option("#with", contents.other)
    page.click("text=Show")
    page.wait_for_selector(".sides > div >> nth=1")
    require_pictures(visit, ".sides > div:nth-child(2) img")
    visit.look("dataset-beside")
    with page.expect_download() as taken:
        page.click("text=train-000000.tar")
    assert taken.value.suggested_filename == "train-000000.tar"


def test_the_worst_samples_and_pages_are_links(visit: Visit, contents: Contents) -> None:
    page = visit.page
    visit.open(f"/datasets/{contents.dataset}")
    page.click("#page-behind")
    page.wait_for_url("**page=2**")
    page.click("section[aria-labelledby=worst-title] a >> nth=0")
    page.wait_for_selector("#zoom img")
    assert "zero" in page.inner_text("#zoom")


def test_without_scripts_a_gallery_is_used(plain: Visit, contents: Contents) -> None:
    page = plain.page
    plain.open(f"/datasets/{contents.dataset}?class=3")
    page.click(".gallery a >> nth=2")
    assert page.locator("#zoom img").count() == 1
    page.click("#zoom a[rel=next]")
    assert page.locator("#zoom a[rel=prev]").count() == 1
