"""A deployment of the first of three versions, whose models say what they were asked."""

import pytest

from tests.integration.answering import BOUNDED, deployed, three_versions


@pytest.fixture
def versions(organization):
    return three_versions(organization, BOUNDED)


@pytest.fixture
def deployment(maintainer, organization, versions):
    return deployed(maintainer, organization, versions[0])


@pytest.fixture
def told(stubs, inference):
    """What the models behind the inference server were asked: (version, rows)."""
    return stubs.asked
