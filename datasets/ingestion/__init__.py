"""Turn an uploaded file into typed Parquet parts, a profile and a list of problems.

Nothing here imports Django. Callers use `isolation.ingest_in_child`, which decodes in a child process.
"""
