"""The volume of logged images: counted now and then, reckoned in between, and counted again before anything is refused."""

from types import SimpleNamespace
from uuid import uuid4

import pytest

from registry.serving import logged_images
from registry.serving.logged_images import MEGABYTE, Volumes


@pytest.fixture
def clock(monkeypatch):
    made = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(logged_images.time, "monotonic", lambda: made.now)
    return made


@pytest.fixture
def counts(monkeypatch):
    """How often was counted; there is always as much as `used` says."""
    made = SimpleNamespace(used=0, times=0)

    def count(_organization):
        made.times += 1
        return made.used

    monkeypatch.setattr(logged_images, "_used", count)
    return made


def test_what_comes_again_and_again_is_not_taken_for_growth(clock, counts, settings):
    settings.PREDICTION_LOG_IMAGE_MB, volumes, organization = 10, Volumes(), uuid4()
    for _ in range(40):  # the same image in batch after batch
        assert volumes.fits(organization, MEGABYTE)
        counts.used = MEGABYTE
        clock.now += 0.4
    assert counts.times < 10


def test_what_grows_is_refused_at_the_limit_and_counted_at_most_once_a_second(clock, counts, settings):
    settings.PREDICTION_LOG_IMAGE_MB, volumes, organization = 3, Volumes(), uuid4()
    assert [volumes.fits(organization, MEGABYTE) for _ in range(4)] == [True, True, True, False]
    counts.used = 3 * MEGABYTE
    clock.now += 2
    assert [volumes.fits(organization, 1) for _ in range(5)] == [False] * 5
    assert counts.times == 2
    assert volumes.fits(uuid4(), 0), "of another organization nothing is known"
    counts.used = 0  # old ones were forgotten
    clock.now += 2
    assert volumes.fits(organization, MEGABYTE)
