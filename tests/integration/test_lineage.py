"""Lineage: what something came from and what came of it, walked both ways, bounded, and only what one may see."""

import itertools
import uuid
from datetime import timedelta

import pytest
from django.contrib.auth.models import Permission
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from datasets.models import DatasetUserPermission
from registry import services
from registry.models import ModelVersion, RegisteredModelUserPermission, VersionParent
from tests import factories
from tests.integration.test_registry import commit
from training.lineage import walk
from training.lineage.walk import ANCESTORS, DESCENDANTS, MOST_NEIGHBOURS, MOST_NODES, MOST_STEPS, Key, lineage_of
from training.models import ExperimentUserPermission, Run

pytestmark = pytest.mark.django_db


def key(row):
    return Key(row._meta.verbose_name.replace(" ", "-"), row.pk)


def names(lineage, way=0):
    """Of the ancestors, of the descendants, or of all."""
    return {node.name for node in lineage.nodes.values() if not way or node.depth * way > 0}


def edges(lineage):
    return {(lineage.nodes[edge.source].name, edge.kind, lineage.nodes[edge.target].name) for edge in lineage.edges}


@pytest.fixture
def data(organization):
    dataset = factories.DatasetFactory(organization=organization, name="petals")
    first = factories.DatasetVersionFactory(dataset=dataset, number=1)
    return first, factories.DatasetVersionFactory(dataset=dataset, number=2, extends=first)


@pytest.fixture
def experiment(organization):
    return factories.ExperimentFactory(organization=organization)


@pytest.fixture
def model(organization):
    return factories.RegisteredModelFactory(organization=organization, name="kinds")


def trained(actor, model, data, experiment, name, **more):
    """A run that succeeded, and the version that it made."""
    version = commit(actor, model, dataset_version=data, **more)
    run = factories.RunFactory(
        experiment=experiment, dataset_version=data, name=name, state="succeeded", output_version=version
    )
    return run, version


@pytest.fixture
def history(trainer, model, data, experiment):
    """Two runs on petals v1 and v2 make v1 and v2; v3, trained on a side branch, is merged into v4; v5 restores v1."""
    _, first = trained(trainer, model, data[0], experiment, "one")
    trained(trainer, model, data[1], experiment, "two")
    _, side = trained(trainer, model, data[0], experiment, "three", parents=[first], branch="side")
    head = model.versions.get(number=2)
    commit(trainer, model, parents=[head, side], dataset_version=data[1])
    services.roll_back(actor=trainer, model=model, kind="branch", name="main", to=first)
    return {version.number: version for version in model.versions.all()}


def test_the_whole_way_from_the_data_to_what_came_of_it(trainer, data, history):
    found = lineage_of(trainer, key(data[0]))
    assert names(found, ANCESTORS) == set()
    assert names(found) == {"petals v1", "petals v2", "one", "two", "three", *(f"kinds v{n}" for n in range(1, 6))}
    assert edges(found) == {
        ("petals v1", "extended", "petals v2"), ("petals v1", "input", "one"), ("petals v1", "input", "three"),
        ("petals v2", "input", "two"), ("one", "output", "kinds v1"), ("two", "output", "kinds v2"),
        ("three", "output", "kinds v3"), ("kinds v1", "continued", "kinds v2"), ("kinds v1", "continued", "kinds v3"),
        ("kinds v2", "continued", "kinds v4"), ("kinds v3", "merged", "kinds v4"), ("petals v2", "data", "kinds v4"),
        ("kinds v4", "continued", "kinds v5"), ("kinds v1", "restored", "kinds v5"), ("petals v1", "data", "kinds v5"),
    }  # fmt: skip
    assert found.more == []


def test_a_version_has_its_ancestors_and_its_descendants_and_no_siblings(trainer, history):
    found = lineage_of(trainer, key(history[3]))
    assert names(found, ANCESTORS) == {"three", "petals v1", "kinds v1", "one"}
    assert names(found, DESCENDANTS) == {"kinds v4", "kinds v5"}
    depths = {node.name: node.depth for node in found.nodes.values()}
    assert depths["kinds v3"] == 0 and depths["kinds v1"] == -1 and depths["kinds v5"] == 2 and depths["one"] == -2


