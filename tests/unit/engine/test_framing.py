"""Images as the processors of pretrained models make them, to the pixel: beside those of the transformers library."""

from __future__ import annotations

import io
import json
import math
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dlplatform.engine import framing as framing_module
from dlplatform.engine.errors import PackageError
from dlplatform.engine.framing import Framing, framed, framing_of
from dlplatform.engine.image_arrays import image_array
from dlplatform.engine.images import decode, upright
from dlplatform.engine.transformers_pixels import ImageProcessor, read_image_processor

MEANS = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
SQUARE, SHORTEST = {"height": 24, "width": 24}, {"shortest_edge": 32}
CROP = {"do_center_crop": True, "crop_size": SQUARE}
EFFICIENT = {"image_processor_type": "EfficientNetImageProcessor", "size": SQUARE, "resample": 0, **MEANS}
# name: (config.json, preprocessor_config.json)
DIRECTORIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "vit": ({"model_type": "vit"}, {"image_processor_type": "ViTImageProcessor", "size": SQUARE, "resample": 2, **MEANS}),
    "vit of old": ({"model_type": "vit"}, {"feature_extractor_type": "ViTFeatureExtractor", "size": 24}),
    "vit by the fast one": ({"model_type": "vit"}, {"image_processor_type": "ViTImageProcessorFast", "size": SQUARE}),
    "swin without a name": ({"model_type": "swin"}, {"size": 24, "resample": 3}),
    "convnext": (
        {"model_type": "convnext"},
        {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 24}, "crop_pct": 0.875, "resample": 3},
    ),
    "convnext that warps": ({"model_type": "convnext"}, {"size": {"shortest_edge": 384}, "resample": 3}),
    "resnet of old": (
        {"model_type": "resnet"}, {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 28, "crop_pct": 0.8, **MEANS},
    ),
    "dinov2": (
        {"model_type": "dinov2"},
        {"image_processor_type": "BitImageProcessor", "size": SHORTEST, "resample": 3, **CROP, **MEANS},
    ),
    "deit": ({"model_type": "deit"}, {"image_processor_type": "DeiTImageProcessor", "size": {"height": 30, "width": 30}, **CROP}),
    "beit": ({"model_type": "beit"}, {"image_processor_type": "BeitImageProcessor", "size": SQUARE}),
    "levit": ({"model_type": "levit"}, {"image_processor_type": "LevitImageProcessor", "size": {"shortest_edge": 24}, **CROP}),
    "poolformer": (
        {"model_type": "poolformer"},
        {"image_processor_type": "PoolFormerImageProcessor", "size": {"shortest_edge": 24}, "crop_pct": 0.9, **CROP},
    ),
    "efficientnet": (
        {"model_type": "efficientnet"},
        {**EFFICIENT, "include_top": True},
    ),
    "efficientnet that takes 1 away": (
        {"model_type": "efficientnet"}, {**EFFICIENT, "rescale_factor": 1 / 127.5, "rescale_offset": True, "include_top": False},
    ),
    "efficientnet that does not normalise": ({"model_type": "efficientnet"}, {**EFFICIENT, "do_normalize": False}),
    "efficientnet that does not rescale": (
        {"model_type": "efficientnet"}, {**EFFICIENT, "do_rescale": False, "rescale_factor": 0, "rescale_offset": True},
    ),
    "mobilenet": ({"model_type": "mobilenet_v2"}, {"image_processor_type": "MobileNetV2ImageProcessor", "size": SHORTEST, **CROP}),
    "mobilevit": ({"model_type": "mobilevit"}, {"image_processor_type": "MobileViTImageProcessor", "size": SHORTEST, **CROP}),
    "both edges": (
        {"model_type": "dinov2"},
        {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 30, "longest_edge": 40}, **CROP},
    ),
    "a cut larger than the image": (
        {"model_type": "dinov2"}, {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 13}, **CROP},
    ),
    "only a cut": ({"model_type": "dinov2"}, {"image_processor_type": "BitImageProcessor", "do_resize": False, **CROP}),
    "other numbers": (
        {"model_type": "vit"},
        {"image_processor_type": "ViTImageProcessor", "size": 24, "rescale_factor": 1 / 127.5, "resample": 1, **MEANS},
    ),
    "not normalised": ({"model_type": "vit"}, {"image_processor_type": "ViTImageProcessor", "size": 24, "do_normalize": False}),
}  # fmt: skip


def noise(height: int, width: int, channels: int = 3) -> Image.Image:
    pixels = np.random.default_rng(height * width).integers(0, 256, (height, width, channels)).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def stored(image: Image.Image, kind: str = "PNG", **more: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **more)
    return file.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return stored(noise(40, 90), "JPEG", exif=exif)


