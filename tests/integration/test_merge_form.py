"""The form of a merge: what each method asks for, what is refused in which words, and who may use it."""

import uuid

import pytest

from datasets.models import DatasetVersion
from registry.merge_form import LABELS
from registry.merges import DEFAULT_RECIPE, METHODS, USES
from registry.models import Merge
from tests import factories
from tests.integration.test_history import SIGNATURE
from tests.integration.test_registry import commit

pytestmark = pytest.mark.django_db


@pytest.fixture
def data(organization):
    return factories.DatasetVersionFactory(dataset__organization=organization, number=1)


@pytest.fixture
def model(organization):
    return factories.RegisteredModelFactory(organization=organization)


@pytest.fixture
def side(trainer, model, data):
    """The head of a branch beside main, which both continue v1."""
    wanted = {"signature": SIGNATURE, "dataset_version": data}
    first = commit(trainer, model, **wanted)
    made = commit(trainer, model, parents=[first], branch="side", **wanted)
    commit(trainer, model, parents=[first], **wanted)
    return made


@pytest.fixture
def ask(web, trainer, model, side):
    """``ask(method="ties", density="0.5")`` posts the form as it stands without scripts."""

    def post(person=trainer, **given):
        body = {"theirs": str(side.pk), "branch": "main", "method": "average"} | given
        return web(person).post(f"/models/{model.pk}/merge", body)

    return post


def words(answer):
    return answer.content.decode().replace("&#x27;", "'")


@pytest.mark.parametrize(
    ("given", "recipe"),
    [
        ({"method": "average"}, {}),
        ({"method": "average", "ours_share": "3", "theirs_share": "1"}, {"shares": [3.0, 1.0]}),
        ({"method": "slerp", "ours_share": "0", "theirs_share": "1"}, {"shares": [0.0, 1.0]}),
        ({"method": "task-arithmetic", "ours_share": "1", "theirs_share": "-0.5"}, {"shares": [1.0, -0.5]}),
        ({"method": "ties", "density": "0.5"}, {"density": 0.5}),
        (
            {"method": "ties", "ours_share": "1", "theirs_share": "2", "density": "1"},
            {"shares": [1.0, 2.0], "density": 1.0},
        ),
        ({"method": "regmean", "shrink": "0"}, {"shrink": 0.0}),
    ],
)
def test_what_is_given_goes_into_the_recipe_and_the_rest_is_the_default(ask, given, recipe):
    answer = ask(**given)
    made = Merge.objects.get()
    assert answer.url == f"/merges/{made.pk}/"
    assert made.recipe == DEFAULT_RECIPE | {"method": given["method"]} | recipe


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"ours_share": "1"}, "Give both shares, or leave both empty."),
        ({"theirs_share": "1"}, "Give both shares, or leave both empty."),
        ({"ours_share": "x", "theirs_share": "1"}, "Enter a number."),
        ({"ours_share": "nan", "theirs_share": "1"}, "Enter a number."),
        ({"ours_share": "101", "theirs_share": "1"}, "less than or equal to 100"),
        ({"ours_share": "1", "theirs_share": "-1"}, "The two shares must add up to more than zero."),
        ({"method": "slerp", "ours_share": "0", "theirs_share": "0"}, "The two shares must add up to more than zero."),
        ({"density": "0.5"}, "Density is not used by average, only by ties. Leave it empty."),
        ({"method": "ties", "density": "0"}, "greater than or equal to 0.001"),
        ({"method": "ties", "shrink": "0.5"}, "Shrink is not used by ties, only by regmean."),
        (
            {"method": "regmean", "ours_share": "1"},
            "Share of the branch is not used by regmean, only by average, slerp",
        ),
        ({"method": "magic"}, "magic is not one of the available choices"),
        ({"method": ""}, "This field is required."),
        ({"branch": "none"}, "There is no branch “none”."),
        ({"branch": "\0"}, "Null characters are not allowed."),
        ({"dataset_version": "x"}, "Enter a valid UUID."),
        ({"dataset_version": str(uuid.UUID(int=7))}, "There is no ready dataset version with this id."),
    ],
)
def test_what_is_refused_is_said_beside_its_field_and_nothing_is_lost(ask, given, told):
    answer = ask(**given)
    assert answer.status_code == 200 and told in words(answer), words(answer)
    assert 'class="errors"' in words(answer) and not Merge.objects.exists()
    for name, value in given.items():
        if name.endswith("share"):
            assert f'name="{name}" value="{value}"' in words(answer)


