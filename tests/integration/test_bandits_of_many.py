"""Bandits of more than two versions: the best gets the traffic, each move is computed again, wrong ones are refused."""

# ruff: noqa: F811 - fixtures of another file

import json
import random
import uuid
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from django.db.models import F
from django.urls import reverse

from registry.serving import services
from registry.serving.assignment import assign, shares
from registry.serving.experiments import bandits, looks, ticking
from registry.serving.experiments import services as experiments
from registry.serving.experiments.agreement import same
from registry.serving.models import (
    Deployment,
    DeploymentChange,
    Experiment,
    Feedback,
    FurtherArm,
    Look,
    PredictionRecord,
)
from registry.serving.services import Wanted
from tests import factories
from tests.integration.experimenting import (  # noqa: F401
    TREE,
    deployment,
    further_versions,
    right,
    shares_of,
    started,
    versions,
    write,
)

pytestmark = pytest.mark.django_db

RATES = {"a": 0.5, "b": 0.55, "c": 0.4, "d": 0.8, "e": 0.6}


@pytest.fixture
def url(deployment):
    return f"/api/v1/deployments/{deployment.pk}/experiments"


@pytest.fixture
def others(versions):
    """Versions B, C, … to J beside A, v1."""
    return [*versions[1:], *further_versions(versions, 8)]


@pytest.fixture
def many(maintainer, deployment, others):
    """``many(count, **design)``: a bandit of so many versions that was started two hours ago and has an empty log."""

    def start(count=5, **design):
        first, *further = [one.pk for one in others[: count - 1]]
        wanted = {"mode": "bandit", "metric": "accuracy", "challenger": first, "further": further} | design
        made = experiments.create_experiment(actor=maintainer, deployment=deployment, **wanted)
        return started(experiments.start_experiment(actor=maintainer, experiment=made), 7200.0)

    return start


def arms(experiment):
    """The variants by letter."""
    further = [row.variant for row in experiment.further.select_related("variant")]
    return dict(zip("abcdefghij", [experiment.variant_a, experiment.variant_b, *further], strict=False))


def pass_time(experiment, seconds):
    """All that happened was so much earlier: nobody waits for a clock."""
    back = timedelta(seconds=seconds)
    Experiment.objects.filter(pk=experiment.pk).update(started_at=F("started_at") - back, watch_after=None)
    for rows in (PredictionRecord.objects, Feedback.objects):
        rows.update(at=F("at") - back)
    Look.objects.update(until=F("until") - back)
    if summed := Experiment.objects.get(pk=experiment.pk).summed:
        moved = summed | {"until": (datetime.fromisoformat(summed["until"]) - back).isoformat()}
        Experiment.objects.filter(pk=experiment.pk).update(summed=moved)


def answer(experiment, count, chance):
    """Requests of new keys, assigned as the inference server does, each right as often as its version is."""
    at = Deployment.objects.get(pk=experiment.deployment_id)
    variants, probability = arms(experiment), shares(at.allocation)
    letters = {str(variant.pk): letter for letter, variant in variants.items()}
    keys = {letter: [] for letter in variants}
    for _ in range(count):
        key = f"{chance.random()}"
        keys[letters[assign(at.allocation, at.salt, key)]].append(key)
    for letter, named in keys.items():
        outcomes = [chance.random() < RATES[letter] for _ in named]
        more = {"propensity": probability[str(variants[letter].pk)], "revision": at.revision}
        write(variants[letter], outcomes, ago=30, keys=named, **more)


