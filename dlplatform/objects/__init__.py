"""The object store: bytes named by their SHA-256. `store.py` is its outside."""
