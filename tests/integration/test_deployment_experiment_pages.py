"""The pages of experiments: planning, watching, acting, one-click A/A tests, and who has which buttons."""

import json
import re
from datetime import timedelta

import pytest
from django.urls import reverse
from django.utils import timezone

from registry.serving.experiments import ticking
from registry.serving.models import Experiment, Rollout
from tests.integration.experimenting import deployment, right, shares_of, started, versions, write  # noqa: F401

pytestmark = pytest.mark.django_db


def address(deployment, name="deployment-experiment", *more):  # noqa: F811
    return reverse(name, args=[deployment.pk, *more])


def form_of(versions, **more):  # noqa: F811
    plain = {
        "metric": "accuracy",
        "minimum_effect": "0.1",
        "share": "0.5",
        "looks": "4",
        "alpha": "0.05",
        "power": "0.8",
    }
    return plain | {"challenger": str(versions[1].pk), "baseline": "0.8"} | more


def test_an_experiment_is_planned_started_watched_and_acted_upon(web, maintainer, viewer, deployment, versions):  # noqa: F811
    client = web(maintainer)
    new = address(deployment, "deployment-experiment-new")
    assert "A is flowers v1" in client.get(new).content.decode()
    plan = address(deployment, "deployment-experiment-plan")
    assert "units of A" in client.post(plan, form_of(versions)).content.decode()
    assert "give A&#x27;s share" in client.post(plan, form_of(versions, baseline="")).content.decode()
    assert "Fill in" in client.post(plan, {}).content.decode()
    refused = client.post(new, form_of(versions, slow_limit="0.1"))
    assert refused.status_code == 200 and "Slow requests need a limit in milliseconds" in refused.content.decode()
    guards = {"errors_limit": "0.02", "slow_milliseconds": "200", "slow_limit": "0.1", "tolerance": "0.05"}
    made = client.post(new, form_of(versions, **guards, hypothesis="the new one sees more"))
    assert made.status_code == 302 and made.url == address(deployment, "deployment-experiment", 1)
    assert Experiment.objects.get().guardrails == [
        {"kind": "errors", "limit": 0.02}, {"kind": "slow", "limit": 0.1, "milliseconds": 200.0},
        {"kind": "accuracy", "tolerance": 0.05},
    ]  # fmt: skip
    shown = client.get(made.url).content.decode()
    assert "the new one sees more" in shown and "Nothing has changed yet" in shown and "hx-trigger" not in shown
    client.post(address(deployment, "deployment-experiment-start", 1))
    experiment = started(Experiment.objects.get())
    count = experiment.units_a // 2
    write(experiment.variant_a, right(round(count * 0.8), count))
    write(experiment.variant_b, right(round(count * 0.82), count))
    ticking.tick()
    page = client.get(made.url).content.decode()
    assert "Not enough data" in page and 'hx-trigger="every 10s"' in page and "Look now" in page and "quiet" in page
    figures = json.loads(re.search(r'id="experiment-figures">(.*?)</script>', page).group(1))
    assert figures[0]["series"][0]["band"][0][1] < 2 < figures[0]["series"][0]["band"][0][2]
    part = client.get(made.url, headers={"HX-Request": "true"}).content.decode()
    assert part.startswith('<div id="experiment"') and "<html" not in part
    held = client.get(reverse("deployment", args=[deployment.pk])).content.decode()
    assert ">Experiment 1</a> is running here" in held and "Add a version" not in held
    looked = client.post(address(deployment, "deployment-experiment-look", 1), follow=True).content.decode()
    assert "asked for by maintainer" in looked
    for read in (made.url, reverse("deployment", args=[deployment.pk])):
        seen = web(viewer).get(read).content.decode()
        assert "Stop, back to A" not in seen and "Plan one" not in seen and "A/A test" not in seen
    write(experiment.variant_b, right(count * 2, count * 2))
    write(experiment.variant_a, right(round(count * 1.6), count * 2))
    client.post(address(deployment, "deployment-experiment-look", 1))
    decided = client.get(made.url).content.decode()
    assert "B is better by" in decided and "Promote B" in decided and "every 10s" not in decided
    done = client.post(address(deployment, "deployment-experiment-promote", 1), follow=True).content.decode()
    assert "B answers alone" in done and shares_of(deployment) == {"2": 1.0}
    late = client.post(address(deployment, "deployment-experiment-keep", 1), follow=True).content.decode()
    assert "Experiment 1 is promoted." in late