def test_what_cannot_be_merged_is_said_above_the_form(ask, trainer, model, side):
    odd = commit(trainer, model, task="regression", parents=[side], branch="odd", signature=SIGNATURE)
    assert "The tasks differ" in words(ask(theirs=str(odd.pk)))
    first = model.versions.get(number=1)
    assert "is part of “main” already" in words(ask(theirs=str(first.pk)))


def test_the_rows_to_evaluate_on_can_be_chosen_among_those_one_may_see(ask, organization, model, side, web, trainer):
    other = factories.DatasetVersionFactory(dataset__organization=organization, dataset__name="held out")
    foreign = factories.DatasetVersionFactory(dataset__name="foreign")
    waiting = factories.DatasetVersionFactory(dataset__organization=organization, state=DatasetVersion.State.QUEUED)
    text = words(web(trainer).get(f"/models/{model.pk}/merge?theirs=side"))
    assert f'value="{other.pk}"' in text and "foreign" not in text and str(waiting.pk) not in text
    for refused in (foreign, waiting):
        assert "There is no ready dataset version" in words(ask(dataset_version=str(refused.pk)))
    ask(dataset_version=str(other.pk))
    assert Merge.objects.get().dataset_version == other


def test_without_scripts_the_page_shows_every_field_with_the_methods_that_use_it(web, trainer, model, side):
    page = web(trainer)
    diff = words(page.get(f"/models/{model.pk}/diff?head=side"))
    assert f'href="/models/{model.pk}/merge?theirs={side.pk}"' in diff and 'id="merge-dialog"' in diff
    for text in (diff, words(page.get(f"/models/{model.pk}/merge?theirs={side.pk}"))):
        assert 'data-methods="average slerp task-arithmetic ties"' in text
        assert 'data-methods="ties"' in text and 'data-methods="regmean"' in text
        for name in ("ours_share", "theirs_share", "density", "shrink", "dataset_version"):
            assert f'name="{name}"' in text
        assert f'name="theirs" value="{side.pk}"' in text and " hidden>" not in text.split("data-methods", 1)[1]
    assert set(LABELS) == set(METHODS) == set(USES)


def test_the_page_of_the_merge_tells_its_recipe(ask, web, viewer):
    address = ask(method="ties", ours_share="1", theirs_share="0.5", density="0.3").url
    assert "ties · shares 1 and 0.5 · density 0.3" in words(web(viewer).get(address))


def test_a_viewer_may_not_ask_and_a_stranger_finds_nothing(ask, web, viewer, trainer, stranger, model, side):
    address = f"/models/{model.pk}/merge?theirs={side.pk}"
    assert web(viewer).get(address).status_code == ask(viewer).status_code == 403
    assert web(stranger).get(address).status_code == ask(stranger).status_code == 404
    assert web(None).get(address).url.startswith("/login")
    assert "merge-dialog" not in words(web(viewer).get(f"/models/{model.pk}/diff?head=side"))
    for wrong in ("", "?theirs=", "?theirs=%00", "?theirs=x", f"?theirs={uuid.uuid4()}"):
        assert web(trainer).get(f"/models/{model.pk}/merge{wrong}").status_code == 404
    assert ask(theirs="x").status_code == ask(theirs="").status_code == ask(theirs=str(uuid.uuid4())).status_code == 404
    assert not Merge.objects.exists()


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("shares", {"shares": ["nan", 1]}), ("shares", {"shares": [1, "-inf"]}), ("shares", {"shares": [1, -1]}),
        ("density", {"method": "ties", "density": "nan"}), ("shrink", {"method": "regmean", "shrink": "nan"}),
    ],
)  # fmt: skip
def test_the_api_refuses_the_same_before_any_work(api, trainer, model, side, field, given):
    answer = api(trainer).post(f"/api/v1/models/{model.pk}/merge", {"theirs": str(side.pk)} | given, format="json")
    assert answer.status_code == 400, answer.content
    assert answer.json()["errors"][0]["attr"].startswith(field) and not Merge.objects.exists()