def test_the_best_of_five_gets_the_traffic_and_every_move_is_computed_again(many, deployment, api, viewer, url):
    experiment, chance = many(), random.Random(29)
    Deployment.objects.update(salt="the same keys each time")
    assert shares_of(deployment) == pytest.approx(dict.fromkeys("12345", 0.2)) and experiment.floor == 0.02
    history = [0.2]
    for _ in range(8):
        pass_time(experiment, 90)
        answer(experiment, 200, chance)
        ticking.tick()
        history.append(shares_of(deployment)["4"])
    moves = list(Look.objects.all())
    assert history[0] < history[1] and history[-1] > 0.85 and len(moves) >= 2, history
    for look in moves:
        told = look.results["bandit"]
        assert sum(told["shares"].values()) == pytest.approx(1) and min(told["shares"].values()) >= 0.02
        assert sum(told["best"].values()) == pytest.approx(1)
        change = DeploymentChange.objects.get(revision=look.revision)
        assert change.actor is None and look.results["verdict"]["sentence"] in change.reason
        assert {one["weight"] for one in change.after["variants"]} == set(told["shares"].values())
        drawn = PredictionRecord.objects.filter(revision=look.revision).values_list("variant", "propensity").distinct()
        by_variant = {variant.pk: told["shares"][letter] for letter, variant in arms(experiment).items()}
        assert all(by_variant[variant] == propensity for variant, propensity in drawn)
    last = moves[-1].results["bandit"]
    assert last["best"]["d"] > 0.99 and last["regret"] < 0.6 * last["regret_of_even"]
    assert last["expected_regret"]["d"] < 0.001 < 0.1 < last["expected_regret"]["c"]
    assert 0 < last["regret_ahead"] < 0.05 and last["values"]["d"] == pytest.approx(0.8, abs=0.08)
    assert "D is the best one with a probability of" in moves[-1].results["verdict"]["sentence"]
    replayed = api(viewer).get(f"{url}/1/replay").json()
    assert replayed["agrees"] is True and len(replayed["looks"]) == len(moves)
    # a move that was done otherwise, and a label that was changed, are found
    DeploymentChange.objects.filter(revision=moves[1].revision).update(after={"variants": []})
    record = PredictionRecord.objects.filter(variant=arms(experiment)["e"]).order_by("id").first()
    label = Feedback.objects.get(request_id=record.request_id)
    Feedback.objects.filter(pk=label.pk).update(label="b" if label.label == "a" else "a")
    again = api(viewer).get(f"{url}/1/replay").json()["looks"]
    assert [one["results_agree"] for one in again] == [position != 1 for position in range(len(moves))]
    assert not any(one["sums_agree"] for one in again)


def test_moves_of_two_versions_come_out_as_they_did_before_there_were_more(many):
    stored = json.loads((Path(__file__).parent.parent / "fixtures" / "bandits_of_two.json").read_text())
    for one in stored:
        experiment = Experiment(mode="bandit", guardrails=[{"kind": "errors", "limit": 0.02}], **one["experiment"])
        again = bandits.judge(experiment, one["sums"], None, ())
        assert again["bandit"]["expected_regret"].keys() == {"a", "b"} and again["bandit"]["regret_ahead"] > 0
        assert same(bandits.as_told_then(again, one["results"]), one["results"])
    experiment = many(2)
    write(experiment.variant_a, right(60, 100), propensity=0.5)
    write(experiment.variant_b, right(70, 100), propensity=0.5)
    assert ticking.tick()["looks"] == 1 and experiment.floor == 0.05
    results = Look.objects.get().results
    for name in bandits.ADDED:
        del results["bandit"][name]
    Look.objects.update(results=results)
    assert all(one.results_agree and one.sums_agree for one in looks.replay(experiment))
    results["bandit"]["regret"] += 1
    Look.objects.update(results=results)
    assert not looks.replay(experiment)[0].results_agree