def test_an_a_a_test_is_one_click(web, maintainer, deployment):  # noqa: F811
    client = web(maintainer)
    same = address(deployment, "deployment-experiment-same")
    page = client.post(same, follow=True).content.decode()
    assert "A/A test 1" in page and "Failed requests" in page and shares_of(deployment) == {"1": 0.5, "1B": 0.5}
    assert "is running here, and would see" in client.post(same, follow=True).content.decode()
    assert Experiment.objects.count() == 1, "what could not start is not left behind"
    client.post(address(deployment, "deployment-experiment-stop", 1))
    write(deployment.variants.get(arm=""), right(80, 100))
    client.post(same)
    assert Experiment.objects.first().metric == "accuracy", "by the labels, where there are some"


def test_others_have_no_part_in_it(web, trainer, stranger, maintainer, deployment, versions):  # noqa: F811
    web(maintainer).post(address(deployment, "deployment-experiment-new"), form_of(versions))
    for verb in ("start", "stop", "promote", "keep", "look"):
        posted = address(deployment, f"deployment-experiment-{verb}", 1)
        assert web(trainer).post(posted).status_code == 403, verb
        assert web(stranger).post(posted).status_code == 404, verb
    assert web(trainer).get(address(deployment, "deployment-experiment-new")).status_code == 403
    assert web(stranger).get(address(deployment, "deployment-experiment", 1)).status_code == 404
    assert web(trainer).get(address(deployment, "deployment-experiment", 9)).status_code == 404


def test_a_canary_is_begun_paused_and_aborted_on_its_page(web, maintainer, trainer, viewer, deployment, versions):  # noqa: F811
    client, new = web(maintainer), address(deployment, "canary-new")
    assert "25 30 500" in client.get(new).content.decode()
    assert "100 10 0" in client.get(f"{new}?at_once=on").content.decode()
    form = {"candidate": str(versions[1].pk), "steps": "5 % 10 100\n100 30 0", "errors_limit": "0.05"}
    for wrong, said in (
        ({"steps": "5 10"}, "three numbers a line"), ({"steps": "5 10 0"}, "The last step has the share 1"),
        ({"metric": "accuracy"}, "needs a tolerance"), ({"slow_limit": "0.1"}, "Slow requests need a limit in milliseconds"),
    ):  # fmt: skip
        refused = client.post(new, form | wrong)
        assert refused.status_code == 200 and said in refused.content.decode(), wrong
    made = client.post(new, form | {"metric": "accuracy", "tolerance": "0.02", "reason": "the new one"})
    assert made.status_code == 302, made.content.decode()
    assert [one["kind"] for one in Rollout.objects.get().guardrails] == ["errors", "accuracy"]
    write(Rollout.objects.get().variant_candidate, [None] * 3)
    Rollout.objects.update(started_at=timezone.now() - timedelta(minutes=2))
    ticking.tick()
    page = client.get(made.url).content.decode()
    assert "5.0 % of the traffic" in page and "0 % at B of 3 requests" in page and 'hx-trigger="every 5s"' in page
    assert client.get(made.url, headers={"HX-Request": "true"}).content.decode().startswith('<div id="canary"')
    on_deployment = client.get(reverse("deployment", args=[deployment.pk])).content.decode()
    assert ">Canary 1</a> is running here" in on_deployment
    for person in (viewer, trainer):
        assert "Abort" not in web(person).get(made.url).content.decode()
        assert web(person).post(address(deployment, "canary-abort", 1)).status_code == 403
        assert web(person).get(new).status_code == 403
    assert "Continue" in client.post(address(deployment, "canary-pause", 1), follow=True).content.decode()
    assert "Pause" in client.post(address(deployment, "canary-continue", 1), follow=True).content.decode()
    ended = client.post(address(deployment, "canary-abort", 1), {"reason": "enough"}, follow=True).content.decode()
    assert "enough" in ended and "Gone back" in ended and "hx-trigger" not in ended
    assert shares_of(deployment) == {"1": 1.0}
    again = client.post(address(deployment, "canary-pause", 1), follow=True).content.decode()
    assert "Canary 1 is aborted." in again
