"""Pages of a model's history: the graph and its lanes, what stood when, comparison, release and rollback by buttons."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry import services
from registry.graph import graph, width_of
from registry.models import ModelVersion, VersionParent
from tests import factories
from tests.integration.test_history import SIGNATURE
from tests.integration.test_registry import commit

pytestmark = pytest.mark.django_db


@pytest.fixture
def model(organization):
    return factories.RegisteredModelFactory(organization=organization)


@pytest.fixture
def branchy(trainer, model):
    """main: 1, 2, 4 (a merge of 3); side: 3."""
    first = commit(trainer, model, signature=SIGNATURE)
    second = commit(trainer, model, signature=SIGNATURE)
    side = commit(trainer, model, signature=SIGNATURE, parents=[first], branch="side")
    commit(trainer, model, signature=SIGNATURE, parents=[second, side])
    return model


def test_the_graph_gives_every_branch_a_lane_and_joins_it_at_a_merge():
    rows = graph([4, 3, 2, 1], {4: [2, 3], 3: [1], 2: [1]})
    assert [(row.number, row.lane) for row in rows] == [(4, 0), (3, 1), (2, 0), (1, 0)]
    assert [line.path for line in rows[0].lines] == ["M8 22V44", "M8 22C8 33 24 33 24 44"]
    assert [line.path for line in rows[3].lines] == ["M8 0V22", "M24 0C24 11 8 11 8 22"] and width_of(rows) == 32
    assert graph([], {}) == [] and width_of([]) == 16


@given(st.data())
def test_every_line_of_the_graph_goes_on_in_the_next_row(data):
    count = data.draw(st.integers(1, 20))
    parents = {
        number: data.draw(st.lists(st.integers(1, number - 1), max_size=3, unique=True))
        for number in range(2, count + 1)
    }
    rows = graph(list(range(count, 0, -1)), parents)
    for upper, lower in itertools.pairwise(rows):
        assert _ends(upper, bottom=True) == _ends(lower, bottom=False)


def _ends(row, bottom):
    """x of the strokes that reach the row's lower or upper edge."""
    found = set()
    for line in row.lines:
        numbers = [int(number) for number in re.findall(r"\d+", line.path)]
        start, end = (numbers[0], numbers[1]), (numbers[-2] if "C" in line.path else numbers[0], numbers[-1])
        if bottom and end[1] == 44:
            found.add(end[0])
        if not bottom and start[1] == 0:
            found.add(start[0])
    return found


def test_the_history_page_shows_versions_refs_and_what_stood_when(web, viewer, branchy, django_assert_max_num_queries):
    page = web(viewer)
    with django_assert_max_num_queries(14):
        text = page.get(f"/models/{branchy.pk}/history").content.decode()
    assert text.count("<circle") == 4 and "side" in text and "main" in text
    part = page.get(f"/models/{branchy.pk}/history?part=then&time=2020-01-01T00:00:00", headers={"HX-Request": "true"})
    assert "Nothing pointed at a version then" in part.content.decode() and "<html" not in part.content.decode()
    for time_ in ("x", "2026-99-01T00:00", "\0"):
        assert page.get(f"/models/{branchy.pk}/history", {"time": time_}).status_code == 200


def test_the_diff_page_compares_what_is_chosen_and_the_parent_by_default(web, viewer, branchy):
    page = web(viewer)
    assert "v2 → v4" in page.get(f"/models/{branchy.pk}/diff").content.decode()
    assert "v1 → v3" in page.get(f"/models/{branchy.pk}/diff?base=1&head=side").content.decode()
    assert "Common ancestor v1" in page.get(f"/models/{branchy.pk}/diff?base=2&head=3").content.decode()
    assert page.get(f"/models/{branchy.pk}/diff?base=%00&head=999").status_code == 200


def test_history_pages_are_closed_to_strangers_and_the_empty_model_is_told(
    web, stranger, viewer, branchy, organization
):
    version = branchy.versions.first()
    for path in ("history", "diff"):
        assert web(stranger).get(f"/models/{branchy.pk}/{path}").status_code == 404
    assert web(stranger).post(f"/models/{branchy.pk}/rollback").status_code == 404
    assert web(stranger).post(f"/model-versions/{version.pk}/release").status_code == 404
    assert web(viewer).post(f"/model-versions/{version.pk}/release", {"bump": "major"}).status_code == 403
    empty = factories.RegisteredModelFactory(organization=organization)
    assert "No version yet" in web(viewer).get(f"/models/{empty.pk}/history").content.decode()
    assert web(viewer).get(f"/models/{empty.pk}/diff").status_code == 404


def test_release_and_rollback_by_their_buttons(web, maintainer, branchy):
    page = web(maintainer)
    versions = list(branchy.versions.order_by("number"))
    assert "Release 1.0.0" in page.get(f"/model-versions/{versions[0].pk}/").content.decode()
    page.post(f"/model-versions/{versions[0].pk}/release", {"bump": "major", "notes": ""})
    refused = page.post(f"/model-versions/{versions[1].pk}/release", {"bump": "huge"}, follow=True).content.decode()
    assert "huge" in refused and branchy.releases.count() == 1
    for version in versions[:2]:
        services.move_ref(actor=maintainer, model=branchy, kind="alias", name="production", version=version)
    page.post(f"/models/{branchy.pk}/rollback", {"kind": "alias", "name": "production", "reason": "slow"})
    assert branchy.refs.get(kind="alias", name="production").version == versions[0]
    again = page.post(f"/models/{branchy.pk}/rollback", {"kind": "tag", "name": "1.0.0"}, follow=True).content.decode()
    assert "Tags never move" in again


def test_a_model_page_with_500_versions_and_20_branches_costs_few_queries(
    web, viewer, trainer, model, django_assert_max_num_queries
):
    versions = [factories.ModelVersionFactory.build(model=model, number=number) for number in range(1, 501)]
    ModelVersion.objects.bulk_create(versions)
    VersionParent.objects.bulk_create(
        VersionParent(child=version, parent=versions[max(index - 20, 0)])
        for index, version in enumerate(versions)
        if index
    )
    for number in range(20):
        factories.RefFactory(version=versions[-1 - number], kind="branch", name=f"b{number}")
    page = web(viewer)
    for path in ("", "history"):
        with django_assert_max_num_queries(20):
            assert page.get(f"/models/{model.pk}/{path}").status_code == 200