def test_every_arm_is_in_the_api_and_any_may_be_promoted(
    api, maintainer, viewer, trainer, stranger, deployment, others, url
):
    body = {"mode": "bandit", "metric": "errors", "challenger": str(others[0].pk), "share": 0.05, "floor": 0.03}
    body["further"] = [str(one.pk) for one in others[1:9]]
    for person, status in ((trainer, 403), (viewer, 403), (stranger, 404)):
        assert api(person).post(url, body, format="json").status_code == status
    made = api(maintainer).post(url, body, format="json")
    assert made.status_code == 201, made.content
    told = made.json()
    assert [one["arm"] for one in told["arms"]] == list("abcdefghij") and told["floor"] == 0.03
    assert [one["version"] for one in told["arms"][1:]] == [str(one.pk) for one in others[:9]]
    assert told["arms"][2]["variant"] is None
    begun = api(maintainer).post(f"{url}/1/start", {}, format="json").json()
    assert shares_of(deployment)["1"] == pytest.approx(0.55) and len(shares_of(deployment)) == 10
    rows = {str(row.version_id): str(row.pk) for row in deployment.variants.all()}
    assert [one["variant"] for one in begun["arms"]] == [rows[one["version"]] for one in begun["arms"]]
    seen = api(viewer).get(f"{url}/1").json()
    assert seen == begun and api(viewer).get(url).json()["results"][0]["arms"] == begun["arms"]
    assert api(stranger).get(f"{url}/1").status_code == 404
    assert api(trainer).post(f"{url}/1/promote", {"arm": "c"}, format="json").status_code == 403
    assert api(stranger).post(f"{url}/1/promote", {"arm": "c"}, format="json").status_code == 404
    for wrong in ({}, {"arm": ""}, {"arm": "a"}, {"arm": "k"}, {"arm": "\0"}, {"arm": "cc"}, {"arm": ["c"]}):
        refused = api(maintainer).post(f"{url}/1/promote", wrong, format="json")
        assert refused.status_code == 400 and refused.json()["errors"][0]["attr"] == "arm", refused.content
    done = api(maintainer).post(f"{url}/1/promote", {"arm": "c"}, format="json").json()
    assert (done["state"], done["promoted"]) == ("promoted", "c") and shares_of(deployment) == {"3": 1.0}
    assert DeploymentChange.objects.first().reason == "Experiment 1: C is promoted"


def test_what_no_bandit_can_be_is_refused_by_its_field(api, maintainer, versions, others, deployment, url):
    elsewhere = factories.ModelVersionFactory(
        model=factories.RegisteredModelFactory(organization=factories.OrganizationFactory(slug="other")),
        number=1,
        tree=TREE,
    )
    empty = factories.ModelVersionFactory(model=versions[0].model, number=90, tree={})
    ids = [str(one.pk) for one in others]
    services.change_variants(
        actor=maintainer, deployment=deployment, variants=[Wanted(versions[0].pk), Wanted(others[5].pk, role="shadow")]
    )
    for wrong, attr, said in (
        ({"further": [str(uuid.uuid4())]}, "further.0", "no model version with this id"),
        ({"further": [ids[1], str(elsewhere.pk)]}, "further.1", "no model version with this id"),
        ({"further": [ids[1], str(empty.pk)]}, "further.1", "it cannot answer"),
        ({"further": [ids[1], ids[2], ids[1]]}, "further.2", "is C already"),
        ({"further": [ids[0]]}, "further.0", "is B already"),
        ({"further": [str(versions[0].pk)]}, "further.0", "is A already"),
        ({"further": [ids[5]]}, "further.0", "is a shadow here"),
        ({"challenger": ids[5]}, "challenger", "is a shadow here"),
        ({"further": ids[1:10]}, "further", "leave 1 out"),
        ({"further": ["v\0"]}, "further.0", "UUID"),
        ({"further": "all"}, "further", "list"),
        ({"challenger": None}, "challenger", "null"),
        ({"challenger": str(versions[0].pk)}, "challenger", "Only a split"),
        ({"mode": "split", "minimum_effect": 0.1, "baseline": 0.5, "further": ids[1:2]}, "further", "make it a bandit"),
        ({"mode": "paired", "minimum_effect": 0.1, "baseline": 0.1, "further": ids[1:2]}, "further", "make it a bandit"),
        ({"mode": "split", "minimum_effect": 0.1, "baseline": 0.5, "floor": 0.1}, "floor", "Only a bandit"),
        ({"further": ids[1:3], "floor": 0.3}, "floor", "to 0.25"),
        ({"further": ids[1:3], "share": 0.4}, "share", "from 0.025 to 0.325"),
        ({"share": 0.01}, "share", "from 0.05 to 0.95"),
        ({"floor": 0}, "floor", "0.001"), ({"floor": "NaN"}, "floor", ""),
    ):  # fmt: skip
        answer = api(maintainer).post(
            url, {"mode": "bandit", "metric": "accuracy", "challenger": ids[0]} | wrong, format="json"
        )
        assert answer.status_code == 400, (wrong, answer.content)
        first = answer.json()["errors"][0]
        assert first["attr"] == attr and said in first["detail"], (wrong, first)
    assert not Experiment.objects.exists() and not FurtherArm.objects.exists()


