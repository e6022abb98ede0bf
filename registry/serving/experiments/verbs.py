"""What the API's verbs on experiments and canaries have in common."""

from collections.abc import Callable
from typing import Any, ClassVar
from uuid import UUID

from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import Serializer
from rest_framework.views import APIView

from dlplatform.accounts.access import require

from .holding import Holder


class VerbView(APIView):
    """A verb on what may hold a deployment: authorise, read why, call the service, answer with the row as it is then.

    ``named``: the service's argument for the row; ``reads``: what the body says, None where it says nothing; ``shows``: the
    row as it is answered.
    """

    policy: dict[str, str] = {}
    named: ClassVar[str]
    reads: ClassVar[type[Serializer[Any]] | None] = None
    shows: ClassVar[type[Serializer[Any]]]

    def find(self, request: Request, deployment: UUID, number: int) -> Holder:
        """The row of that number. Raises Http404."""
        raise NotImplementedError

    def act(self, request: Request, deployment: UUID, number: int, verb: Callable[..., Holder]) -> Response:
        found = self.find(request, deployment, number)
        require(request.user, "deploy", found)
        changed = verb(actor=request.user, **{self.named: found}, **self._given(request))
        return Response(self.shows(changed).data)

    def _given(self, request: Request) -> dict[str, Any]:
        if self.reads is None:
            return {}
        given = self.reads(data=request.data)
        given.is_valid(raise_exception=True)
        return dict(given.validated_data)
