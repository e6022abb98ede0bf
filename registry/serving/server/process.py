"""One process of the inference server, as uvicorn makes it: by a fresh interpreter where there are several."""

import gc
import os
import signal
import sys
from typing import Any

import django
from django.apps import apps
from django.conf import settings

from dlplatform.processes import die_with_parent

# Objects more than before, for which the garbage among them is collected. By Python's own 700 it is, at 5,000 requests a second, forty-five
# times a second, in which nobody is answered for a quarter of a millisecond, and nearly all that is looked at are records that wait.
YOUNG = 10_000


def application() -> Any:
    """The ASGI application, with all that it needs imported and warm."""
    if settings.SERVE_PROCESSES > 1:
        die_with_parent(signal.SIGTERM, os.getppid())
    if not apps.ready:
        django.setup()
    from .application import InferenceServer

    warm_up()
    server = InferenceServer()
    gc.collect()
    gc.freeze()  # or full collections, which records that wait bring about, look at all this again: hundreds of milliseconds
    gc.set_threshold(YOUNG)
    return server


def warm_up() -> None:
    """Pay for torch's lazy start before the first request does.

    Python's threads change places every millisecond, so that an answer does not wait for what others do.
    """
    import torch

    from dlplatform.engine.environment import serving_threads

    sys.setswitchinterval(0.001)
    torch.set_num_threads(serving_threads(settings.SERVE_PROCESSES))
    torch.nn.functional.linear(torch.zeros(1, 2), torch.zeros(2, 2))
