"""A new job in a real browser: from a teacher to its forecast, an error at its field, and the job."""

import pytest

from tests.services.dashboard.contents import Contents
from tests.support.api_contents import put_teacher
from tests.support.browser import Visit
from tests.support.services import Api

pytestmark = pytest.mark.services


def test_a_job_is_forecast_corrected_and_begun(visit: Visit, api: Api) -> None:
    page = visit.page
    visit.open(f"/teachers/{put_teacher(api)}")
    page.click("text=Make a dataset from it")
    assert page.input_value("#teacher").startswith("tch-")
    visit.look("new")
    page.fill("#images_per_class", "0")
    visit.allowed.append("status of 422")
    page.click("#ask")
    page.wait_for_selector("#errors")
    visit.look("new-wrong")
    page.click("#errors a")
    assert page.url.endswith("#images_per_class")
    page.fill("#images_per_class", "2")
    page.click("#ask")
    page.wait_for_selector("#forecast")
    visit.look("new-forecast")
    page.fill("#name", "from a form")
    page.click("#begin")
    page.wait_for_url("**/jobs/syn-*")
    assert page.inner_text("h1") == "from a form"


def test_without_scripts_a_run_is_begun(plain: Visit, contents: Contents) -> None:
    page = plain.page
    plain.open(f"/datasets/{contents.other}")
    page.click("text=Train on it")
    page.click("summary:has-text('More')")
    page.select_option("[id='stage_one.distillation']", "none")
    page.fill("[id='stage_one.weights.hidden']", "0")
    page.click("#begin")
    assert page.url.partition("/runs/")[2].startswith("run-")