def test_it_starts_only_where_nobody_else_answers_and_no_arm_is_a_shadow(
    api, maintainer, versions, others, deployment, url
):
    body = {"mode": "bandit", "metric": "accuracy", "challenger": str(others[0].pk), "further": [str(others[1].pk)]}
    api(maintainer).post(url, body, format="json")

    def start(*variants):
        services.change_variants(actor=maintainer, deployment=deployment, variants=[Wanted(versions[0].pk), *variants])
        return api(maintainer).post(f"{url}/1/start", {}, format="json")

    shadowed = start(Wanted(others[1].pk, role="shadow"))
    assert shadowed.status_code == 409 and "has become a shadow" in shadowed.json()["errors"][0]["detail"]
    beside = start(Wanted(others[1].pk), Wanted(others[4].pk))
    assert beside.status_code == 409 and "v6" in beside.json()["errors"][0]["detail"]
    assert start(Wanted(others[1].pk), Wanted(others[4].pk, role="shadow")).status_code == 200
    assert shares_of(deployment) == pytest.approx({"1": 1 / 3, "2": 1 / 3, "3": 1 / 3})
    assert deployment.variants.get(removed_at=None, role="shadow").version == others[4], "another's shadow stays"


def test_an_alarm_takes_out_its_version_and_the_last_one_ends_it(many, maintainer, deployment, monkeypatch):
    experiment = many(4, guardrails_wanted=[{"kind": "errors", "limit": 0.02}])
    by_letter = arms(experiment)
    for letter in "abcd":
        write(by_letter[letter], right(8, 10), propensity=0.25)
    write(by_letter["a"], [None] * 9, errors=["failed"] * 9, propensity=0.25)
    ticking.tick()
    told = Experiment.objects.get().watched["guardrails"]
    assert [(one["arm"], one["alarm"]) for one in told] == [("b", False), ("c", False), ("d", False)], "not of A"
    write(by_letter["c"], [None] * 9, errors=["failed"] * 9, propensity=0.25)
    pass_time(experiment, 90)
    assert ticking.tick()["looks"] == 1
    look = Look.objects.get()
    told = look.results["bandit"]
    assert (look.kind, told["out"], told["best"]["c"], told["expected_regret"]["c"]) == ("harm", ["c"], 0.0, None)
    assert shares_of(deployment)["3"] == 0.0 and sum(shares_of(deployment).values()) == pytest.approx(1)
    reason = DeploymentChange.objects.first().reason
    assert "C is taken out: Failed requests: 47.4 % at C of 19 requests" in reason and "C (out) 75 %" in reason
    pass_time(experiment, 90)
    assert ticking.tick()["looks"] == 0, "what is out raises no alarm again, and nothing is to be moved"
    assert Experiment.objects.get().watched["bandit"]["out"] == ["c"]
    write(by_letter["d"], right(80, 80), propensity=0.25)
    pass_time(experiment, 90)
    assert ticking.tick()["looks"] == 1 and Look.objects.last().kind == "move"
    assert shares_of(deployment)["3"] == 0.0 and shares_of(deployment)["4"] > 0.8
    for letter in "bd":
        write(by_letter[letter], [None] * 30, errors=["failed"] * 30, propensity=0.25)
    pass_time(experiment, 90)
    last = looks.look_now(actor=maintainer, experiment=Experiment.objects.get())
    ended = Experiment.objects.get()
    assert (ended.state, ended.outcome, last.kind) == ("stopped", "harm", "asked") and last.revision is None
    assert last.results["bandit"]["out"] == ["b", "c", "d"] and shares_of(deployment) == {"1": 1.0}
    assert all(f"at {letter} of" in ended.conclusion for letter in "BCD")
    assert [(one.results_agree, one.sums_agree) for one in looks.replay(experiment)] == [(True, True)] * 3
    monkeypatch.setattr(looks, "REPLAYED", 1)  # the first of the newest goes on from one that is older
    assert [one.number for one in looks.replay(experiment) if one.results_agree and one.sums_agree] == [3]


