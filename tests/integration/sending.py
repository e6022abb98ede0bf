"""Sending a model as a program does: begun, in parts and in any order, completed, worked on."""

import asyncio
import base64
import hashlib
import io
import json
import random
import zipfile

import httpx
import torch
from safetensors.torch import save

from dlplatform.accounts.authentication import tokens_for
from registry import services, uploads
from registry.jobs import import_upload
from registry.models import Upload
from registry.upload_endpoint import ModelUploads
from tests.integration.test_uploads import unreached

MB = 1024 * 1024


def weights(seed=0, rows=700):
    torch.manual_seed(seed)
    return save({"layer.weight": torch.randn(rows, 1024), "layer.bias": torch.zeros(8)})


def digest(data):
    return f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"


def send(user, method, path, **request):
    headers = dict(request.pop("headers", {}))
    if user is not None:
        headers["Authorization"] = f"Bearer {tokens_for(user)['access']}"

    async def go():
        transport = httpx.ASGITransport(app=ModelUploads(unreached), raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, "/api/v1" + path, headers=headers, **request)

    return asyncio.run(go())


def begin(api, user, model, files, **more):
    body = {"files": files, "part_size": MB, **more}
    return api(user).post(f"/api/v1/models/{model.pk}/uploads", body, format="json")


def described(path, data, **more):
    return {"path": path, "size": len(data), **more}


def part(user, upload, file, number, data, **more):
    return send(user, "PUT", f"/uploads/{upload}/files/{file}/parts/{number}", content=data, **more)


def parts_of(data):
    return [data[start : start + MB] for start in range(0, len(data), MB)]


def send_all(api, user, model, files, **more):
    """Begin, send every part in a random order, complete; the upload's id."""
    made = begin(api, user, model, [described(path, data) for path, data in files.items()], **more)
    assert made.status_code == 201, made.content
    places = [(i, n, one) for i, data in enumerate(files.values()) for n, one in enumerate(parts_of(data))]
    random.Random(4).shuffle(places)
    for file, number, data in places:
        answer = part(user, made.json()["id"], file, number, data, headers={"Content-Digest": digest(data)})
        assert answer.status_code == 200, answer.text
    return made.json()["id"]


def complete(api, user, upload, **hashes):
    return api(user).post(f"/api/v1/uploads/{upload}/complete", hashes, format="json")


def worked_on(upload):
    import_upload(str(upload))
    return Upload.objects.get(pk=upload)


def version_of(api, user, model, files, **more):
    upload = send_all(api, user, model, files, **more)
    assert complete(api, user, upload).status_code == 202
    done = worked_on(upload)
    assert done.state == "succeeded", done.error
    return done.output_version


def content(version, path):
    return services.object_store(version.model.organization_id).read(version.tree[path]["sha256"])


def left_behind():
    folder = uploads.staged(Upload(id="0" * 32)).folder.parent
    return [path.name for path in folder.glob("*")]


def zipped(files, **more):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in files.items():
            archive.writestr(path, data)
    return out.getvalue()


DIRECTORY = {
    "config.json": json.dumps({"architectures": ["TinyForCausalLM"], "model_type": "tiny"}).encode(),
    "model.safetensors": weights(rows=10),
    "tokenizer.json": b"{}",
}
