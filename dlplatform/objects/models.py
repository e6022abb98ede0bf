"""The index of the store: where every object lies and how it is encoded."""

from django.db import models
from django.db.models import Q
from django.utils import timezone


class StoredObject(models.Model):
    """One object of one organization in one storage.

    A leaf has bytes: ``stored_size`` of them at ``offset`` of ``file``. A composite has parts instead, leaves that
    make up its bytes in order. The row is written after the bytes are durable and deleted before they go: what has
    a row can be read.
    """

    class Codec(models.TextChoices):
        RAW = "raw"
        ZSTD = "zstd"
        GROUPED = "grouped"
        DELTA = "delta"
        COMPOSITE = "composite"

    storage = models.CharField(max_length=40, help_text="Name in STORAGES")
    organization = models.UUIDField(help_text="No foreign key: its objects outlive it until they are collected")
    sha256 = models.CharField(max_length=64)
    size = models.BigIntegerField(help_text="Bytes of the object")
    stored_size = models.BigIntegerField(help_text="Bytes that it takes in its file; 0 for a composite")
    codec = models.CharField(max_length=10, choices=Codec.choices)
    base = models.CharField(max_length=64, blank=True, help_text="The object that a delta was made with")
    depth = models.PositiveSmallIntegerField(default=0, help_text="Objects to read before this one")
    file = models.CharField(max_length=200, blank=True, help_text="Name in the storage, never used twice")
    offset = models.BigIntegerField(default=0)
    parts = models.JSONField(default=list, help_text="[[sha256, size]] of a composite, in order")
    created_at = models.DateTimeField(default=timezone.now)
    touched_at = models.DateTimeField(default=timezone.now, help_text="When somebody last put it")
    condemned_at = models.DateTimeField(null=True, blank=True, help_text="When nothing referred to it any more")

    class Meta:
        verbose_name = "stored object"
        constraints = [
            models.UniqueConstraint(fields=["storage", "organization", "sha256"], name="stored_object_once"),
            models.CheckConstraint(
                condition=Q(codec="composite", file="") | (~Q(codec="composite") & ~Q(file="")),
                name="stored_object_has_file_or_parts",
            ),
            models.CheckConstraint(
                condition=Q(codec="delta", depth__gt=0) & ~Q(base="") | (~Q(codec="delta") & Q(base="", depth=0)),
                name="stored_object_base_of_delta_only",
            ),
        ]
        indexes = [
            models.Index(fields=["file"], name="stored_object_file"),
            models.Index(
                fields=["storage", "organization", "condemned_at"],
                condition=Q(condemned_at__isnull=False),
                name="stored_object_condemned",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.sha256[:12]} ({self.codec}, {self.size} bytes)"