def test_its_arms_are_chosen_on_a_form_and_watched_on_a_page(web, maintainer, viewer, deployment, versions, others):
    new = reverse("deployment-experiment-new", args=[deployment.pk])
    services.change_variants(
        actor=maintainer, deployment=deployment,
        variants=[Wanted(versions[0].pk), Wanted(others[2].pk), Wanted(others[5].pk, role="shadow")],
    )  # fmt: skip
    offered = web(maintainer).get(new).content.decode()
    assert "flowers v4, answers here" in offered and "flowers v7, a shadow here" in offered
    form = {
        "metric": "accuracy",
        "minimum_effect": "0.1",
        "baseline": "0.5",
        "looks": "4",
        "alpha": "0.05",
        "power": "0.8",
    }
    form |= {"challenger": str(others[0].pk), "further": [str(others[2].pk), str(others[3].pk)], "errors_limit": "0.05"}
    for wrong, said in (
        ({}, "make it a bandit"), ({"mode": "bandit", "further": str(uuid.uuid4())}, "Select a valid choice"),
        ({"mode": "bandit", "further": "v\0"}, "valid choice"), ({"mode": "bandit", "floor": "0.4"}, "4 versions share"),
        ({"mode": "bandit", "further": str(others[5].pk)}, "is a shadow here"),
        ({"mode": "bandit", "further": str(others[0].pk)}, "is B already"), ({"mode": "bandit", "share": "0.5"}, "or a lower floor"),
    ):  # fmt: skip
        refused = web(maintainer).post(new, form | wrong)
        assert refused.status_code == 200 and said in refused.content.decode(), (wrong, refused.content.decode())
    made = web(maintainer).post(new, form | {"mode": "bandit"})
    assert made.status_code == 302, made.content.decode()
    draft = web(viewer).get(made.url).content.decode()
    assert "2.5 % at least" in draft and "Each beside A gets 25.0 % at first" in draft and "flowers v5" in draft
    web(maintainer).post(reverse("deployment-experiment-start", args=[deployment.pk, 1]))
    experiment = started(Experiment.objects.get())
    for letter, variant in arms(experiment).items():
        write(variant, right(90 if letter == "d" else 60, 100), propensity=0.25)
    ticking.tick()
    page = web(maintainer).get(made.url).content.decode()
    assert "D is the best one with a probability of" in page and "Expected regret" in page and "Promote D" in page
    assert "Promote A" not in page and "D 92." in page and "Promote D" not in web(viewer).get(made.url).content.decode()
    figures = json.loads(page.split('id="experiment-figures">')[1].split("</script>")[0])
    assert [[one["name"] for one in chart["series"]] for chart in figures] == [list("ABCD")] * 2
    assert [one["points"][0] for one in figures[0]["series"]] == [[0.0, 25.0]] * 4, "before anything was known"
    assert figures[0]["series"][3]["points"][1][1] > 90
    unnamed = web(maintainer).post(reverse("deployment-experiment-promote", args=[deployment.pk, 1]), follow=True)
    assert "Say which version shall answer alone: b, c, d." in unnamed.content.decode()
    done = web(maintainer).post(
        reverse("deployment-experiment-promote", args=[deployment.pk, 1]), {"arm": "d"}, follow=True
    )
    assert "D answers alone" in done.content.decode() and shares_of(deployment) == {"5": 1.0}
    assert (
        "flowers v2, flowers v4, flowers v5"
        in web(viewer).get(reverse("deployment", args=[deployment.pk])).content.decode()
    )
