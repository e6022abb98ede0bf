"""How a pretrained model becomes another one: checked settings of fine-tuning. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from dlplatform.engine.blocks import ANSWERING, chosen
from dlplatform.engine.chat_template import BASE, USUAL
from dlplatform.engine.config import ConfigError, Problem, parse_fields
from dlplatform.engine.fields import Field

MODES: Final = ("full", "head", "lora")
ADAPTERS: Final = ("lora", "dora", "ia3")
BASE_PIXELS: Final = BASE
LETTERBOX: Final = "letterbox"
PIXELS: Final = (BASE_PIXELS, LETTERBOX)
HEADS: Final = ("whole", "adapted")
FIRST: Final = "first"
FORMATS: Final = ("peft", FIRST)
MOST_BLOCKS: Final = 1000

FINETUNE_FIELDS: Final[tuple[Field, ...]] = (
    Field("mode", "choice", "full",
          "full trains every weight; head trains chosen blocks and freezes the rest; lora trains small adapters "
          "beside frozen weights, and the new version holds the adapters only.", choices=MODES),
    Field("adapter", "choice", "lora",
          "Kind of adapter: lora (low rank), dora (low rank, with the size of each output apart) or ia3 (one "
          "factor for each output).", choices=ADAPTERS),
    Field("rank", "integer", 8, "Rank of the change that an adapter can make.", 1, 1024),
    Field("alpha", "number", 16.0, "The change is scaled by alpha / rank.", 0, 10_000, exclusive_minimum=True,
          advanced=True),
    Field("head", "choice", "whole",
          "In mode lora: the layer that gives the answer trains whole beside the adapters, gently, and is kept with "
          "them; or it is adapted like every other layer, which takes fewer bytes.", choices=HEADS),
    Field("unfreeze_every", "integer", 0,
          "In mode head: after so many epochs one more block begins to train, the last one first; 0 keeps the "
          "others frozen.", 0, 10_000, advanced=True),
    Field("layer_decay", "number", 1.0,
          "Learning rate of each block as a share of that of the block after it, from the head downwards.",
          0.01, 1, advanced=True),
    Field("chat_template", "template", BASE,
          "How a language model's chats are written: base (by the base's own template, where it has one), usual (ChatML where "
          "the tokenizer knows its marks, else plain words), or a template of your own in Jinja. The version keeps it.",
          words=(BASE, USUAL), advanced=True),
    Field("pixels", "choice", BASE_PIXELS,
          "How images are brought to the size of a base from the Hub: base (as its preprocessor_config.json says, which may "
          "cut the edges off) or letterbox (whole, the rest black). The version keeps it.", choices=PIXELS, advanced=True),
)  # fmt: skip
# Recorded, so that what was made before answers, and is trained again, to the bit as it was; nothing to choose anew.
RECORDED_FIELDS: Final[tuple[Field, ...]] = (
    Field("format", "choice", "peft",
          "How adapters are computed and stored: as the peft library does; or as first here, where ia3 scaled the weights "
          "without their bias, and the factors and sizes of convolutions had fewer axes.", choices=FORMATS),
)  # fmt: skip


@dataclass(frozen=True)
class FinetuneConfig:
    """See `FINETUNE_FIELDS` and `RECORDED_FIELDS`. ``pixels``: None where the base has nothing to say of them. ``blocks``:
    names or patterns of the blocks that train (head) or are adapted (lora); empty for the usual ones."""

    mode: str = "full"
    adapter: str = "lora"
    rank: int = 8
    alpha: float = 16.0
    head: str = "whole"
    unfreeze_every: int = 0
    layer_decay: float = 1.0
    chat_template: str = BASE
    pixels: str | None = BASE_PIXELS
    format: str = "peft"
    blocks: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON form; `parse_finetune` reads it back."""
        return {**asdict(self), "blocks": list(self.blocks)}

    def beside_adapters(self, blocks: Sequence[str]) -> list[str]:
        """Those of the blocks that train whole in mode lora: what answers, unless nothing else is to be adapted."""
        adapted = chosen(blocks, self.blocks) or list(blocks)
        heads = [block for block in adapted if block in ANSWERING]
        return heads if self.head == "whole" and len(heads) < len(adapted) else []


def parse_finetune(raw: Any) -> FinetuneConfig:
    """Check raw settings. Raises ConfigError with every problem."""
    if not isinstance(raw, dict):
        raise ConfigError([("finetune", "wrong_type", "The fine-tuning settings must be a JSON object.")])
    problems: list[Problem] = []
    given = dict(raw)
    blocks = given.pop("blocks", [])
    unsaid = {name: given.pop(name) for name in ("pixels",) if name in given and given[name] is None}
    values = parse_fields(given, (*FINETUNE_FIELDS, *RECORDED_FIELDS), "", problems) | unsaid
    names = isinstance(blocks, list | tuple) and all(isinstance(name, str) and len(name) <= 300 for name in blocks)
    if not names or len(blocks) > MOST_BLOCKS:
        problems.append(("blocks", "wrong_type", "blocks must be a list of names of blocks."))
    if values.get("unfreeze_every") and values.get("mode", "full") != "head":
        problems.append(("unfreeze_every", "not_for_mode", "unfreeze_every is for mode head; remove it."))
    if problems:
        raise ConfigError(problems)
    return FinetuneConfig(**values, blocks=tuple(blocks))


def recorded_finetune(raw: Any) -> FinetuneConfig:
    """The settings that a run or a package recorded, as they were meant then: while settings said nothing of the head,
    it was adapted; while they said nothing of the format, it was the first; nobody knew templates, and images were
    letterboxed. Raises ConfigError."""
    former = {"head": "adapted", "format": FIRST, "chat_template": USUAL, "pixels": LETTERBOX}
    return parse_finetune({**former, **raw} if isinstance(raw, dict) else raw)