def test_a_run_stands_between_its_data_and_its_version(trainer, history):
    found = lineage_of(trainer, key(Run.objects.get(name="two")))
    assert names(found, ANCESTORS) == {"petals v2", "petals v1"}
    assert names(found, DESCENDANTS) == {"kinds v2", "kinds v4", "kinds v5"}


def test_a_roll_back_to_another_branch_comes_from_what_it_restores(trainer, model, history):
    services.roll_back(actor=trainer, model=model, kind="branch", name="side", to=history[2])
    restored = model.versions.latest("number")
    assert ("kinds v2", "restored", "kinds v6") in edges(lineage_of(trainer, key(restored)))
    assert "kinds v6" in names(lineage_of(trainer, key(history[2])), DESCENDANTS)


def test_a_commit_on_top_of_a_roll_back_does_not_restore_anything(trainer, model, history):
    services.commit_files(
        actor=trainer, model=model, message="card", added={"NOTES.md": {"sha256": "b" * 64, "size": 1}}
    )
    later = model.versions.latest("number")
    assert later.number == 6 and "restores" not in later.lineage
    assert "restores" in history[5].lineage


def test_aliases_are_told_and_a_lonely_thing_has_a_lineage_of_itself(trainer, maintainer, model, history, organization):
    services.move_ref(actor=maintainer, model=model, kind="alias", name="production", version=history[4])
    found = lineage_of(trainer, key(history[4]))
    assert found.nodes[found.center].aliases == ("production",)
    alone = lineage_of(trainer, key(factories.DatasetVersionFactory(dataset__organization=organization)))
    assert len(alone.nodes) == 1 and alone.edges == [] and alone.more == []


# --- what one may not see ---------------------------------------------------------------------------------


def share(user, row, table):
    name = f"view_{row._meta.model_name}"
    permission = Permission.objects.get(codename=name, content_type__app_label=row._meta.app_label)
    table.objects.create(user=user, permission=permission, content_object=row)


def test_what_is_not_shared_is_neither_shown_nor_counted(stranger, data, model, experiment, history):
    share(stranger, model, RegisteredModelUserPermission)
    found = lineage_of(stranger, key(history[1]))
    assert names(found) == {f"kinds v{number}" for number in range(1, 6)} and found.more == []
    share(stranger, data[0].dataset, DatasetUserPermission)
    found = lineage_of(stranger, key(data[0]))
    assert ("petals v1", "data", "kinds v1") in edges(found), "joined directly where the run between is hidden"
    assert not {"one", "two", "three"} & names(found) and found.more == []
    share(stranger, experiment, ExperimentUserPermission)
    found = lineage_of(stranger, key(data[0]))
    assert {"one", "two", "three"} < names(found) and ("petals v1", "data", "kinds v1") not in edges(found)


def test_hidden_runs_are_not_counted_in_what_is_left_out(stranger, data, organization, monkeypatch):
    monkeypatch.setattr(walk, "MOST_NEIGHBOURS", 2)
    share(stranger, data[0].dataset, DatasetUserPermission)
    shown = factories.ExperimentFactory(organization=organization)
    share(stranger, shown, ExperimentUserPermission)
    for _ in range(3):
        factories.RunFactory(experiment=shown, dataset_version=data[0])
        factories.RunFactory(experiment__organization=organization, dataset_version=data[0])
    assert [more.count for more in lineage_of(stranger, key(data[0])).more] == [1]


@pytest.mark.parametrize("kind", ["dataset-version", "run", "model-version"])
def test_the_three_people_and_what_names_nothing(web, api, trainer, viewer, stranger, history, data, kind):
    row = {"dataset-version": data[0], "run": Run.objects.first(), "model-version": history[1]}[kind]
    page, call = f"/lineage/{kind}s/{row.pk}/", f"/api/v1/lineage/{kind}/{row.pk}"
    for person in (trainer, viewer):
        assert web(person).get(page).status_code == api(person).get(call).status_code == 200
    assert web(stranger).get(page).status_code == api(stranger).get(call).status_code == 404
    assert web(None).get(page).url.startswith("/login") and api(None).get(call).status_code == 401
    for wrong in (uuid.uuid4(), "x", "%00", f"{row.pk}%00"):
        assert web(trainer).get(f"/lineage/{kind}s/{wrong}/").status_code == 404
        assert api(trainer).get(f"/api/v1/lineage/{kind}/{wrong}").status_code == 404
    for other in ("magic", f"{kind}s", "%00"):
        assert api(trainer).get(f"/api/v1/lineage/{other}/{row.pk}").status_code == 404
    assert web(trainer).post(page).status_code == 405


