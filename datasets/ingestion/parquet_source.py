from datasets.ingestion.result import Rejected
def open_parquet(*a): raise Rejected("x","x")
