"""What can be set about a training run: every setting with its meaning, limits and default. Torch-free.

A setting left at ``"auto"`` is chosen from the size of the data by `dlplatform.engine.defaults`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True)
class Field:
    """One setting, described for people and programs.

    ``type``: integer, number, boolean, choice, params, template (a chat template) or model (an architecture of the ``transformers`` library, see
    `dlplatform.engine.transformers_settings`). ``words``: values accepted besides those of the
    type (such as "auto"), a blank form field standing for the default. ``exclusive_minimum``: the minimum
    itself is refused.
    """

    name: str
    type: str
    default: Any
    help: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    words: tuple[Any, ...] = ()
    advanced: bool = False
    exclusive_minimum: bool = False


ARCHITECTURES: Final = ("auto", "tabm", "mlp", "linear")
CODE: Final = "code"  # the architecture of a run that brings its own; its params are for it to know
IMAGE_ENCODERS: Final = ("resnet", "convnext")
TRANSFORMERS: Final = "transformers"  # the image encoder of a run with `image_model`
TEXT_ENCODERS: Final = ("hashed", "transformer")
PRETRAINED: Final = "pretrained"  # that of the base which a run starts from; nothing that can be had without one
SEQUENTIAL: Final = ("transformer", PRETRAINED)  # those that read a text in order
AUGMENTATIONS: Final = ("none", "shift", "natural")

FIELDS: Final[tuple[Field, ...]] = (
    Field("architecture", "choice", "auto",
          "The network over all inputs: tabm (an efficient ensemble with numeric embeddings, the strongest on "
          "tables), mlp (a plain multilayer perceptron) or linear. auto: tabm for tables, mlp when images or "
          "long texts come with other columns, linear when they are alone.", choices=ARCHITECTURES, words=(CODE,)),
    Field("params", "params", {}, "Settings of the architecture itself.", advanced=True),
    Field("image_encoder", "choice", "auto",
          "The network that looks at images: a small ResNet or a ConvNeXt, or pretrained (a transformers model that the "
          "run starts from).",
          choices=("auto", *IMAGE_ENCODERS), words=(TRANSFORMERS, PRETRAINED)),
    Field("image_model", "model", None,
          "An architecture of the transformers library that looks at images, starting from nothing: its configuration "
          'as JSON, such as {"model_type": "vit", "hidden_size": 128, "patch_size": 4}.', words=(None,), advanced=True),
    Field("image_size", "integer", "auto", "Pixels of a side to which images are brought; auto: from the data.",
          8, 512, words=("auto",), advanced=True),
    Field("augmentation", "choice", "auto",
          "Changes of training images: shift (moved, turned and scaled a little; the default), natural (also "
          "mirrored and recoloured, for photographs) or none.", choices=("auto", *AUGMENTATIONS), advanced=True),
    Field("text_encoder", "choice", "auto",
          "How texts are read: hashed (words and letter groups, quick and strong on few rows) or transformer "
          "(in order, with a tokenizer fitted on the data) or pretrained (a transformers model that the run starts "
          "from, with its own tokenizer). auto: transformer when texts are the only input and there are 20,000 "
          "rows or more.", choices=("auto", *TEXT_ENCODERS), words=(PRETRAINED,)),
    Field("text_model", "model", None,
          "An architecture of the transformers library that reads texts in order or, as a language model, writes them, "
          'starting from nothing: its configuration as JSON, such as {"model_type": "bert", "hidden_size": 128}. The '
          "tokenizer is fitted on the data.", words=(None,), advanced=True),
    Field("text_length", "integer", "auto", "Tokens of a text that the transformer reads, at most.",
          4, 8192, words=("auto",), advanced=True),
    Field("tokenizer", "choice", "bpe", "Pieces of texts for the transformer: bpe (fitted on the data) or byte.",
          choices=("bpe", "byte"), advanced=True),
    Field("vocabulary", "integer", "auto", "Pieces that a fitted tokenizer knows, at most.", 300, 262_144,
          words=("auto",), advanced=True),
    Field("epochs", "integer", "auto", "Passes over the training rows, at most; early stopping ends sooner.",
          1, 10_000, words=("auto",)),
    Field("batch_size", "integer", "auto",
          "Rows in one optimisation step; auto: from the number of rows. fit: the largest that fits into memory "
          "and is still faster by the row, tried out at the start.", 1, 65_536, words=("auto", "fit")),
    Field("accumulation", "integer", 1, "Parts into which a batch is cut to save memory; the result is the same.",
          1, 1024, advanced=True),
    Field("learning_rate", "number", "auto", "Peak step size of the optimizer.", 0, 1, words=("auto",),
          exclusive_minimum=True),
    Field("weight_decay", "number", "auto", "Pull of the weights towards zero (AdamW).", 0, 10,
          words=("auto",), advanced=True),
    Field("schedule", "choice", "cosine", "How the learning rate changes over the run.",
          choices=("cosine", "linear", "constant", "one-cycle"), advanced=True),
    Field("warmup", "number", 0.05, "Share of the steps in which the learning rate rises from zero.", 0, 0.5,
          advanced=True),
    Field("seed", "integer", 0, "Start of all randomness; the same seed gives the same model.", 0, 2**31 - 1),
    Field("validation_fraction", "number", "auto",
          "Share of the rows held out to measure the model during training.", 0.01, 0.5, words=("auto",)),
    Field("folds", "integer", "auto",
          "1 holds out one validation part. More: the ensemble is divided into that many groups and each "
          "holds out a part of its own, so that small data is used whole.", 1, 16, words=("auto",),
          advanced=True),
    Field("early_stopping", "integer", "auto",
          "Stop after this many epochs without a better validation loss; false never stops.", 1, 10_000,
          words=("auto", False)),
    Field("ema", "number", "auto",
          "Weights averaged over the steps, with this decay; auto: over about a twentieth of the epochs. 0 takes "
          "the last weights.", 0, 0.99999, words=("auto",), advanced=True),
    Field("class_weights", "choice", "auto",
          "Weight of rare classes in the loss: balanced (inverse frequency), none, or auto (square root of "
          "the inverse frequency once the largest class is 4 times the smallest).",
          choices=("auto", "balanced", "none")),
    Field("label_smoothing", "number", "auto", "Share of each label spread over all classes.", 0, 0.5,
          words=("auto",), advanced=True),
    Field("max_grad_norm", "number", 0.0, "Clip the gradient to this norm; 0 does not clip.", 0, 1e6,
          advanced=True),
    Field("precision", "choice", "float32", "Arithmetic of the forward pass.",
          choices=("float32", "bfloat16"), advanced=True),
    Field("devices", "integer", "auto",
          "Accelerators to train on, or processes on a machine without any; auto takes one.", 1, 64,
          words=("auto",), advanced=True),
    Field("nodes", "integer", 1,
          "Machines that train together, each with so many devices; the run waits until they have free workers.", 1, 64,
          advanced=True),
    Field("strategy", "choice", "auto",
          "With several devices: ddp (each holds the model) or fsdp (each holds a part of it); auto: fsdp once a "
          "model with its optimizer would fill half of a device.", choices=("auto", "ddp", "fsdp"), advanced=True),
    Field("threads", "integer", 0, "CPU threads; 0 chooses from the cores that are free.", 0, 1024,
          advanced=True),
    Field("checkpoint_seconds", "number", 60.0, "Most seconds of work that a crash may cost.", 0.05, 3600,
          advanced=True),
    Field("stall_timeout", "number", 300.0, "Seconds without progress after which the run counts as hung.",
          10, 86_400, advanced=True),
    Field("log_interval", "integer", "auto", "Steps between two points of the training curve; auto: ten "
          "points an epoch on long epochs.", 1, 1_000_000, words=("auto",), advanced=True),
    Field("importance", "boolean", True, "Measure how much each column matters, by permutation.",
          advanced=True),
)  # fmt: skip

_WIDTH = Field("width", "integer", "auto", "Units of a hidden layer.", 1, 4096, words=("auto",))
_LAYERS = Field("layers", "integer", "auto", "Hidden layers.", 1, 16, words=("auto",))
_DROPOUT = Field("dropout", "number", "auto", "Share of units silenced in training.", 0, 0.9, words=("auto",))

PARAMS: Final[dict[str, tuple[Field, ...]]] = {
    "tabm": (
        Field("members", "integer", "auto", "Implicit networks in the ensemble.", 1, 256, words=("auto",)),
        _LAYERS,
        _WIDTH,
        _DROPOUT,
        Field("bins", "integer", "auto", "Pieces of the piecewise-linear encoding of a number.", 2, 128,
              words=("auto",)),
        Field("embedding_size", "integer", "auto", "Numbers that stand for one numeric column.", 1, 128,
              words=("auto",)),
    ),
    "mlp": (_LAYERS, _WIDTH, _DROPOUT),
    "linear": (),
}  # fmt: skip
PARAMS["auto"] = PARAMS["tabm"]

ENCODER_PARAMS: Final[tuple[Field, ...]] = (
    Field("image_width", "integer", "auto", "Channels of the first stage of the image encoder.", 4, 1024,
          words=("auto",)),
    Field("image_depth", "integer", "auto", "Blocks in each stage of the image encoder.", 1, 32, words=("auto",)),
    Field("text_width", "integer", "auto", "Numbers that stand for one token in the transformer.", 8, 4096,
          words=("auto",)),
    Field("text_layers", "integer", "auto", "Blocks of the transformer.", 1, 64, words=("auto",)),
    Field("text_heads", "integer", "auto", "Attention heads of a block; they divide the width.", 1, 64,
          words=("auto",)),
)  # fmt: skip