# --- bounds -----------------------------------------------------------------------------------------------


def chain(model, length):
    """Versions of which each continues the one before."""
    versions = [factories.ModelVersionFactory.build(model=model, number=number) for number in range(1, length + 1)]
    ModelVersion.objects.bulk_create(versions)
    pairs = itertools.pairwise(versions)
    VersionParent.objects.bulk_create(VersionParent(parent=older, child=newer) for older, newer in pairs)
    return versions


def runs(experiment, data, count):
    now = timezone.now()
    made = [factories.RunFactory.build(experiment=experiment, dataset_version=data) for _ in range(count)]
    Run.objects.bulk_create(made)
    for age, run in enumerate(made):
        Run.objects.filter(pk=run.pk).update(created_at=now - timedelta(seconds=age))
    return made


def test_a_long_line_ends_after_some_steps_and_leads_on(viewer, model):
    versions = chain(model, 60)
    middle = key(versions[30])
    found = lineage_of(viewer, middle)
    assert len(found.nodes) == 2 * MOST_STEPS + 1
    ends = {(more.key.id, more.direction, more.count) for more in found.more}
    first, last = versions[30 - MOST_STEPS].pk, versions[30 + MOST_STEPS].pk
    assert ends == {(first, ANCESTORS, 1), (last, DESCENDANTS, 1)}
    onward = next(more for more in found.more if more.direction == DESCENDANTS)
    assert onward.address == f"/lineage/model-versions/{last}/"
    assert len(lineage_of(viewer, onward.key).nodes) == 2 * MOST_STEPS + 1


def test_the_newest_of_many_runs_are_shown_and_the_others_counted_and_reached(viewer, data, experiment, web):
    made = runs(experiment, data[1], MOST_NEIGHBOURS + 7)
    center = key(data[1])
    found = lineage_of(viewer, center)
    assert names(found, DESCENDANTS) == {run.name for run in made[:MOST_NEIGHBOURS]}
    assert [(more.key, more.count, more.address) for more in found.more] == [
        (center, 7, f"{center.address}?skip={MOST_NEIGHBOURS}")
    ]
    rest = lineage_of(viewer, center, skip=MOST_NEIGHBOURS)
    assert names(rest, DESCENDANTS) == {run.name for run in made[MOST_NEIGHBOURS:]}
    assert [(more.count, more.address) for more in rest.more] == [(MOST_NEIGHBOURS, center.address)]
    beyond = lineage_of(viewer, center, skip=1000)
    assert names(beyond, DESCENDANTS) == set() and beyond.more[0].count == MOST_NEIGHBOURS + 7
    text = web(viewer).get(center.address).content.decode()
    assert "… and 7 more descendants of petals v2" in text and f"?skip={MOST_NEIGHBOURS}" in text
    for odd in ("-1", "x", "\0", "9" * 50, "²", "1.5"):
        assert web(viewer).get(center.address, {"skip": odd}).status_code == 200


def test_no_more_nodes_than_the_bound_and_all_others_counted(viewer, data, experiment, monkeypatch):
    monkeypatch.setattr(walk, "MOST_NODES", 5)
    runs(experiment, data[1], 8)
    found = lineage_of(viewer, key(data[0]))
    assert len(found.nodes) == 6 and sum(more.count for more in found.more) == 4
    assert MOST_NODES == 200


def test_a_step_asks_as_many_questions_for_one_thing_as_for_many(viewer, data, model, experiment, trainer):
    trained(trainer, model, data[1], experiment, "one")
    with CaptureQueriesContext(
        connection,
    ) as few:
        lineage_of(viewer, key(data[1]))
    for number in range(12):
        trained(trainer, model, data[1], experiment, f"run {number}", parents=[], branch=f"b{number}")
    with CaptureQueriesContext(connection) as many:
        found = lineage_of(viewer, key(data[1]))
    assert len(found.nodes) == 27 + 1 and len(many) == len(few)
    assert len(many) < 35


