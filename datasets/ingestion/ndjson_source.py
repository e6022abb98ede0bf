from __future__ import annotations
from datasets.ingestion.result import Rejected
class NdjsonSource:
    def __init__(self, *a): raise Rejected("x","x")
