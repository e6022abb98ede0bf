"""Hugging Face directories with tiny random models, made on the spot."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
from tokenizers import models, pre_tokenizers, processors

WORDS = ("good", "bad", "item", "is", "the", "a", "not", "very", *map(str, range(50)))
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def write_tokenizer(folder: Path) -> int:
    """A word-level tokenizer with BERT's special tokens; how many tokens it knows."""
    vocabulary = {word: place for place, word in enumerate((*SPECIAL, *WORDS))}
    inner = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    )
    inner.enable_padding(length=32)
    inner.save(str(folder / "tokenizer.json"))
    return len(vocabulary)


def tiny_bert(folder: Path, **settings: object) -> Path:
    """What ``save_pretrained`` writes of a BERT with 16 numbers a token and two layers."""
    import torch
    from transformers import BertConfig, BertModel

    folder.mkdir(parents=True)
    size = write_tokenizer(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertModel(BertConfig(vocab_size=size, max_position_embeddings=64, **{**TINY, **settings}))
    model.save_pretrained(folder)
    return folder


def tiny_gpt(folder: Path, marked: bool = False) -> Path:
    """What ``save_pretrained`` writes of a GPT-2 with two layers; ``marked``: its tokenizer knows ChatML."""
    import torch
    from tokenizers import decoders, trainers
    from transformers import GPT2Config, GPT2LMHeadModel

    folder.mkdir(parents=True)
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", *(["<|im_start|>", "<|im_end|>"] if marked else [])]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner.train_from_iterator(
        WORDS,
        trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    inner.save(str(folder / "tokenizer.json"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        size = inner.get_vocab_size()
        config = GPT2Config(
            vocab_size=size, n_embd=16, n_layer=2, n_head=2, n_positions=66, bos_token_id=0, eos_token_id=0
        )
        model = GPT2LMHeadModel(config)
    model.save_pretrained(folder)
    return folder


IMAGES = {
    "vit": {**TINY, "image_size": 16, "patch_size": 4},
    "deit": {**TINY, "image_size": 16, "patch_size": 4},
    "beit": {**TINY, "image_size": 16, "patch_size": 4},
    "swin": {
        "image_size": 16,
        "patch_size": 2,
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "window_size": 4,
    },
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 2, "image_size": 16},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    "regnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "groups_width": 8},
}
PROCESSOR = {
    "crop_size": {"height": 16, "width": 16}, "do_normalize": True, "do_rescale": True, "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.4], "rescale_factor": 1 / 255, "size": {"shortest_edge": 20},
}  # fmt: skip


def tiny_images(folder: Path, kind: str = "resnet") -> Path:
    """What ``save_pretrained`` writes of a classifier of images of 16 pixels a side, and of its image processor."""
    import torch
    from transformers import AutoConfig, AutoModelForImageClassification

    folder.mkdir(parents=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        named = {"architectures": ["DeiTForImageClassification"]} if kind == "deit" else {}  # it has two of them
        settings = AutoConfig.for_model(kind, num_labels=3, **named, **IMAGES[kind])
        model = AutoModelForImageClassification.from_config(settings)
        with torch.no_grad():
            for _ in range(3):  # statistics of batches that are not those of a new network
                model.train()(pixel_values=torch.randn(8, 3, 16, 16) * 2 + 1)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder
