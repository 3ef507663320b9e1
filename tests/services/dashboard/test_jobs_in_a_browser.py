"""Jobs and a job in a real browser: what is shown, each button, what a lost connection looks like."""

import re
from typing import Any

import pytest

from dearkd.jobs.ledger import Ledger
from dearkd.settings import Settings
from tests.services.dashboard.contents import Contents
from tests.support.api_contents import post_synthesis
from tests.support.browser import Visit, visiting
from tests.support.services import Api, database, eventually, serving

pytestmark = pytest.mark.services


def test_jobs_are_listed_searched_and_steered(visit: Visit, api: Api, contents: Contents) -> None:
    page = visit.page
    visit.open("/")
    assert page.title() == "Jobs · dearkd"
    visit.look("jobs")
    page.click("#view-lineage")
    page.wait_for_url("**view=lineage**")
    (tree,) = page.locator(".tree").all()
    branch = tree.locator("> ul > li", has_text="vit on digits")
    assert branch.locator("a").all_inner_texts() == ["digits", "its dataset", "vit on digits", "its model"]
    visit.look("lineage")
    visit.open("/")
    page.fill("#q", "more")
    page.select_option("#status", "running")
    page.press("#q", "Enter")
    page.wait_for_url("**/?q=more&status=running**")
    assert page.locator("table.jobs tbody tr").count() == 1
    job = post_synthesis(api, teacher=contents.teacher, name="to be steered")
    visit.open("/")
    page.click(f"#pause-{job['id']}")
    page.wait_for_selector(f"#resume-{job['id']}")
    page.click(f"#resume-{job['id']}")
    page.wait_for_selector(f"#pause-{job['id']}")
    page.click(f"#cancel-{job['id']}")
    page.wait_for_selector(f"#retry-{job['id']}")
    # What happens elsewhere is seen without loading the page again.
    api.http.post(job["links"]["retry"])
    page.wait_for_selector(f"#pause-{job['id']}")
    api.http.post(job["links"]["cancel"])


def test_the_keyboard_reaches_everything(visit: Visit, contents: Contents) -> None:
    page = visit.page
    visit.open("/")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "New synthesis job", "behind what was skipped"
    page.focus(f"#open-{contents.running}")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"
    page.wait_for_event("response", lambda answer: answer.request.headers.get("hx-request") == "true")
    page.wait_for_timeout(100)
    assert page.evaluate("document.activeElement.id") == f"open-{contents.running}", "renewed, it keeps the focus"


def test_a_running_job_moves(visit: Visit, api: Api, contents: Contents) -> None:
    page = visit.page
    visit.open(f"/jobs/{contents.running}")
    page.wait_for_selector("#terms canvas")
    assert "boundary" in page.inner_text("#terms .u-legend")
    page.hover("#terms .u-over")
    assert re.search(r"optimisation step\s*\n?\s*:?\s*\d+", page.inner_text("#terms .u-legend"))
    page.click("#terms button")
    assert page.get_attribute("#terms button", "aria-pressed") == "true"
    page.hover("[data-grid] img", position={"x": 60, "y": 50})
    page.locator("[data-cell]", has_text=re.compile(r"^one: \d\d\.\d %$")).wait_for()
    visit.look("job")
    page.mouse.move(0, 0)
    page.focus("[data-grid]")
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
    page.locator("[data-cell]", has_text=re.compile(r"^two: ")).wait_for()
    eventually(
        lambda: page.evaluate("[...document.querySelectorAll('img.preview')].every((one) => one.naturalWidth > 0)"),
        seconds=15,
    )
    ledger = Ledger(api.store)
    api.store.redis.hset(f"dearkd:job:{contents.running}", "progress", '{"done": 399, "total": 400, "unit": "images"}')
    page.locator("#state .facts b", has_text="399").wait_for()
    ledger.log.add(contents.running, "a line that came later")
    page.locator("#log", has_text="a line that came later").wait_for()


def test_a_finished_job_leads_on(visit: Visit, contents: Contents) -> None:
    page = visit.page
    visit.open(f"/jobs/{contents.made}")
    page.wait_for_selector("#terms canvas")
    visit.look("job-finished")
    names = page.locator(".lineage li").all_inner_texts()
    assert [name.split("\n")[0] for name in names] == ["teacher", "synthesis", "dataset", "runs", "models"]
    page.click(".lineage a[href^='/runs/']")
    page.wait_for_url("**/runs/**")
    page.wait_for_selector("#chart-losses canvas")
    page.wait_for_selector("#chart-attention canvas")
    assert page.locator(".chart canvas").count() == 5
    assert "after epoch 30 (stage 1)" in page.inner_text("#chart-attention .u-legend")
    visit.look("run")
    page.click(".lineage a[href^='/models/']")
    page.wait_for_url("**/models/**")
    visit.open("/models")
    visit.look("models")
    visit.open(f"/teachers/{contents.teacher}")
    visit.look("teacher")


def test_what_is_not_there_and_what_failed(visit: Visit, contents: Contents) -> None:
    page = visit.page
    visit.open(f"/jobs/{contents.failed}")
    assert "poor_images" in page.inner_text(".error")
    visit.look("job-failed")
    visit.allowed.append("status of 404")
    assert visit.open("/jobs/syn-00000000000-00000000").status == 404
    visit.look("unknown")
    page.click("text=All jobs")
    page.wait_for_selector("table.jobs")


def test_a_lost_connection_is_said_and_made_good(visit: Visit, contents: Contents) -> None:
    page = visit.page
    visit.open("/")
    visit.allowed += ["ERR_INTERNET_DISCONNECTED", "htmx:afterRequest", "htmx:sendError"]
    page.context.set_offline(True)
    page.wait_for_selector("#banner:not([hidden])")
    assert "Out of touch" in page.inner_text("#banner")
    page.context.set_offline(False)
    page.wait_for_selector("#banner[hidden]", state="attached")


def test_without_scripts_pages_are_read_and_used(plain: Visit, api: Api, contents: Contents) -> None:
    page = plain.page
    plain.open("/")
    page.fill("#q", "digits")
    page.click("text=Search")
    page.click("text=more digits")
    assert "cross entropy" in page.inner_text("#terms-table")
    page.click("text=Pause")
    assert "paused" in page.inner_text(".status >> nth=0")
    page.click("text=Resume")
    assert page.locator(f"#pause-{contents.running}").count() == 1


def test_who_has_a_key_logs_in(browser: Any, redis_server: str, tmp_path: Any) -> None:
    key = "a-key-of-sixteen-or-more"
    settings = Settings(
        redis_url=database(redis_server, 12),
        storage_url=f"file://{tmp_path}/storage",
        cache_dir=tmp_path / "cache",
        api_keys=key,
    )
    with serving(settings, tmp_path) as keyed, visiting(browser, keyed.url) as visit:
        page = visit.page
        visit.allowed.append("status of 401")
        visit.open("/datasets")
        visit.look("login")
        page.fill("#key", "a-wrong-one-0123456")
        page.press("#key", "Enter")
        page.wait_for_selector("[role=alert]")
        page.fill("#key", key)
        page.press("#key", "Enter")
        page.wait_for_url("**/datasets")
        (cookie,) = page.context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
        assert page.evaluate("document.cookie") == ""
        # A login that expires while a page is open is asked for again.
        visit.open("/")
        keyed.store.redis.delete(*keyed.store.redis.scan_iter("dearkd:session:*"))
        page.wait_for_selector("#key")
        assert "has expired" in page.inner_text("[role=alert]")
        page.fill("#key", key)
        page.press("#key", "Enter")
        page.click("#log-out")
        page.wait_for_selector("#key")
