"""Names serve where ids do."""

import pytest
import typer

from dearkd.cli.references import identifier_of
from dearkd.client import Client
from dearkd.errors import InvalidInput, NotFound
from tests.support.stand_in_api import StandInApi, a_dataset, a_job, a_teacher


@pytest.fixture
def client(api: StandInApi) -> Client:
    api.answer("GET /v1/teachers", {"data": [a_teacher("tch-2", name="shoes"), a_teacher("tch-1")], "has_more": True})
    api.answer("GET /v1/teachers", {"data": [a_teacher("tch-0", name="hats")], "has_more": False})
    api.answer("GET /v1/datasets", {"data": [a_dataset(f"ds-{n}", name="twice") for n in range(7)], "has_more": False})
    jobs = [a_job("syn-1", spec={"name": "both"}, name="not this"), a_job("syn-2", spec={"name": "made"})]
    api.answer("GET /v1/synthesis-jobs", {"data": jobs, "has_more": False})
    runs = [a_job("run-1", spec={"name": "trained"})]
    api.answer("GET /v1/training-runs", {"data": runs, "has_more": False})
    return Client(api.url)


def test_a_name_on_any_page_is_found_and_an_id_is_not_looked_up(client: Client, api: StandInApi) -> None:
    assert identifier_of(client, "tch-whatever", "teacher") == "tch-whatever"
    assert api.requests == []
    assert identifier_of(client, "hats", "teacher") == "tch-0"
    assert identifier_of(client, "made", "dataset", "synthesis job") == "syn-2"
    assert identifier_of(client, "trained", "job") == "run-1"


def test_what_several_have_or_none_is_refused_with_what_there_is(client: Client) -> None:
    with pytest.raises(InvalidInput, match=r"7 of kind dataset .*ds-0, ds-1, ds-2, ds-3, ds-4 and 2 more") as refused:
        identifier_of(client, "twice", "dataset", "synthesis job")
    assert refused.value.code == "ambiguous_name"
    with pytest.raises(NotFound, match="no job has the name 'not this'; an id looks like syn-… or run-…"):
        identifier_of(client, "not this", "job")


def test_an_id_of_another_kind_is_wrong_usage(client: Client, api: StandInApi) -> None:
    with pytest.raises(typer.BadParameter, match=r"ds-1 is no teacher: an id of one looks like tch-…"):
        identifier_of(client, "ds-1", "teacher")
    assert api.requests == []
