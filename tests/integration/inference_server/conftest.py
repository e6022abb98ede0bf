"""A deployment of the first of three versions, of which each answers its number."""

import pytest

from tests.integration.answering import constant, deployed, three_versions


@pytest.fixture
def versions(organization, stubs):
    made = three_versions(organization)
    for version in made:
        stubs.answers[version.pk] = constant(float(version.number))
    return made


@pytest.fixture
def deployment(maintainer, organization, versions):
    return deployed(maintainer, organization, versions[0])
