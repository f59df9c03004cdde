"""Real vocabularies of each way to divide text, and texts that tokenizers trip over.

Byte-level BPE, SentencePiece, WordPiece, Unigram, and what differs between models of one way: pre-tokenizers,
normalizers, added tokens.
"""

from __future__ import annotations

import importlib.util
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from launch import checkpoint
from shell_router.tokenizer import HubTokenizer

FRAGMENTS = (
    *("Hello", " world", " don't", "I'll", "'", "'v", "e", "'re", "ll", "’s", "''", "aaaa", "zzzqx", "AB", "CamelCase"),
    *(" ", "  ", "   ", "\n", "\r\n", "\r", "\t", "\n\n", " \n ", "\u3000", "\u00a0", "\x1c", "\x85", "\u2028", "\x00"),
    *(
        "1",
        "12",
        "345",
        "2024",
        " 3.14",
        "१२",
        "²",
        "½",
        "ⅷ",
        "!",
        "!!",
        "?",
        "…",
        "-",
        "--",
        ".",
        ",",
        "_",
        "__init__",
    ),
    *("def f(x):\n", "    return x", "\t\tif", "()", "{}", ";\n", "//", "=", "|", "[", "]", ">", "\n/"),
    *("你好", "世界", "今天天气很好", "字", "。", "，", "が", "か\u3099", "ｶﾞ", "ｶ", "ﾞ", "カタカナ"),
    *("한글", "각", "\u1112", "\u1161", "\u11ab", "\u1112\u1161\u11ab", "ไทย", "สวัสดี", "क", "ि", "क्षि", "مرحبا"),
    *("é", "e\u0301", "\u0301", "\u0323", "\u0338", "\u00b4", "Straße", "İ", "ſ", "ﬁ", "ǅ", "ʰ", "𝕏"),
    *("😀", "👩‍👩‍👧", "👍🏽", "🇩🇪", "🇫", "\u200d", "\ufe0f", "\ufffd", "\u200b", "\U00040000", "\U00064041"),
    *("<", "<|", "<|im_end|>", "<|im_start|>", "<think>", "</think>", "<tool_", "im_", "<s>", "</s>", "<unk>"),
    *("[SEP]", "[MA", "SK]", "<|endoftext", "|>", "<|turn|>", "<|end|>", "<b>", "\n\n\n"),
)
ENDINGS = ("'ll", "'ve", "'re", "c", "world", "e\u0301", "!\n\n", "1234")
TEXTS = st.lists(st.one_of(st.sampled_from(FRAGMENTS + ENDINGS), st.text(max_size=6)), max_size=24).map("".join)
"""Hypothesis' own texts, and what tokenizers trip over."""

CAPITALS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""As GPT-4o and its kin have it: words end where capitals begin, contractions belong to words."""
THOUSANDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Digits in groups of three from the right, so that each digit that comes moves all groups."""
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|\w+| ?[^\s\w]+|\s+(?!\S)|\s+"


class Families:
    """Tokenizers by what is special about them. (No dataclass: Hypothesis would print them whole.)"""

    def __init__(self, hub: dict[str, HubTokenizer], backend: dict[str, Any]) -> None:
        self.hub = hub
        self.backend = backend


def package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def protobuf_fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field: an integer, a float, or bytes."""
    at = 0

    def varint() -> int:
        nonlocal at
        value, shift = 0, 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            yield number, varint()
        elif kind == 5:
            at += 4
            yield number, struct.unpack("<f", data[at - 4 : at])[0]
        else:
            assert kind == 2
            length = varint()
            at += length
            yield number, data[at - length : at]


def sentencepiece_scores() -> dict[str, float]:
    """The vocabulary of Mistral's first models, in the order of ids.

    Read by hand: the package sentencepiece brings its own protobuf, which may crash beside that of others.
    """
    model = (package_folder("mistral_common") / "data" / "tokenizer.model.v1").read_bytes()
    pieces = (dict(protobuf_fields(value)) for number, value in protobuf_fields(model) if number == 1)
    return {piece[1].decode(): piece[2] for piece in pieces}


def trained_on(seed: int) -> Iterator[str]:
    """Texts of what tests are made of: a vocabulary trained on them has pieces that reach as far as they may."""
    chosen = random.Random(seed)
    yield "".join(chosen.choice(FRAGMENTS) for _ in range(40))
    yield " ".join(str(chosen.randrange(10 ** chosen.randrange(1, 10))) for _ in range(8))
    yield " ".join(chosen.choice(("x", "AB", "字", "don", "字字字AB")) + chosen.choice(ENDINGS) for _ in range(12))


def backends() -> Iterator[tuple[str, Any]]:
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import LlamaTokenizerFast
    from transformers.convert_slow_tokenizer import generate_merges

    def builtin(name: str) -> Any:
        return Tokenizer.from_file(str(Path(checkpoint.resolve(f"builtin:{name}")) / "tokenizer.json"))

    def like(base: Any, normalizer: Any, pre_tokenizer: Any) -> Any:
        made = Tokenizer.from_str(base.to_str())
        made.normalizer = normalizer
        made.pre_tokenizer = pre_tokenizer
        return made

    def split(pattern: str) -> Any:
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level])

    smollm2 = builtin("tiny-llama")
    yield "smollm2", smollm2
    yield "qwen", builtin("tiny-qwen")
    yield "wordpiece", builtin("all-minilm-l6-v2")
    scores = sentencepiece_scores()
    vocab = {piece: token for token, piece in enumerate(scores)}
    mistral = LlamaTokenizerFast(vocab=vocab, merges=generate_merges(vocab, scores)).backend_tokenizer
    yield "mistral", mistral
    prepend = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    yield "llama", like(mistral, prepend, None)
    unigram = Tokenizer(models.Unigram(list(scores.items()), 0, False))
    unigram = like(unigram, normalizers.NFKC(), pre_tokenizers.Metaspace(split=True))
    # Its vocabulary has them with the best score of all.
    unigram.add_special_tokens(["<unk>", "<s>", "</s>"])
    yield "unigram", unigram
    corpus = [text for seed in range(200) for text in trained_on(seed)]
    for name, normalizer, pre_tokenizer in (
        ("capitals", normalizers.NFC(), split(CAPITALS)),
        ("thousands", normalizers.NFD(), split(THOUSANDS)),
        ("words", normalizers.NFKC(), split(WORDS)),
    ):
        trained = like(Tokenizer(models.BPE()), normalizer, pre_tokenizer)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        train: Any = trainers.BpeTrainer
        trainer = train(vocab_size=2000, show_progress=False, initial_alphabet=alphabet)
        trained.train_from_iterator(corpus, trainer)
        trained.add_tokens(["<think>", "</think>"])
        yield name, trained
    added = like(smollm2, normalizers.NFC(), pre_tokenizers.ByteLevel(add_prefix_space=False))
    # As Gemma has white space and HTML, DeepSeek its turns, Phi its rights.
    added.add_tokens(
        [AddedToken(token, normalized=False) for token in ("\n\n", "\n\n\n", "  ", "<b>", "<tool_", "Hello")]
    )
    added.add_tokens([AddedToken("<|turn|>", normalized=True), AddedToken("<|end|>", lstrip=True, rstrip=True)])
    yield "added", added
    yield "prefix space", like(smollm2, normalizers.NFKC(), pre_tokenizers.ByteLevel(add_prefix_space=True))


NAMES = (
    *("smollm2", "qwen", "wordpiece", "mistral", "llama", "unigram", "capitals", "thousands", "words"),
    *("added", "prefix space"),
)


def hub_tokenizer(backend: Any, place: Path) -> HubTokenizer:
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(tokenizer_object=backend, chat_template="{{ messages[0]['content'] }}")
    fast.save_pretrained(place)
    return HubTokenizer(str(place))


def make_families(place: Path) -> Families:
    """All of them, written to folders in `place`. Wants `graft_home`."""
    backend = dict(backends())
    assert tuple(backend) == NAMES
    hub = {name: hub_tokenizer(made, place / name) for name, made in backend.items()}
    return Families(hub, backend)
