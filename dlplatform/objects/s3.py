"""Objects in S3, or in a server that speaks its API."""

from datetime import datetime
from typing import Any

from botocore.exceptions import ClientError
from storages.backends.s3 import S3Storage


class S3ObjectStorage(S3Storage):
    """django-storages' S3 with ranged reads: opening a file there would fetch the whole of it."""

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """At most ``length`` bytes. Raises FileNotFoundError."""
        if length == 0:
            return b""
        wanted = f"bytes={offset}-{offset + length - 1}"
        try:
            return bytes(self._object(name).get(Range=wanted)["Body"].read())
        except ClientError as error:
            if error.response["Error"]["Code"] == "InvalidRange":  # the file ends before the offset
                return b""
            raise _translated(error, name) from error

    def get_modified_time(self, name: str) -> datetime:
        try:
            return super().get_modified_time(name)  # type: ignore[no-any-return]
        except ClientError as error:
            raise _translated(error, name) from error

    def _object(self, name: str) -> Any:
        return self.bucket.Object(self._normalize_name(name))


def _translated(error: ClientError, name: str) -> Exception:
    missing = error.response["ResponseMetadata"]["HTTPStatusCode"] == 404
    return FileNotFoundError(f"no file {name} in S3") if missing else error
