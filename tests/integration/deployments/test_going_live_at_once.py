"""Deployments by one click beside another click, a creation or a restore: on connections of their own, at the same moment."""

import threading
import time

import pytest
from django.core.exceptions import ValidationError
from django.db import connection

from dlplatform.api import Conflict
from registry.serving import going_live, services
from registry.serving.models import Deployment
from registry.serving.services import Wanted
from tests import factories
from tests.integration.answering import TREE, deployed, who_answers


@pytest.mark.django_db(transaction=True)
def test_clicks_on_two_versions_at_once_make_one_deployment(maintainer, versions):
    together, found = threading.Barrier(2), []

    def click(version):
        together.wait(30)
        found.append(going_live.deploy(actor=maintainer, version=version))
        connection.close()

    threads = [threading.Thread(target=click, args=[version]) for version in versions[:2]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(new for _, new in found) == [False, True] and len({one.pk for one, _ in found}) == 1
    assert Deployment.objects.get().name == "flowers"


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("name", ["flowers", "other"])
def test_a_click_against_a_creation_under_the_same_name_waits_and_both_are_answered(
    maintainer, organization, versions, monkeypatch, name
):
    """The click has locked the model when the creation begins, and inserts its name only then."""
    held, found = threading.Event(), {}
    real = going_live.free_name

    def looks(*given):
        held.set()
        wait_for_a_lock()
        return real(*given)

    def click():
        found["click"] = going_live.deploy(actor=maintainer, version=versions[1])
        connection.close()

    def create():
        held.wait(30)
        try:
            found["form"] = services.create_deployment(
                actor=maintainer, organization=organization, name=name, variants=[Wanted(versions[0].pk)]
            )
        except ValidationError as error:
            found["form"] = error.message_dict
        connection.close()

    monkeypatch.setattr(going_live, "free_name", looks)
    run_together(click, create)
    made, new = found["click"]
    assert new and made.name == "flowers" and who_answers(made) == [(2, 1.0)]
    if name == "flowers":
        assert found["form"] == {"name": ["There is a deployment “flowers” already."]}
    else:
        assert who_answers(found["form"]) == [(1, 1.0)]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("of_another", [False, True], ids=["its own model", "then with variants of the model"])
def test_a_click_against_a_deployment_that_comes_back_under_the_name_waits(
    maintainer, organization, versions, monkeypatch, of_another
):
    other = factories.ModelVersionFactory(model__organization=organization, number=1, tree=TREE)
    back = deployed(maintainer, organization, other if of_another else versions[0], name="flowers")
    services.set_archived(actor=maintainer, deployment=back, archived=True)
    variants = [Wanted(versions[0].pk)] if of_another else None
    held, found = threading.Event(), {}

    def looks(*_):
        held.set()
        wait_for_a_lock()
        return "flowers"

    def click():
        found["click"] = going_live.deploy(actor=maintainer, version=versions[1])
        connection.close()

    def restore():
        held.wait(30)
        with pytest.raises(Conflict) as refused:
            services.change_deployment(actor=maintainer, deployment=back, archived=False, variants=variants)
        found["restore"] = refused.value.get_codes()
        connection.close()

    monkeypatch.setattr(going_live, "free_name", looks)
    run_together(click, restore)
    assert found["click"][1] and found["restore"] == "name_taken"


def wait_for_a_lock():
    """Until another connection waits for one: what it holds before and what it wants then decides whether all stand still."""
    for _ in range(200):
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
            if cursor.fetchone()[0]:
                return
        time.sleep(0.05)
    raise AssertionError("Nobody waits.")


def run_together(*calls):
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
