"""A version that a guardrail took out of a bandit comes back: its guardrails begin anew, and all is computed again."""

# ruff: noqa: F811 - fixtures of another file

import math
import re

import pytest
from django.urls import reverse

from dlplatform.accounts.models import AuditEntry
from dlplatform.api import Conflict
from registry.serving.experiments import guardrails, looks, returns, ticking
from registry.serving.experiments import services as experiments
from registry.serving.models import Deployment, DeploymentChange, Experiment, Look
from registry.serving.statistics.guardrails import ALPHA
from tests.integration.experimenting import deployment, right, shares_of, started, versions, write  # noqa: F401
from tests.integration.test_bandits_of_many import arms, many, others, pass_time, url  # noqa: F401

pytestmark = pytest.mark.django_db

REASON = "The disk was full; there is room again"


def fail(variant, count, of=None, **more):
    """Requests that failed, among answers."""
    rest = (of or count) - count
    write(variant, [None] * count + right(rest, rest), errors=["failed"] * count, propensity=0.25, **more)


@pytest.fixture
def harmed(many):
    """A bandit of four whose C was taken out ninety seconds ago, after nine failures in nineteen requests."""
    experiment = many(4, guardrails_wanted=[{"kind": "errors", "limit": 0.02}])
    for letter in "abcd":
        write(arms(experiment)[letter], right(8, 10), propensity=0.25)
    fail(arms(experiment)["c"], 9)
    assert ticking.tick()["looks"] == 1 and Look.objects.get().results["bandit"]["out"] == ["c"]
    pass_time(experiment, 90)
    return Experiment.objects.get()


def later(experiment, kind=None):
    """What the next tick makes of the log; 90 seconds on."""
    pass_time(experiment, 90)
    taken = ticking.tick()["looks"]
    assert taken == (kind is not None) and (not taken or Look.objects.last().kind == kind)
    return Experiment.objects.get()


def agrees(experiment):
    replayed = looks.replay(experiment)
    assert all(one.results_agree and one.sums_agree for one in replayed), replayed
    return len(replayed)


def test_it_comes_back_with_its_guardrails_anew_and_every_move_is_computed_again(
    api, maintainer, viewer, deployment, harmed, url
):
    body = {"arm": "C", "reason": f" {REASON} "}
    answer = api(maintainer).post(f"{url}/1/put-back", body, format="json")
    assert answer.status_code == 201, answer.content
    told = answer.json()
    assert (told["kind"], told["arm"], told["reason"], told["taken_by"]) == ("return", "c", REASON, "maintainer")
    assert told["bandit"]["out"] == [] and told["bandit"]["shares"]["c"] >= harmed.floor
    assert told["bandit"]["returned"] == {"c": {"times": 1, "guardrails": [[19, 9.0, 9.0]]}}
    assert told["verdict"]["sentence"].startswith("C is put back, and its guardrails begin anew. ")
    of_c = next(one for one in told["guardrails"] if one["arm"] == "c")
    assert not of_c["alarm"] and of_c["sentence"] == "Failed requests: nothing was seen of C since it was put back."
    assert shares_of(deployment)["3"] == told["bandit"]["shares"]["c"] > 0
    change = DeploymentChange.objects.first()
    assert (change.actor, change.revision) == (maintainer, told["revision"])
    assert change.reason.startswith(f"Experiment 1: {REASON} – C is put back")
    entry = AuditEntry.objects.get(action="ab_test.put_back")
    assert (entry.actor, entry.detail) == (maintainer, {"number": 1, "arm": "c", "reason": REASON})
    seen = api(viewer).get(f"{url}/1/looks").json()["results"][0]
    assert seen == told and agrees(harmed) == 2

    # what it did before raises no alarm again, and counts for who is the best one as before
    write(arms(harmed)["c"], right(30, 40), propensity=0.25, ago=30)
    running = later(harmed, "move")
    bandit = Look.objects.last().results["bandit"]
    assert bandit["out"] == [] and bandit["returned"]["c"]["times"] == 1 and bandit["requests"]["c"] == 50
    of_c = next(one for one in running.watched["guardrails"] if one["arm"] == "c")
    assert of_c["sentence"] == "Failed requests: 0 % at C of 40 requests since it was put back, limit 2 %."

    # harm after the return takes it out again, and it may come back again
    fail(arms(harmed)["c"], 9, ago=30)
    later(harmed, "harm")
    sentence = Look.objects.last().results["verdict"]["sentence"]
    assert "C is taken out: Failed requests: 18.4 % at C of 49 requests since it was put back, limit 2 %" in sentence
    assert "(at most 2 % of sound tests raise an alarm)" in sentence
    assert shares_of(deployment)["3"] == 0.0
    later(harmed)
    again = returns.put_back(actor=maintainer, experiment=Experiment.objects.get(), arm="c", reason=REASON)
    assert again.results["bandit"]["returned"] == {"c": {"times": 2, "guardrails": [[68, 18.0, 18.0]]}}
    later(harmed)
    assert agrees(harmed) == 5
    Look.objects.filter(number=2).update(arm="d")
    assert not looks.replay(harmed)[1].results_agree, "who was put back is a part of what is computed again"