def test_the_longest_walk_costs_a_bounded_number_of_questions(viewer, model, web, django_assert_max_num_queries):
    versions = chain(model, 60)
    with django_assert_max_num_queries(30 + (MOST_STEPS + 1) * 9):
        assert web(viewer).get(key(versions[30]).address).status_code == 200


# --- the page and the API ---------------------------------------------------------------------------------


def test_the_page_draws_every_node_with_a_link_to_its_lineage_and_to_its_page(web, viewer, data, history):
    text = web(viewer).get(key(data[0]).address).content.decode()
    assert text.count('class="shape"') == 10 and text.count('class="opens"') == 10
    for row in (*history.values(), *Run.objects.all()):
        assert f'href="{key(row).address}"' in text
    assert f'href="/model-versions/{history[4].pk}/"' in text and f"/datasets/{data[0].dataset_id}/?version=2" in text
    assert 'aria-current="true"' in text and "Model version kinds v4" in text
    assert "No ancestors and 9 descendants" in text
    assert 'class="line merged"' in text and 'class="line restored"' in text


def test_the_pages_of_the_three_lead_to_their_lineage(web, viewer, data, history):
    run = Run.objects.first()
    places = {
        f"/datasets/{data[1].dataset_id}/?version=2": data[1], f"/runs/{run.pk}/": run,
        f"/model-versions/{history[2].pk}/": history[2],
    }  # fmt: skip
    for address, row in places.items():
        assert f'href="{key(row).address}"' in web(viewer).get(address).content.decode(), address


def test_hostile_names_stay_text_in_the_drawing(web, viewer, organization):
    hostile = '"><script>alert(1)</script>'
    dataset = factories.DatasetFactory(organization=organization, name=hostile)
    run = factories.RunFactory(
        experiment__organization=organization, dataset_version__dataset=dataset, name='</svg><img src=x onerror="x">'
    )
    answer = web(viewer).get(key(run).address)
    assert b"<script>alert" not in answer.content and b"<img" not in answer.content
    assert b" style=" not in answer.content and "style-src 'self'" in answer["Content-Security-Policy"]


def test_the_api_answers_with_nodes_edges_and_what_is_left_out(api, viewer, data, history, experiment):
    call = f"/api/v1/lineage/model-version/{history[3].pk}"
    told = api(viewer).get(call).json()
    assert told["center"] == {"kind": "model-version", "id": str(history[3].pk)} and told["truncated"] is False
    by_name = {node["name"]: node for node in told["nodes"]}
    assert set(by_name["three"]) == {"kind", "id", "name", "state", "created_at", "depth", "aliases", "url"}
    assert by_name["three"]["depth"] == -1 and by_name["three"]["state"] == "succeeded"
    assert by_name["three"]["url"] == f"http://testserver/runs/{by_name['three']['id']}/"
    assert by_name["kinds v3"]["state"] is None and by_name["kinds v4"]["depth"] == 1
    edge = {"from": by_name["three"]["id"], "to": str(history[3].pk), "kind": "output"}
    assert edge in told["edges"] and told["more"] == []
    runs(experiment, data[1], MOST_NEIGHBOURS + 1)
    told = api(viewer).get(f"/api/v1/lineage/dataset-version/{data[1].pk}").json()
    left_out = {"kind": "dataset-version", "id": str(data[1].pk), "direction": "descendants", "count": 2}
    assert told["truncated"] is True and told["more"] == [left_out]
    told = api(viewer).get(f"/api/v1/lineage/dataset-version/{data[1].pk}?skip={MOST_NEIGHBOURS}").json()
    assert told["more"][0]["count"] == MOST_NEIGHBOURS + 1, "the newest runs and the merged version"
    for odd in ("-1", "x", "%00", "1000000"):
        refused = api(viewer).get(f"{call}?skip={odd}")
        assert refused.status_code == 400 and refused.json()["errors"][0]["attr"] == "skip"
