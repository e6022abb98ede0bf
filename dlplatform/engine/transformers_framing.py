"""How the processor of a Hugging Face directory frames images: ``preprocessor_config.json`` as the library reads it. Torch-free.

Older files leave out what their processor's class takes for granted, so that the class is told by its name, else by the
architecture (``AutoImageProcessor`` of transformers 5).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dlplatform.engine.errors import PackageError
from dlplatform.engine.framing import BILINEAR, FILTERS, LARGEST, Framing
from dlplatform.engine.transformers_config import PREPROCESSOR

BICUBIC: Final = 3
# Tuples: of three channels, and their mean for one; a list is what a file says of exactly its own.
_HALF: Final = {"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3}
_IMAGENET: Final = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}
_CLIP: Final = {
    "image_mean": (0.48145466, 0.4578275, 0.40821073), "image_std": (0.26862954, 0.26130258, 0.27577711),
    "size": {"shortest_edge": 224}, "crop_size": 224, "do_center_crop": True, "resample": BICUBIC,
}  # fmt: skip
_MOBILE: Final = {**_HALF, "size": {"shortest_edge": 256}, "crop_size": 224, "do_center_crop": True}
_WITHOUT: Final[dict[str, Any]] = {"size": 224, "resample": BILINEAR}
_DEFAULTS: Final[dict[str, dict[str, Any]]] = {
    "ViT": {**_HALF, **_WITHOUT},
    "Beit": {**_HALF, "size": 224, "crop_size": 224, "resample": BICUBIC},
    "DeiT": {**_HALF, "size": 256, "crop_size": 224, "do_center_crop": True, "resample": BICUBIC},
    "Bit": _CLIP,
    "CLIP": _CLIP,
    "ConvNext": {**_HALF, "size": {"shortest_edge": 384}, "crop_pct": 224 / 256, "resample": BICUBIC},
    "Levit": {
        **_IMAGENET, "size": {"shortest_edge": 224}, "crop_size": 224, "do_center_crop": True, "resample": BICUBIC,
    },
    "PoolFormer": {
        **_IMAGENET, "size": {"shortest_edge": 224}, "crop_size": 224, "do_center_crop": True, "crop_pct": 0.9,
        "resample": BICUBIC,
    },
    "EfficientNet": {**_HALF, "size": 346, "crop_size": 289, "resample": BICUBIC, "include_top": True},
    "MobileNetV1": _MOBILE,
    "MobileNetV2": _MOBILE,
    "MobileViT": {
        "size": {"shortest_edge": 224}, "crop_size": 256, "do_center_crop": True, "resample": BICUBIC,
        "do_normalize": False, "do_flip_channel_order": True,
    },
    "Pvt": {**_IMAGENET, "size": 224, "resample": BICUBIC},
    "Segformer": {**_IMAGENET, "size": 512, "resample": BILINEAR},
    "Siglip": {**_HALF, "size": 224, "resample": BICUBIC},
}  # fmt: skip
# Whose plain number as a size is that of the shorter side.
_BY_SHORTER: Final = (
    "Bit",
    "CLIP",
    "ConvNext",
    "Levit",
    "PoolFormer",
    "MobileNetV1",
    "MobileNetV2",
    "MobileViT",
    "Siglip",
)
_OF_ARCHITECTURE: Final = {
    **dict.fromkeys(("vit", "vit_msn", "vit_mae", "swin", "swinv2", "swiftformer", "dinat", "ijepa"), "ViT"),
    **dict.fromkeys(("dinov2", "dinov2_with_registers", "focalnet", "hiera", "bit"), "Bit"),
    **dict.fromkeys(("convnext", "convnextv2", "cvt", "resnet", "regnet"), "ConvNext"),
    **dict.fromkeys(("mobilevit", "mobilevitv2"), "MobileViT"),
    **dict.fromkeys(("beit", "data2vec-vision"), "Beit"),
    **dict.fromkeys(("pvt", "pvt_v2"), "Pvt"),
    "deit": "DeiT", "levit": "Levit", "poolformer": "PoolFormer", "efficientnet": "EfficientNet",
    "mobilenet_v1": "MobileNetV1", "mobilenet_v2": "MobileNetV2", "segformer": "Segformer",
}  # fmt: skip
_WARPED: Final = 384  # from which on a ConvNeXt's processor cuts nothing off


def kind_of(raw: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The class of processor, such as ``ConvNext`` for its ConvNextImageProcessor, that reads the file."""
    named = str(raw.get("image_processor_type") or raw.get("feature_extractor_type") or "")
    for ending in ("Pil", "Fast", "ImageProcessor", "FeatureExtractor"):
        named = named.removesuffix(ending)
    return named or _OF_ARCHITECTURE.get(str(config.get("model_type")), "")