def test_what_it_has_earned_stays_as_it_is(harmed, maintainer):
    before = Look.objects.last().sums
    look = returns.put_back(actor=maintainer, experiment=harmed, arm="c", reason=REASON)
    assert look.sums["propensities"] == before["propensities"] and look.sums["guardrails"] == before["guardrails"]
    means = look.results["bandit"]["means"]
    assert means["c"] == pytest.approx(9 / 12) and look.results["bandit"]["best"]["c"] > 0.1


def test_the_rest_of_the_arms_keep_their_guardrails(harmed, maintainer, deployment):
    fail(arms(harmed)["d"], 3, ago=30)
    returns.put_back(actor=maintainer, experiment=harmed, arm="c", reason=REASON)
    fail(arms(harmed)["d"], 3, ago=30)
    experiment = later(harmed, "harm")
    of_d = next(one for one in experiment.watched["guardrails"] if one["arm"] == "d")
    assert of_d["alarm"] and "of 16 requests, limit" in of_d["sentence"]
    assert Look.objects.last().results["bandit"]["out"] == ["d"] and shares_of(deployment)["3"] > 0


def test_where_it_makes_no_sense_it_is_refused_in_a_sentence(
    api, maintainer, trainer, viewer, stranger, harmed, deployment, url
):
    address, body = f"{url}/1/put-back", {"arm": "c", "reason": REASON}
    for person, status in ((trainer, 403), (viewer, 403), (stranger, 404), (None, 401)):
        assert api(person).post(address, body, format="json").status_code == status
    assert api(maintainer).post(f"{url}/9/put-back", body, format="json").status_code == 404
    for wrong, attr in (
        ({"arm": "k"}, "arm"), ({"arm": ""}, "arm"), ({"arm": "cc"}, "arm"), ({"arm": None}, "arm"), ({"arm": ["c"]}, "arm"),
        ({"arm": "\0"}, "arm"), ({"reason": ""}, "reason"), ({"reason": "  "}, "reason"), ({"reason": "x" * 2001}, "reason"),
        ({"reason": "a\0"}, "reason"), ({"reason": None}, "reason"), ({"force": True}, "force"),
    ):  # fmt: skip
        refused = api(maintainer).post(address, body | wrong, format="json")
        assert refused.status_code == 400 and refused.json()["errors"][0]["attr"] == attr, (wrong, refused.content)
    assert "b, c, d" in api(maintainer).post(address, body | {"arm": "k"}, format="json").json()["errors"][0]["detail"]

    def conflict(arm="c"):
        refused = api(maintainer).post(address, body | {"arm": arm}, format="json")
        assert refused.status_code == 409, refused.content
        return refused.json()["errors"][0]

    for letter in "abd":
        assert conflict(letter)["code"] == "not_out"
    pass_time(harmed, -60)
    too_soon = conflict()
    assert too_soon["code"] == "too_soon"
    assert 0 < int(re.search(r"try again in (\d+) seconds", too_soon["detail"])[1]) < 40
    assert Look.objects.count() == 1 and not AuditEntry.objects.filter(action="ab_test.put_back").exists()
    experiments.stop_experiment(actor=maintainer, experiment=harmed)
    ended = conflict()
    assert ended["code"] == "is_stopped" and "only into one that runs" in ended["detail"]
    split = experiments.create_experiment(
        actor=maintainer, deployment=Deployment.objects.get(), challenger=harmed.challenger_id, metric="errors",
        minimum_effect=0.1, baseline=0.2,
    )  # fmt: skip
    with pytest.raises(Conflict, match="Only a bandit"):
        returns.put_back(actor=maintainer, experiment=split, arm="b", reason=REASON)