FILES = {
    "landscape": stored(noise(61, 97)), "portrait": stored(noise(120, 45)), "square": stored(noise(50, 50)),
    "smaller than the cut": stored(noise(11, 18)), "a line": stored(noise(2, 200)), "grey": stored(noise(70, 44, 1)),
    "see-through": stored(noise(33, 64, 4)), "turned by its EXIF": turned(),
}  # fmt: skip


def directory(folder: Path, config: dict[str, Any], processor: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def normalised(content: bytes, ours: ImageProcessor) -> np.ndarray[Any, Any]:
    pixels = image_array(upright(content), ours.channels, ours.side, ours.framing).astype(np.float32)
    mean, deviation = (np.float32(each)[:, None, None] for each in (ours.mean, ours.deviation))
    return (pixels - mean) / deviation


@pytest.mark.parametrize("name", DIRECTORIES)
def test_pixels_are_those_of_the_librarys_own_processor(tmp_path: Path, name: str) -> None:
    from transformers import AutoImageProcessor

    config, processor = DIRECTORIES[name]
    theirs = AutoImageProcessor.from_pretrained(directory(tmp_path, config, processor), backend="pil")
    ours = read_image_processor(tmp_path, config)
    assert ours.framing is not None
    for told, content in FILES.items():
        if name == "both edges" and told == "a line":
            continue  # of which the library leaves a height of 0
        made = theirs(decode(content), return_tensors="np")["pixel_values"][0]
        assert made.shape == (3, ours.side, ours.side), told
        assert np.allclose(normalised(content, ours), made, atol=2e-5), told


def test_a_letterbox_is_not_what_a_processor_makes(tmp_path: Path) -> None:
    """Or the test before could not fail."""
    config, processor = DIRECTORIES["dinov2"]
    before = read_image_processor(directory(tmp_path, config, processor), config, letterbox=True)
    now = read_image_processor(tmp_path, config)
    assert (before.framing, before.side, now.side) == (None, 24, 24) and before.mean == now.mean
    assert not np.allclose(normalised(FILES["landscape"], before), normalised(FILES["landscape"], now), atol=0.5)


def test_a_model_of_one_size_keeps_it_and_others_look_at_what_the_processor_makes(tmp_path: Path) -> None:
    _, processor = DIRECTORIES["dinov2"]
    directory(tmp_path, {}, processor)
    fixed = read_image_processor(tmp_path, {"model_type": "vit", "image_size": 48})
    assert (fixed.side, fixed.framing) == (48, Framing(shortest=64, resample=3))
    larger = read_image_processor(tmp_path, {"model_type": "dinov2", "image_size": 518})
    assert (larger.side, larger.framing) == (24, Framing(shortest=32, resample=3))
    assert larger.framing_for(12) == Framing(shortest=16, resample=3)
    stages = read_image_processor(tmp_path, {"model_type": "swin", "depths": [1], "image_size": 48})
    assert stages.side == 24


def test_what_gives_no_square_is_cut_to_the_side_of_the_network(tmp_path: Path) -> None:
    directory(
        tmp_path,
        {},
        {"image_processor_type": "CLIPImageProcessor", "do_center_crop": False, "size": {"shortest_edge": 24}},
    )
    found = read_image_processor(tmp_path, {"image_size": 24, "model_type": "vit"})
    assert (found.side, found.framing) == (24, Framing(shortest=24, resample=3))


@pytest.mark.parametrize("processor", [{}, {"do_resize": False, "size": 24}, {"size": {"longest_edge": 24}}])
def test_what_says_too_little_is_letterboxed(tmp_path: Path, processor: dict[str, Any]) -> None:
    directory(tmp_path, {}, processor)
    found = read_image_processor(tmp_path, {"image_size": 24} if not processor else {})
    assert (found.side, found.framing) == (24, None)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"resample": 9}, "resample"), ({"resample": "bicubic"}, "resample"), ({"crop_pct": 0}, "crop_pct"),
        ({"crop_pct": True}, "crop_pct"), ({"size": {"shortest_edge": 9999}}, "9999"), ({"size": {"height": "a", "width": 2}}, "size"),
        ({"size": 4000, "crop_pct": 0.9}, "4000 pixels"), ({"do_center_crop": True, "crop_size": -4}, "crop_size"),
    ],
)  # fmt: skip
def test_framings_that_are_refused(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    directory(tmp_path, {}, {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 24}, **change})
    with pytest.raises(PackageError, match=told):
        read_image_processor(tmp_path, {})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"rescale_factor": "x"}, "preprocessor_config.json gives x as rescale_factor; it must be a number above 0"),
        ({"rescale_factor": 0, "rescale_offset": True}, "gives 0 as rescale_factor"),
        ({"do_normalize": False, "image_std": [0, 1, 1]}, "image_std"),
        ({"do_normalize": False, "image_std": "wide"}, "image_std"),
    ],
)
def test_an_efficientnets_numbers_are_checked(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    directory(tmp_path, {}, {**EFFICIENT, **change})
    with pytest.raises(PackageError, match=told):
        read_image_processor(tmp_path, {})
    if "rescale_factor" in change:  # which nobody asks for where nothing is rescaled
        directory(tmp_path, {}, {**EFFICIENT, **change, "do_rescale": False})
        assert read_image_processor(tmp_path, {}).mean == (0.5, 0.4, 0.3)


def test_one_channel_takes_the_mean_of_what_a_class_takes_for_granted(tmp_path: Path) -> None:
    directory(tmp_path, {}, {"image_processor_type": "PvtImageProcessor", "size": 24})
    grey = read_image_processor(tmp_path, {"num_channels": 1})
    assert grey.mean == pytest.approx((0.449 * 255,), rel=1e-3)
    assert image_array(upright(FILES["landscape"]), 1, grey.side, grey.framing).shape == (1, 24, 24)


def test_a_long_image_is_cut_before_it_would_fill_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    image, wanted = noise(20, 700), Framing(shortest=64, resample=3)
    whole = framed(image, 3, 48, wanted).astype(int)
    monkeypatch.setattr(framing_module, "WHOLE_PIXELS", 1000)
    cut = framed(image, 3, 48, wanted).astype(int)
    assert np.abs(whole - cut).max() <= 1 and np.ptp(whole) > 100
    monkeypatch.undo()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert framed(Image.new("RGB", (30_000, 1), "red"), 3, 224, Framing(shortest=256))[0].min() == 255
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 18  # KB; the whole of it is 6 GB


LARGE = [
    Framing(shortest=4096, resample=3), Framing(width=4096, height=4096), Framing(width=4096, height=3000, resample=1),
    Framing(shortest=4000, longest=4096, resample=5), Framing(shortest=3001, resample=4),
]  # fmt: skip


@pytest.mark.parametrize("wanted", LARGE, ids=str)
@pytest.mark.parametrize("size", [(1, 1), (20, 90), (7, 3), (1, 900), (300, 11)], ids=str)
def test_a_small_image_costs_no_large_one(
    monkeypatch: pytest.MonkeyPatch, wanted: Framing, size: tuple[int, int]
) -> None:
    """Whatever a file asks for, no more is made than what a model looks at, or little of all; and the pixels are the same."""
    # Of middling values: what a sharp filter makes of black beside white depends on which axis Pillow takes first.
    image, resize, made = noise(*size).point(lambda value: 64 + value // 2), Image.Image.resize, list[int]()
    all_of_it = math.prod(wanted.size_of(image.size))

    def counted(one: Image.Image, size: tuple[int, int], *more: Any, **named: Any) -> Image.Image:
        made.append(size[0] * size[1])
        return resize(one, size, *more, **named)

    monkeypatch.setattr(Image.Image, "resize", counted)
    cut = framed(image, 3, 224, wanted).astype(int)
    assert max(made) <= (all_of_it if all_of_it <= 2 << 20 else 224 * 224)
    if all_of_it <= 20 << 20:
        monkeypatch.setattr(framing_module, "WHOLE_PIXELS", 20 << 20)
        difference = np.abs(framed(image, 3, 224, wanted).astype(int) - cut)
        # A step of 255 more or less in the first of two passes can be two in the end.
        assert made[-1] == all_of_it and difference.max() <= 2


def test_a_large_image_is_resized_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the library's processor does it, to the pixel: it costs no more than the image itself."""
    image, wanted = noise(60, 80), Framing(shortest=50, resample=3)
    exact = framed(image, 3, 24, wanted)
    monkeypatch.setattr(framing_module, "WHOLE_PIXELS", 10)
    monkeypatch.setattr(framing_module, "_cut_first", None)
    assert (framed(image, 3, 24, wanted) == exact).all()


def test_a_framing_is_read_back_and_no_other(tmp_path: Path) -> None:
    for one in (Framing(), Framing(width=3, height=4, resample=0), Framing(shortest=7, longest=9, reversed=True)):
        assert framing_of(json.loads(json.dumps(one.to_dict()))) == one
    assert framing_of(None) is None
    for wrong in ([], {"odd": 1}, {"width": -1}, {"width": 5000}, {"shortest": 1.5}, {"resample": 9}, {"resample": True},
                  {"reversed": 1}, {"width": True}, "letterbox"):  # fmt: skip
        with pytest.raises(ValueError, match="framing"):
            framing_of(wrong)