def as_written(raw: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The file with what its processor takes for granted."""
    return {**_DEFAULTS.get(kind, {}), **{name: value for name, value in raw.items() if value is not None}}


def framing_by(written: Mapping[str, Any], kind: str) -> tuple[Framing, int] | None:
    """How images are framed, and the side of the square that comes of it: 0 where it is none. None for a file that
    says too little, or that keeps sizes as they are. Raises PackageError."""
    cut = _square_of(_sides("crop_size", written.get("crop_size"))) if written.get("do_center_crop") else 0
    if not written.get("do_resize", True):
        return (_flipped(Framing(), written), cut) if cut else None
    size = _sides("size", written.get("size"), by_shorter=kind in _BY_SHORTER)
    framing, own = _resized(size, written, kind)
    if framing is None:
        return None
    return _flipped(framing, written), cut or own


def _flipped(framing: Framing, written: Mapping[str, Any]) -> Framing:
    given = framing.to_dict() | {"reversed": bool(written.get("do_flip_channel_order"))}
    return Framing(**given)


def _resized(size: Mapping[str, int], written: Mapping[str, Any], kind: str) -> tuple[Framing | None, int]:
    """The framing before the cut, and its side where it is square already."""
    filter_ = written.get("resample", BILINEAR)
    if type(filter_) is not int or filter_ not in FILTERS:
        raise PackageError(f"{PREPROCESSOR} gives {str(filter_)[:40]} as resample; Pillow's filters are {FILTERS}.")
    edge, longest = size.get("shortest_edge", 0), size.get("longest_edge", 0)
    if kind in ("ConvNext", "PoolFormer") and (share := written.get("crop_pct")) is not None:
        return _before_the_cut(edge or _square_of(size), _share(share), kind, filter_)
    if edge:
        edge = int(256 / 224 * edge) if kind == "Levit" else edge
        return Framing(shortest=_checked(edge), longest=longest, resample=filter_), 0
    if "height" in size and "width" in size:
        framing = Framing(width=size["width"], height=size["height"], resample=filter_)
        return framing, framing.width if framing.width == framing.height else 0
    return None, 0


def _before_the_cut(side: int, share: float, kind: str, filter_: int) -> tuple[Framing | None, int]:
    """Of processors that are told which share of the shorter side is left."""
    if not side:
        return None, 0
    if kind == "ConvNext" and side >= _WARPED:
        return Framing(width=side, height=side, resample=filter_), side
    return Framing(shortest=_checked(int(side / share)), resample=filter_), side if kind == "ConvNext" else 0


def _sides(name: str, given: Any, *, by_shorter: bool = False) -> dict[str, int]:
    """A size in any of the ways in which files give one, by the names of today's. Raises PackageError."""
    if given is None:
        return {}
    if isinstance(given, list) and len(given) == 2:
        given = {"height": given[0], "width": given[1]}
    elif not isinstance(given, dict):
        given = {"shortest_edge": given} if by_shorter else {"height": given, "width": given}
    known = {each: side for each, side in given.items() if side is not None}
    if not all(type(side) is int and 1 <= side <= LARGEST for side in known.values()):
        raise PackageError(
            f"{PREPROCESSOR} gives {str(given)[:60]} as {name}; whole numbers to {LARGEST} are possible."
        )
    return known


def _square_of(size: Mapping[str, int]) -> int:
    """The side of a square; 0 for what is none."""
    height, width = (size.get(name, size.get("shortest_edge", 0)) for name in ("height", "width"))
    return height if height == width else 0


def _share(given: Any) -> float:
    if not isinstance(given, int | float) or isinstance(given, bool) or not 0.1 <= given <= 1:
        raise PackageError(f"{PREPROCESSOR} gives {str(given)[:40]} as crop_pct; it must be from 0.1 to 1.")
    return float(given)


def _checked(edge: int) -> int:
    if edge > LARGEST:
        raise PackageError(f"{PREPROCESSOR} brings images to {edge} pixels; {LARGEST} are possible.")
    return edge
