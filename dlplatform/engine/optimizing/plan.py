"""What can be done to a finished network to make it smaller or faster, as people ask for it. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from dlplatform.engine.fields import CODE

STRUCTURED: Final = "structured"
SPARSE: Final = "sparse"
DISTIL: Final = "distil"
SHAPING: Final = (STRUCTURED, SPARSE, DISTIL)
GRAPH: Final = "onnx"
GRAPH_DYNAMIC: Final = "onnx-int8-dynamic"
GRAPH_STATIC: Final = "onnx-int8-static"
EXPORT: Final = "torch-export"
COMPILE: Final = "torch-compile"
HALF: Final = "bfloat16"
BYTES: Final = "int8"
KEEPING: Final = (GRAPH, GRAPH_DYNAMIC, GRAPH_STATIC, EXPORT, COMPILE, HALF, BYTES)
EXACTLY: Final = (GRAPH, EXPORT, COMPILE)  # those that compute the same
GRAPHS: Final = {GRAPH: "float32", GRAPH_DYNAMIC: "int8-dynamic", GRAPH_STATIC: "int8-static"}
PASSES: Final = {
    GRAPH: "The same numbers as a graph for onnxruntime: answers within 0.0001 of PyTorch's.",
    GRAPH_DYNAMIC: "A graph whose matrices are 8-bit numbers; what flows through it is scaled as it comes.",
    GRAPH_STATIC: "A graph of 8-bit numbers whose scales were fitted on training rows; also convolutions.",
    EXPORT: "The same numbers as a program that torch.export traced: the network without the Python around it.",
    COMPILE: "The same weights; each machine that answers compiles the network for its processor, and answers as before until then.",
    HALF: "Weights of 16 bits: half the bytes. Faster only where the processor computes with them.",
    BYTES: "Weights of 8 bits with a scale for each output: a quarter of the bytes. Computes as before.",
    STRUCTURED: "Whole units and channels are cut, those that matter least; then it learns on to recover.",
    SPARSE: "Single weights are set to zero: fewer bytes when compressed, never faster.",
    DISTIL: "A smaller network of its own learns to answer as this one does; of a ResNet one without normalisations.",
}
# (name, default if it is one for all passes, low, high, the passes that it is for, what it means)
SETTINGS: Final = (
    ("keep", 0.5, 0.05, 0.95, (STRUCTURED, DISTIL), "Share of the units and channels that are left."),
    ("sparsity", 0.8, 0.1, 0.98, (SPARSE,), "Share of the weights that become zero."),
    (
        "epochs",
        None,
        0,
        200,
        SHAPING,
        "Passes over the training rows: to recover 5, to learn from nothing 40, if not said.",
    ),
)
EPOCHS: Final = {STRUCTURED: 5, SPARSE: 5, DISTIL: 40}


class PlanError(ValueError):
    """A plan that cannot be worked on. ``field`` says which part of it."""

    def __init__(self, field: str, sentence: str) -> None:
        super().__init__(sentence)
        self.field = field


@dataclass(frozen=True)
class Plan:
    """Passes in their order: at most one that changes the network, then at most one that changes how it is kept."""

    passes: tuple[str, ...]
    keep: float = 0.5
    sparsity: float = 0.8
    epochs: int = 5

    @property
    def shaping(self) -> str | None:
        """The pass that changes the network."""
        return next((each for each in self.passes if each in SHAPING), None)

    @property
    def keeping(self) -> str | None:
        """The pass that changes how it is kept and run."""
        return next((each for each in self.passes if each in KEEPING), None)

    @property
    def name(self) -> str:
        """For people: the passes and what was set about them."""
        told = []
        for each in self.passes:
            share = {STRUCTURED: self.keep, DISTIL: self.keep, SPARSE: self.sparsity}.get(each)
            told.append(each if share is None else f"{each} {share:.0%}")
        return " + ".join(told)

    def to_dict(self) -> dict[str, Any]:
        """JSON form with the settings that its passes use; `parse_plan` reads it back."""
        used = {name: getattr(self, name) for name, _, _, _, takers, _ in SETTINGS if set(takers) & set(self.passes)}
        return {"passes": list(self.passes), **used}


def parse_plan(raw: Mapping[str, Any]) -> Plan:
    """Check a plan that somebody gave. Raises PlanError with the field and what to do."""
    passes = raw.get("passes")
    if not isinstance(passes, Sequence) or isinstance(passes, str) or not passes:
        raise PlanError("passes", f"Name at least one pass of: {', '.join(PASSES)}.")
    for each in passes:
        if not isinstance(each, str) or each not in PASSES:
            raise PlanError("passes", f"{str(each)[:40]!r} is no pass; choose of: {', '.join(PASSES)}.")
    kinds = [each in KEEPING for each in passes]
    if kinds not in ([False], [True], [False, True]):
        sentence = "Give one pass, or one that changes the network and behind it one that changes how it is kept."
        raise PlanError("passes", sentence)
    if SPARSE in passes and len(passes) > 1 and passes[1] in GRAPHS:
        raise PlanError("passes", "sparse saves bytes in files of weights, not in graphs: leave out the graph.")
    settings = {
        name: _number(raw, name, low, high) for name, _, low, high, _, _ in SETTINGS if raw.get(name) is not None
    }
    for name, _, _, _, takers, _ in SETTINGS:
        if name in settings and not set(takers) & set(passes):
            raise PlanError(name, f"{name} is only for {', '.join(takers)}; leave it out.")
    if "epochs" not in settings and passes[0] in EPOCHS:
        settings["epochs"] = EPOCHS[passes[0]]
    return Plan(tuple(passes), **settings)


def _number(raw: Mapping[str, Any], name: str, low: float, high: float) -> Any:
    value, whole = raw[name], name == "epochs"
    kind = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
        raise PlanError(name, f"{name} is a {'whole ' if whole else ''}number from {low:g} to {high:g}.")
    return value if whole else float(value)


def unfit(task: str, architecture: Mapping[str, Any], plan: Plan) -> str | None:
    """Why a plan cannot be worked on a model, as far as its description tells; None if nothing speaks against it."""
    if task == "language-model":
        return "Language models are not optimised here: their answers have no held-out rows to be judged by."
    if architecture.get("architecture") == CODE:
        return "A model that is built by code of its own runs in its sandbox alone, and is not optimised."
    foreign = bool(architecture.get("transformer") or architecture.get("image_transformer"))
    if plan.shaping == DISTIL and foreign:
        return "A model of the transformers library is not distilled: the smaller network would need texts read anew."
    if plan.shaping == STRUCTURED and not architecture.get("layers") and not architecture.get("image_encoder"):
        return "A linear model has no units to cut."
    return None
