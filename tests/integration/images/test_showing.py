"""Images as whoever may sees them: sent as what they are, linked, in pages."""

import pytest
from django.urls import reverse

from tests.fixtures.pictures import class_folders, picture
from tests.integration.images.conftest import FILES, address, digest

pytestmark = pytest.mark.django_db(transaction=True)


def test_an_image_and_its_thumbnail_are_sent_as_what_they_are(api, viewer, upload):
    content = picture(1, (200, 100))
    pets = upload({"cat/1.png": content, "dog/2.png": picture(2)})
    answer = api(viewer).get(address(pets, content))
    assert answer.status_code == 200 and answer.content == content
    assert answer["Content-Type"] == "image/png" and answer["X-Content-Type-Options"] == "nosniff"
    assert "sandbox" in answer["Content-Security-Policy"] and answer["Content-Disposition"].startswith("inline")
    small = api(viewer).get(address(pets, content) + "?thumbnail=1")
    assert small["Content-Type"] == "image/jpeg" and small["ETag"] != answer["ETag"]
    again = api(viewer).get(address(pets, content), headers={"If-None-Match": answer["ETag"]})
    assert again.status_code == 304 and again.content == b"" and "private" in again["Cache-Control"]
    assert api(viewer).head(address(pets, content)).status_code == 200


def test_a_file_is_never_sent_as_anything_but_an_image(api, viewer, upload):
    """A picture with a page behind it, named as a page."""
    polyglot = picture(1) + b"<script>alert(1)</script>"
    tiff = picture(2, kind="TIFF")
    version = upload({"a/1.png": polyglot, "b/2.tif": tiff})
    answer = api(viewer).get(address(version, polyglot))
    assert answer.content == polyglot and answer["Content-Type"] == "image/png"
    other = api(viewer).get(address(version, tiff))
    assert other["Content-Type"] == "image/tiff" and other["Content-Disposition"].startswith("attachment")


def test_only_who_may_see_the_version_sees_its_images(api, pets, stranger, viewer, trainer, upload):
    content = FILES["pets/cat/0.png"]
    assert api(None).get(address(pets, content)).status_code == 401
    refused = api(stranger).get(address(pets, content))
    assert refused.status_code == 404
    assert refused.content == api(stranger).get(address(pets, b"never existed")).content
    second = upload({"cat/1.png": picture(700), "dog/2.png": picture(701)})
    assert api(viewer).get(address(second, picture(700))).status_code == 200
    for other in (content, b"nothing"):
        assert api(viewer).get(address(second, other)).status_code == 404, "an image of another version"
    part = f"/api/v1/datasets/{pets.dataset_id}/versions/1/images/{pets.parts[0]['sha256']}"
    assert api(viewer).get(part).status_code == 404, "an object that is no image"
    assert api(viewer).get(address(pets, content) + "?thumbnail=maybe").status_code == 400


def test_rows_link_their_images_and_the_csv_names_them(api, web, viewer, pets):
    page = api(viewer).get(f"/api/v1/datasets/{pets.dataset_id}/versions/1/rows?limit=3").json()
    assert [row["file"] for row in page["results"]] == [f"pets/cat/{index}.png" for index in range(3)]
    image = page["results"][0]["image"]
    assert image["sha256"] == digest(FILES["pets/cat/0.png"])
    assert api(viewer).get(image["url"]).content == FILES["pets/cat/0.png"]
    assert api(viewer).get(image["thumbnail_url"]).status_code == 200
    lines = b"".join(web(viewer).get(reverse("version-csv", args=[pets.dataset_id, 1]))).decode().splitlines()
    assert len(lines) == 13 and image["sha256"] in lines[1]
    detail = api(viewer).get(f"/api/v1/datasets/{pets.dataset_id}/versions/1").json()
    assert detail["images"]["count"] == 12 and detail["profile"]["image"]["width"]["max"] == 12


def test_the_page_shows_the_pictures_by_class(web, viewer, upload):
    version = upload({**class_folders(40, folder=""), "cat/<b>.png": picture(9), "dog/broken.png": b"x"})
    client, page = web(viewer), reverse("dataset", args=[version.dataset_id])
    first = client.get(page + "?tab=images")
    assert len(first.context["pictures"]) == 60 and first.context["page"].paginator.count == 81
    body = client.get(page + "?tab=images&class=dog&page=1").content.decode()
    assert body.count("?thumbnail=1") == 40 and "dog (40)" in body and "0.png" in body
    assert client.get(page + "?tab=images&class=nothing").context["pictures"] == []
    assert "&lt;b&gt;.png" in client.get(page + "?tab=images&page=1").content.decode()
    rows = client.get(page + "?tab=rows").content.decode()
    assert rows.count("<img") == 50
    columns = client.get(page).content.decode()
    assert "12 × 9" in columns and "PNG" in columns
    assert "dog/broken.png" in client.get(page + "?tab=problems").content.decode()


def test_other_versions_have_no_tab_of_images(web, viewer, flowers):
    page = reverse("dataset", args=[flowers.dataset_id])
    body = web(viewer).get(page + "?tab=images").content.decode()
    assert "tab=images" not in body.partition('<nav class="tabs"')[2].partition("</nav>")[0]
