"""Which objects the code of users refers to, and how long code that no run has used is kept."""

from datetime import timedelta
from uuid import UUID

from django.utils import timezone

from .models import CodeBundle

UNUSED = timedelta(days=30)


def reachable_objects(organization: UUID) -> set[str]:
    """The ids of the files of all bundles."""
    trees = CodeBundle.objects.filter(organization_id=organization).values_list("tree", flat=True).iterator()
    return {entry["sha256"] for tree in trees for entry in tree.values()}


def forget_unused_code() -> int:
    """Delete bundles that no run or sweep was launched with for a month; their files are freed after the usual grace period."""
    old = CodeBundle.objects.filter(runs=None, sweeps=None, created_at__lt=timezone.now() - UNUSED)
    return old.delete()[0]