def test_two_who_put_it_back_at_once_and_a_tick_that_was_under_way_do_it_once(harmed, maintainer):
    window = looks.window_of(harmed)
    sums = looks.read_sums(harmed, window)
    fail(arms(harmed)["c"], 5, ago=30)
    returns.put_back(actor=maintainer, experiment=harmed, arm="c", reason=REASON)
    of_c = looks.judge_guardrails(harmed, sums, Look.objects.last())[1]
    assert of_c["arm"] == "c" and "nothing was seen of C" in of_c["sentence"]
    assert ticking._wanted(harmed, window, sums) != Look.Kind.HARM
    with pytest.raises(Conflict, match="Nothing new"):
        looks.record_look(harmed, window, sums, Look.Kind.HARM)
    window = looks.window_of(harmed)
    with pytest.raises(Conflict, match="C is not out"):
        looks.record_look(harmed, window, sums, Look.Kind.RETURN, maintainer, back="c", reason=REASON)
    assert Look.objects.count() == 2


def test_a_maintainer_puts_it_back_on_the_page(web, maintainer, viewer, trainer, stranger, harmed, deployment):
    page = reverse("deployment-experiment", args=[deployment.pk, 1])
    address = reverse("deployment-experiment-put-back", args=[deployment.pk, 1])
    offered = web(maintainer).get(f"{page}?arm=c").content.decode()
    assert 'href="?arm=c#put-back"' in offered and "Put a version back" in offered
    assert '<option value="c" selected>C, flowers v3</option>' in offered and 'value="d" selected' not in offered
    seen = web(viewer).get(page).content.decode()
    assert "Put back" not in seen and "Put a version back" not in seen
    form = {"arm": "c", "reason": REASON}
    for person, status in ((trainer, 403), (viewer, 403), (stranger, 404)):
        assert web(person).post(address, form).status_code == status
    refused = web(maintainer).post(address, {"arm": "c", "reason": ""}, follow=True).content.decode()
    assert "reason: This field is required." in refused and Look.objects.count() == 1
    done = web(maintainer).post(address, form, follow=True).content.decode()
    assert "C answers again, and its guardrails begin anew." in done and REASON in done
    assert "Put a version back" not in done and "nothing was seen of C since it was put back" in done
    twice = web(maintainer).post(address, form, follow=True).content.decode()
    assert "C is not out" in twice and Look.objects.count() == 2


def judged(failures, count, times):
    """One limit of 2 % on three versions beside A, of which C was put back so often."""
    then = [7, 7.0, 7.0]
    read = {"a": [0, 0, 0], "b": [0, 0, 0], "c": [count + 7, failures + 7.0, failures + 7.0], "d": [0, 0, 0]}
    returned = {"c": {"times": times, "guardrails": [then]}} if times else None
    if not times:
        read["c"] = [count, float(failures), float(failures)]
    found = guardrails.judge([{"kind": "errors", "limit": 0.02}], [read], tuned_units=1000, returned=returned)
    return next(one for one in found if one["arm"] == "c")


def test_each_sequence_has_half_the_rate_of_false_alarms_of_the_one_before():
    """An alarm is an evidence of log(sequences / rate) on; three versions with one limit are three sequences."""
    for times in (0, 1, 2, 9):
        level = math.log(3 * 2**times / ALPHA)
        found = [judged(failures, 40, times) for failures in range(41)]
        assert all(one["alarm"] == (one["evidence"] >= level) for one in found)
        assert {one["alarm"] for one in found} == {True, False}
    assert judged(3, 40, 1)["evidence"] == judged(3, 40, 0)["evidence"], "what was counted before counts no more"
