"""A model's history: the lowest common ancestor among 10,000 commits, and pages with 500 versions and 20 branches.

The peer of the ancestor is one plain query of the same edges; that of the pages a bare page without a model's data
(the list of API keys), through the same middleware.

    python -m benchmarks.history [--short]
"""

import random
import time
from collections.abc import Callable
from typing import Any

from tests.live import USERNAME

from .measuring import arguments, median, platform, report, spread

LIMIT_ANCESTOR_MS = 50
LIMIT_PAGE_MS = 300
COMMITS = 10_000
VERSIONS = 500
BRANCHES = 20


def model_with(count: int, reach: int, branches: int = 1) -> Any:
    """A model of ``count`` versions; each continues one of the ``reach`` before it, a tenth are merges."""
    from django.db import connection

    from dlplatform.accounts.models import User
    from dlplatform.accounts.organizations import default_for
    from registry import services
    from registry.models import ModelVersion, Ref, VersionParent
    from tests import factories

    actor = User.objects.get(username=USERNAME)
    organization: Any = default_for(actor)
    model = services.create_model(actor=actor, organization=organization, name=f"{count} commits")
    versions = [
        factories.ModelVersionFactory.build(
            model=model, number=number, message=f"Step {number}", author=actor, metrics={"accuracy": number / count}
        )
        for number in range(1, count + 1)
    ]
    ModelVersion.objects.bulk_create(versions, batch_size=2000)
    generator = random.Random(1)
    edges = []
    for index in range(1, count):
        near = range(max(index - reach, 0), index)
        parents = generator.sample(near, min(2 if generator.random() < 0.1 else 1, len(near)))
        edges += [
            VersionParent(child=versions[index], parent=versions[parent], position=position)
            for position, parent in enumerate(sorted(parents, reverse=True))
        ]
    VersionParent.objects.bulk_create(edges, batch_size=5000)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")
    for number in range(branches):
        Ref.objects.create(model=model, kind=Ref.Kind.BRANCH, name=f"branch-{number}", version=versions[-1 - number])
    return model, versions


def timed(act: Callable[[], Any], taken: list[float]) -> Any:
    began = time.perf_counter()
    answer = act()
    taken.append((time.perf_counter() - began) * 1000)
    return answer


def ancestor(repetitions: int) -> None:
    from registry import history

    model, versions = model_with(COMMITS, 40)
    ours: list[float] = []
    edges: list[float] = []
    for repetition in range(repetitions):
        pair = versions[-1 - repetition], versions[-20 - repetition]
        if timed(lambda pair=pair: history.common_ancestor(*pair), ours) is None:
            raise RuntimeError("no common ancestor")
        timed(lambda: history.edges_of(model.pk), edges)
    report(
        "history", f"common ancestor of {COMMITS} commits", repetitions=repetitions, milliseconds=median(ours, 1),
        spread=spread(ours, 1), edges_milliseconds=median(edges, 1),
        ratio=median([one / other for one, other in zip(ours, edges, strict=True)]),
        limit=f"{LIMIT_ANCESTOR_MS} ms", passes=median(ours) <= LIMIT_ANCESTOR_MS,
    )  # fmt: skip


def pages(repetitions: int) -> None:
    from django.test import Client

    from dlplatform.accounts.models import User

    model, _ = model_with(VERSIONS, 25, BRANCHES)
    browser = Client(SERVER_NAME="localhost")
    browser.force_login(User.objects.get(username=USERNAME), backend="django.contrib.auth.backends.ModelBackend")
    addresses = {
        "model": f"/models/{model.pk}/", "history": f"/models/{model.pk}/history", "bare": "/account/keys"
    }  # fmt: skip
    taken: dict[str, list[float]] = {name: [] for name in addresses}
    for repetition in range(repetitions + 2):
        for name, address in addresses.items():
            answer = timed(lambda address=address: browser.get(address), taken[name] if repetition > 1 else [])
            if answer.status_code != 200:
                raise RuntimeError(f"{address}: {answer.status_code}")
    for name in ("model", "history"):
        report(
            "history", f"{name} page, {VERSIONS} versions, {BRANCHES} branches", repetitions=repetitions,
            milliseconds=median(taken[name], 1), spread=spread(taken[name], 1), bare_milliseconds=median(taken["bare"], 1),
            ratio=median([one / other for one, other in zip(taken[name], taken["bare"], strict=True)]),
            limit=f"{LIMIT_PAGE_MS} ms", passes=median(taken[name]) <= LIMIT_PAGE_MS,
        )  # fmt: skip


def main() -> None:
    repetitions = 10 if arguments(__doc__).short else 30
    with platform():
        ancestor(repetitions)
        pages(repetitions)


if __name__ == "__main__":
    main()
