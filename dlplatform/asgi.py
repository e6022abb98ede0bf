"""The web process as one ASGI application: static files, large uploads, Django, WebSockets."""

import os
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "dlplatform.settings")

import django
from django.core.handlers.asgi import ASGIHandler

django.setup(set_prefix=False)

from channels.routing import ProtocolTypeRouter, URLRouter
from django.conf import settings
from django.contrib.staticfiles.finders import get_finders
from django.urls import path, re_path
from servestatic import ServeStaticASGI

from datasets.uploads import UploadEndpoint
from dlplatform.body_limit import BodyLimit
from registry.hub.uploads import HubUploads
from registry.upload_endpoint import ModelUploads
from training.sockets import organization_socket, run_socket, unknown_socket

sockets = URLRouter(
    [
        path("ws/runs/<uuid:run>", run_socket),
        path("ws/organizations/<slug:slug>", organization_socket),
        re_path("", unknown_socket),
    ]
)


class DjangoApplication(ASGIHandler):
    chunk_size = 1024 * 1024  # files are sent in such pieces; Django would cut each of them into sixteen


def with_static_files(wrapped: Any) -> ServeStaticASGI:
    """Static files straight from the packages they come in: nothing has to be collected before a start."""
    # Not `autorefresh`: it looks into one folder, and finds nothing of what the finders name.
    server = ServeStaticASGI(wrapped, max_age=0 if settings.DEBUG else 3600, allow_all_origins=False)
    for finder in get_finders():
        for relative, storage in finder.list(["*.map"]):
            prefix = getattr(storage, "prefix", "")
            url = settings.STATIC_URL + (f"{prefix}/{relative}" if prefix else relative)
            if url not in server.files:
                server.add_file_to_dictionary(url, storage.path(relative))
    return server


application = ProtocolTypeRouter(
    {
        "http": with_static_files(UploadEndpoint(ModelUploads(HubUploads(BodyLimit(DjangoApplication()))))),
        "websocket": sockets,
    }
)
