"""`manage.py prepare`: migrate, and make the first admin when there is nobody. Safe to repeat."""

from typing import Any

from django.core.management import call_command
from django.core.management.base import BaseCommand
from django.db import connection
from django.db.migrations.executor import MigrationExecutor

from dlplatform.accounts.bootstrap import first_admin


class Command(BaseCommand):
    help = "Bring the database up to date and create the first admin."
    requires_system_checks: list[str] = []

    def handle(self, *args: Any, **options: Any) -> str | None:
        executor = MigrationExecutor(connection)
        if executor.migration_plan(executor.loader.graph.leaf_nodes()):
            call_command("migrate", interactive=False, verbosity=0)
        created = first_admin()
        return f"Sign in as {created[0]}; password: {created[1]}" if created else None
