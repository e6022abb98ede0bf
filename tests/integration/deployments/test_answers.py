"""What a deployment answers by API: who answered, where a name is looked for, what is refused."""

from uuid import UUID

import pytest

from registry.serving import services
from registry.serving.models import Variant
from registry.serving.services import Wanted
from tests import factories

pytestmark = pytest.mark.django_db
ROOT = "/api/v1/deployments"


def test_a_prediction_names_who_answered_and_a_key_stays_with_its_variant(
    api, maintainer, viewer, deployment, versions, told, inference
):
    services.change_variants(
        actor=maintainer, deployment=deployment, variants=[Wanted(versions[0].pk), Wanted(versions[1].pk)]
    )
    inference.wait_for(deployment.pk, 2)
    client = api(viewer)
    seen = {}
    for number in range(30):
        body = {"instances": [{"x": 1.0}], "key": f"user-{number}"}
        by_id = client.post(f"{ROOT}/{deployment.pk}/predict", body, format="json").json()
        by_name = client.post(f"{ROOT}/screening/predict", body, format="json").json()
        assert by_id["version"] == by_name["version"] and by_id["request_id"] != by_name["request_id"]
        assert by_id["predictions"] == [{"value": 1.0}]
        assert Variant.objects.get(pk=by_id["variant"]).version_id == UUID(by_id["version"]) == told[-1][0]
        seen[by_id["version"]] = 1
    assert len(seen) == 2
    without = client.post(f"{ROOT}/{deployment.pk}/predict", {"instances": [{"x": 1.0}]}, format="json")
    assert without.status_code == 200


@pytest.mark.parametrize(
    "body", [{}, {"instances": []}, {"instances": [{}], "key": "k" * 201}, {"instances": [{}], "kei": "x"}]
)
def test_bad_questions_are_refused(api, viewer, deployment, told, body):
    assert api(viewer).post(f"{ROOT}/{deployment.pk}/predict", body, format="json").status_code == 400


def test_a_name_is_looked_up_in_the_organization_that_is_meant(api, viewer, stranger, deployment, told):
    body = {"instances": [{"x": 1.0}]}
    assert api(stranger).post(f"{ROOT}/screening/predict", body, format="json").status_code == 404
    factories.MembershipFactory(organization=deployment.organization, user=stranger, role="viewer")
    assert api(stranger).post(f"{ROOT}/screening/predict", body, format="json").status_code == 200
    assert (
        api(stranger).post(f"{ROOT}/screening/predict?organization=elsewhere", body, format="json").status_code == 404
    )
    assert api(stranger).post(f"{ROOT}/screening/predict?organization=lab", body, format="json").status_code == 200
    for nowhere in ("elsewhere", "%00", "l%00ab"):
        answer = api(viewer).post(f"{ROOT}/screening/predict?organization={nowhere}", body, format="json")
        assert answer.status_code == 400 and answer.json()["errors"][0]["attr"] == "organization"


@pytest.mark.parametrize("row", ['{"x": "a\\ud800"}', '{"\\ud800": 1}'])
def test_half_a_character_in_a_row_is_refused_by_its_place(api, viewer, deployment, versions, row):
    body = f'{{"instances": [{{"x": 123456789012345678901234567890}}, {row}]}}'
    for path in (f"{ROOT}/{deployment.pk}/predict", f"/api/v1/model-versions/{versions[0].pk}/predict"):
        answer = api(viewer).post(path, body, content_type="application/json")
        told = answer.json()["errors"]
        assert answer.status_code == 400 and [one["attr"] for one in told] == ["instances.1"], answer.content
