"""The model card, ``README.md`` of a package: what the model is, how good it is, where not to use it."""

from __future__ import annotations

from typing import Any

_NAMES = {
    "tabm": "TabM, an efficient ensemble of networks with piecewise-linear embeddings and a linear path",
    "mlp": "a multilayer perceptron",
    "linear": "a linear model",
    "code": "an architecture of its own, in `code/model.py`",
}
_ENCODERS = {
    "resnet": "a small ResNet over images", "convnext": "a small ConvNeXt over images",
    "resnet-folded": "a small ResNet without normalisations over images",
}  # fmt: skip


def model_card(description: dict[str, Any], evaluation: dict[str, Any]) -> str:
    """Markdown for people who did not train the model."""
    sections = [_head(description), _data(description), _quality(evaluation), _inputs(description)]
    return "\n\n".join([*sections, _use(description)]) + "\n"


def language_card(description: dict[str, Any], evaluation: dict[str, Any]) -> str:
    """Markdown about a model that writes."""
    shape, rows = description["architecture"], description["rows"]
    head = (
        f"# Language model of {_text(description['target'])}\n\nWrites on from a prompt: a transformer of "
        f"{shape['layers']} blocks, {shape['width']} wide, that looks back at {shape['length']} of "
        f"{shape['vocabulary']:,} tokens."
    )
    data = f"## Data\n\nTrained on {rows['train']:,} documents, measured on {rows['validation']:,} held-out ones."
    samples = "\n".join(f"> {_text(text)}\n" for text in evaluation["samples"])
    use = (
        "## Intended use and limits\n\nIt repeats the manner of its texts, mistakes and prejudices included, and knows "
        "nothing of what is true. Read what it writes before anybody acts on it."
    )
    return "\n\n".join([head, data, _quality(evaluation), f"## Samples\n\n{samples}", use]) + "\n"


def _head(description: dict[str, Any]) -> str:
    target = _text(description["target"])
    return f"# Model of {target}\n\nPredicts `{target}` ({description['task']}) with {_network(description['architecture'])}."


def _network(shape: dict[str, Any]) -> str:
    """The network in words: the encoders, then what combines them."""
    encoders = [_ENCODERS[shape["image_encoder"]]] if shape.get("image_encoder") in _ENCODERS else []
    encoders += ["a transformer over texts"] if shape.get("text_layers") else []
    for name, what in (("image_transformer", "images"), ("transformer", "texts")):
        if found := shape.get(name):
            began = "" if found.get("fresh") else "pretrained "
            encoders.append(f"a {began}transformer ({_text(found['config'].get('model_type'))}) over {what}")
    return " and ".join([*encoders, _NAMES[shape["architecture"]]])


def _data(description: dict[str, Any]) -> str:
    rows = description["rows"]
    lines = [
        "## Data",
        "",
        f"Trained on {rows['train']:,} rows, measured on {rows['validation']:,} held-out rows, "
        f"{len(description['inputs'])} input columns.",
    ]
    lines += [f"- {_text(key)}: {_text(_told(value))}" for key, value in sorted(description["lineage"].items())]
    return "\n".join(lines)


def _told(value: Any) -> Any:
    """What is nested, as the passes of an optimisation are, in words."""
    if isinstance(value, dict):
        return "; ".join(f"{name} {_told(one)}" for name, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def _quality(evaluation: dict[str, Any]) -> str:
    reference = evaluation["baseline"]
    lines = [
        "## Quality",
        "",
        f"Held out: {evaluation['held_out']}.",
        "",
        f"| metric | this model | baseline ({reference['kind']}) |",
        "|---|---|---|",
    ]
    for name, value in evaluation["metrics"].items():
        lines.append(f"| {name} | {_number(value)} | {_number(reference['metrics'][name])} |")
    important = [_text(entry["column"]) for entry in evaluation["importance"][:5] if entry["increase"] > 0]
    if important:
        lines += ["", f"Most important columns: {', '.join(important)}."]
    return "\n".join(lines)


def _inputs(description: dict[str, Any]) -> str:
    lines = ["## Inputs", "", "| column | type | may be missing | range or values |", "|---|---|---|---|"]
    for column in description["inputs"]:
        lines.append(
            f"| {_text(column['name'])} | {column['type']} | {'yes' if column['nullable'] else 'no'} "
            f"| {_range(column)} |"
        )
    return "\n".join(lines)


def _range(column: dict[str, Any]) -> str:
    if column["categories"]:
        shown = ", ".join(_text(value) for value in column["categories"][:8])
        return shown + (", …" if len(column["categories"]) > 8 else "")
    return f"{column['minimum']} to {column['maximum']}" if column["minimum"] is not None else ""


def _use(description: dict[str, Any]) -> str:
    return (
        "## Intended use and limits\n\n"
        "For rows that come from where the training rows came from. Outside the ranges above, or after the "
        "world has changed, the figures do not hold. Probabilities are the model's own and not a guarantee; "
        "a column's importance is not a cause. Check the model for groups of people it may treat unequally "
        "before decisions about people depend on it."
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _text(value: Any) -> str:
    """A user's text inside a table cell: one line, no markup."""
    flat = " ".join(str(value).split())[:120]
    return "".join("\\" + char if char in "|`*_[]<>#\\" else char for char in flat)
