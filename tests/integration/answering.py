"""Deployments whose models answer as a test says, and whoever asks them."""

import threading

from dlplatform.accounts import keys
from dlplatform.accounts.models import ApiKey
from registry.serving import services
from registry.serving.services import Wanted
from tests import factories

TREE = {"model.json": {"sha256": "a" * 64, "size": 10}}
INPUTS = {"inputs": [{"name": "x", "type": "number", "nullable": True}]}
BOUNDED = {"inputs": [{"name": "x", "type": "number", "nullable": True, "example": 1.5, "minimum": 0, "maximum": 2}]}


def key_of(user, *scopes, **more):
    prefix, presented, digest = keys.new_secret()
    ApiKey.objects.create(user=user, name="k", prefix=prefix, digest=digest, scopes=scopes or ["predict"], **more)
    return presented


def constant(value):
    return lambda rows: [{"value": value} for _ in rows]


def three_versions(organization, signature=INPUTS):
    model = factories.RegisteredModelFactory(organization=organization, name="flowers")
    return [
        factories.ModelVersionFactory(model=model, number=number, tree=TREE, signature=signature)
        for number in (1, 2, 3)
    ]


def writing_version(organization, stubs, pieces, asked, signature=INPUTS):
    """A language model that writes these pieces; what it is asked is kept in ``asked``."""
    made = factories.ModelVersionFactory(
        model__organization=organization, number=1, tree=TREE, signature=signature, task="language-model"
    )

    def write(instance):
        asked.append(instance)
        return pieces

    stubs.writers[made.pk] = write
    return made


def deployed(actor, organization, version, name="screening"):
    return services.create_deployment(actor=actor, organization=organization, name=name, variants=[Wanted(version.pk)])


def change(actor, deployment, *versions, **more):
    return services.change_variants(
        actor=actor, deployment=deployment, variants=[Wanted(one.pk) for one in versions], **more
    )


def who_answers(deployment):
    return list(deployment.variants.filter(removed_at=None, role="live").values_list("version__number", "weight"))


def value_of(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"][0]["value"]


def code_of(answer):
    return answer.json()["errors"][0]["code"]


class Held:
    """A model that answers when it may."""

    def __init__(self):
        self.entered, self.gate, self.rows = threading.Event(), threading.Event(), []

    def __call__(self, rows):
        self.rows += rows
        self.entered.set()
        assert self.gate.wait(20)
        return constant(1.0)(rows)
