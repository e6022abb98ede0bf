"""Checkpoints that are pickles: whoever loads one runs whatever code is in it, so none is kept here."""

from rest_framework.exceptions import APIException

ENDINGS = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".dill", ".pt2", ".mar")
REFUSAL = (
    "{what} is (or may hold) a Python pickle, which can run code when it is loaded, and is not stored here. "
    "Save the weights as safetensors instead: model.save_pretrained(folder) writes them so in transformers; else "
    "safetensors.torch.save_file(model.state_dict(), 'model.safetensors'). Leave other such files out, for example "
    "with upload_folder(..., ignore_patterns=['*.bin', '*.pt'])."
)
ZIP = b"PK\x03\x04"
SAMPLE = 512


class PickleRefused(APIException):
    """A file that is a pickle, or may hold one; ``what`` names it."""

    status_code = 422
    default_code = "pickle"

    def __init__(self, what: str) -> None:
        super().__init__(REFUSAL.format(what=what))


def check_name(path: str) -> None:
    if path.lower().endswith(ENDINGS):
        raise PickleRefused(repr(path[:100]))


def check_content(beginning: bytes, what: str = "This file") -> None:
    """Look at the first ``SAMPLE`` bytes, for checkpoints under another name."""
    if _is_pickle(beginning) or (beginning.startswith(ZIP) and b"data.pkl" in beginning):
        raise PickleRefused(what)


def _is_pickle(beginning: bytes) -> bool:
    """A protocol byte with an operation after it; a safetensors file may begin like that but for its brace."""
    marked = len(beginning) > 2 and beginning[0] == 0x80 and 2 <= beginning[1] <= 5 and beginning[2] != 0
    return marked and beginning[8:9] != b"{"
