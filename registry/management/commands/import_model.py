"""`manage.py import_model DIR --organization … --name …`: a model of this machine's disk becomes a version."""

import argparse
from pathlib import Path
from typing import Any

from django.core.exceptions import PermissionDenied, ValidationError
from django.core.management.base import BaseCommand, CommandError
from rest_framework.exceptions import APIException

from dlplatform.accounts.models import Organization, User
from dlplatform.engine.errors import PackageError
from registry.local_imports import import_directory


class Command(BaseCommand):
    help = "Import a package, a Hugging Face directory or weights in safetensors from a directory of this machine."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("directory", type=Path)
        parser.add_argument("--organization", required=True, help="Slug of the organization")
        parser.add_argument("--name", required=True, help="The model; made when there is none of this name")
        parser.add_argument("--user", default="", help="Who is named as the author; default: the first superuser")
        parser.add_argument("--branch", default="main")

    def handle(self, *args: Any, **options: Any) -> None:
        organization = Organization.objects.filter(slug=options["organization"]).first()
        if organization is None:
            raise CommandError(f"There is no organization {options['organization']!r}.")
        try:
            version = import_directory(
                actor=_author(options["user"]), organization=organization, name=options["name"],
                directory=options["directory"], branch=options["branch"],
            )  # fmt: skip
        except (PackageError, PermissionDenied, APIException) as error:
            raise CommandError(str(error)) from error
        except ValidationError as error:
            raise CommandError(" ".join(error.messages)) from error
        self.stdout.write(f"{version} {version.pk}")


def _author(username: str) -> User:
    people = User.objects.filter(is_active=True).order_by("date_joined")
    found = (people.filter(username=username) if username else people.filter(is_superuser=True)).first()
    if found is None:
        raise CommandError(f"There is no user {username!r}." if username else "There is no superuser; name a --user.")
    return found
