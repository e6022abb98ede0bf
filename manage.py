#!/usr/bin/env python
"""Entry point of every management command."""

import os
import sys
from pathlib import Path


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "dlplatform.settings")
    if sys.argv[1:2] == ["up"]:
        _before_settings()
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import execute_from_command_line

    try:
        execute_from_command_line(sys.argv)
    except ImproperlyConfigured as error:  # a value that the person who starts this can mend: no traceback
        sys.exit(str(error))


def _before_settings() -> None:
    """Settings are read once, so the addresses of services that `up` will start must be known before."""
    from dlplatform.embedded import ensure_environment

    home = os.environ.get("DLP_HOME") or Path(__file__).resolve().parent / ".data"
    ensure_environment(Path(home).expanduser().absolute())


if __name__ == "__main__":
    main()
