"""`manage.py samples`: sample datasets and one run for the first organization of the first admin."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from dlplatform.accounts.models import User
from dlplatform.accounts.organizations import default_for
from training.samples import launch_sample_run, load_samples


class Command(BaseCommand):
    help = "Load sample datasets from scikit-learn's bundled data and launch one run on them."

    def handle(self, *args: Any, **options: Any) -> None:
        actor = User.objects.filter(is_superuser=True).order_by("date_joined").first()
        organization = default_for(actor) if actor else None
        if actor is None or organization is None:
            raise CommandError("There is no admin with an organization yet: start the platform once.")
        created = load_samples(actor, organization)
        self.stdout.write(f"{len(created)} sample datasets created")
        if created and (run := launch_sample_run(actor, organization)):
            self.stdout.write(f"run {run.name} is queued")
