"""The door of a worker: what one generate request may ask for before it goes to the schedulers.

SGLang checks a request in several places and trusts it in others: an id outside the vocabulary, a number that no tensor
can hold or a type that its messages cannot carry ends a scheduler, and the worker with it. Here each field that reaches
a scheduler has a type and bounds. Other errors, such as a prompt that is too long, are left to SGLang's own words.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from sglang_ext.protocol import DRAFTS_PARAM, drafts_in

COMMIT_MARK = "incremental-prefill"
"""`session_params.rid` of a generate request that commits a session of ours (`id` the session, `offset` the number)."""
REST_MARK = f"{COMMIT_MARK}-rest"
"""The same, where the decode worker computes what is left."""
MAX_COPIES = 128
"""Of one prompt in one request (`n`), as in OpenAI's API."""
MAX_REQUESTS = 4096
"""In one HTTP request: prompts times copies."""
_MAX_BIAS = 1e6

_Int32 = Annotated[int, Meta(ge=-1, le=2**31 - 1)]
_Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
_Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
_Port = Annotated[int, Meta(ge=1, le=65535)]
_Room = Annotated[int, Meta(ge=0, le=2**63 - 1 - MAX_REQUESTS)]
_Id = Annotated[str, Meta(min_length=1, max_length=256)]
_Host = Annotated[str, Meta(max_length=255, pattern=r"^[A-Za-z0-9._:\[\]-]*\Z")]
_Stop = Annotated[str, Meta(min_length=1, max_length=4096)]
_Grammar = Annotated[str, Meta(max_length=2**17)]
_Scalar: TypeAlias = bool | _Int64 | float | str | None
_Top = Annotated[int, Meta(ge=0, le=1000)]

T = TypeVar("T")


class BadField(ValueError):
    """A field of a request that cannot be served; SGLang answers a `ValueError` with 400 and its text."""


class Sampling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`sampling_params`. Where SGLang has its own check of a range, the bounds here are those of the machine."""

    max_new_tokens: _Count | None = None
    min_new_tokens: _Count | None = None
    stop: _Stop | Annotated[list[_Stop], Meta(max_length=32)] | None = None
    stop_token_ids: Annotated[list[_Int64 | None], Meta(max_length=1024)] | None = None
    stop_regex: _Stop | Annotated[list[_Stop], Meta(max_length=32)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=1e6)] | None = None
    """Bounded: a forbidden token's minus infinity divided by infinity is no number."""
    top_p: float | None = None
    top_k: _Int32 | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: Annotated[float, Meta(ge=1e-6)] | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_COPIES)] = 1
    beam_width: Annotated[int, Meta(ge=1, le=1024)] | None = None
    json_schema: _Grammar | None = None
    regex: _Grammar | None = None
    ebnf: _Grammar | None = None
    structural_tag: _Grammar | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    no_stop_trim: bool | None = None
    stream_interval: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    logit_bias: dict[str, float] | None = None
    sampling_seed: _Int64 | None = None
    custom_params: dict[str, _Scalar | list[_Scalar] | dict[str, _Scalar]] | None = None
    watermark: dict[str, Any] | None = None
    ebnf_full_assistant: bool = False


class SessionOf(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`session_params`: SGLang's own sessions, and how a commit of ours names its session."""

    id: str | None = None
    rid: str | None = None
    offset: _Count | None = None
    replace: bool | None = None
    drop_previous_output: bool | None = None


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A generate request as SGLang's HTTP process has it, a list where it is several requests in one.

    Token ids are checked apart, and what only the HTTP process uses is not looked at.
    """

    rid: _Id | list[_Id] | None = None
    session_id: str | None = None
    text: str | list[str] | None = None
    sampling_params: Sampling | list[Sampling] | None = None
    return_logprob: bool | list[bool] | None = None
    logprob_start_len: _Int32 | list[_Int32] | None = None
    top_logprobs_num: _Top | list[_Top] | None = None
    session_params: SessionOf | None = None
    bootstrap_host: _Host | list[_Host | None] | None = None
    bootstrap_port: _Port | list[_Port | None] | None = None
    bootstrap_room: _Room | list[_Room | None] | None = None
    routed_dp_rank: _Count | None = None
    disagg_prefill_dp_rank: _Count | None = None
    routed_experts_start_len: _Count = 0
    priority: _Int64 | None = None
    received_time: float | None = None
    custom_labels: dict[str, Annotated[str, Meta(max_length=256)]] | None = None


_LOOKED_AT = Asked.__struct_fields__
_NO_TRANSFER = "2.2.2.2"
"""SGLang's name for a host to or from which nothing is sent, as in its own health checks."""
_HEALTH_CHECK = "HEALTH_CHECK"
"""So begin ids of SGLang's own checks of its health. A busy scheduler drops what comes in their name, aborts too."""
INTERNAL = ("http_worker_ipc", "need_wait_for_mm_inputs", "num_items_assigned", "encoder_urls", "lora_id")
"""What SGLang's processes tell each other: nobody outside may."""
_BATCHED = (
    "bootstrap_host", "bootstrap_port", "bootstrap_room", "bootstrap_pair_key", "decode_tp_size", "return_logprob",
    "logprob_start_len", "top_logprobs_num", "return_sampling_mask", "return_hidden_states", "sampling_logprobs_mode",
    "sampling_params", "rid", "lora_path", "custom_logit_processor",
)  # fmt: skip
"""Lists of which SGLang takes one entry for each prompt without asking whether there is one."""


class Rooms:
    """The rooms of KV transfers that were taken on one worker, the last of them.

    SGLang tells transfers apart by their rooms alone: a second request in a room meets the state of the first, and the
    scheduler ends of it.
    """

    def __init__(self, remembered: int = 2**17) -> None:
        self._remembered = remembered
        self._owners: OrderedDict[int, str | None] = OrderedDict()

    def take(self, rooms: Iterable[int], owner: str | None = None) -> None:
        """Raise `BadField` for one that is or was another's; a session, the `owner`, may come again."""
        for room in rooms:
            if room in self._owners and (owner is None or self._owners[room] != owner):
                raise BadField(f"bootstrap_room: {room} is or was in use")
            self._owners[room] = owner
            if len(self._owners) > self._remembered:
                self._owners.popitem(last=False)


@dataclass(frozen=True)
class Door:
    """What the requests of one worker are held to."""

    vocabulary: int
    hidden_size: int
    pair: bool
    """Prefill and decode are apart. SGLang sends all copies of `n`, and one more, through one room then, and decode's
    scheduler ends of it.
    """
    labels: frozenset[str] = frozenset()
    """Of its metrics, which a request may name. SGLang ends of another."""
    rooms: Rooms = field(default_factory=Rooms)

    def admit(self, request: object) -> None:
        """`check` a request that is about to be served, and take its rooms."""
        self.check(request)
        room = getattr(request, "bootstrap_room", None)
        if room is None or _commits(request):
            # SGLang refuses it, or the session has a room.
            return
        if getattr(request, "bootstrap_host", None) == _NO_TRANSFER:
            return
        if not isinstance(room, list):
            prompts, _ = self._prompts(request)
            room = range(room, room + len(prompts))
        self.rooms.take([one for one in room if one is not None])

    def check(self, request: object) -> None:
        """Raise `BadField` naming the field of `request`, SGLang's object of a generate request, that is wrong."""
        fields = {name: value for name in _LOOKED_AT if (value := getattr(request, name, None)) is not None}
        try:
            asked = msgspec.convert(fields, Asked)
        except msgspec.ValidationError as error:
            raise BadField(_named(error)) from error
        except RecursionError as error:
            raise BadField("the request is nested too deeply") from error
        for name in INTERNAL:
            if getattr(request, name, None) is not None:
                raise BadField(f"{name} is internal to SGLang and cannot be set")
        if isinstance(getattr(request, "positional_embed_overrides", None), dict | list | str | int | float):
            raise BadField("positional_embed_overrides cannot be given over HTTP")
        prompts, batch = self._prompts(request)
        _check_sizes(request, asked, len(prompts), batch)
        for name in ("multi_item_delimiter_indices", "token_indices_to_pool"):
            _check_positions(name, getattr(request, name, None), prompts, batch)
        wanted = getattr(request, "token_ids_logprob", None)
        self._check_ids("token_ids_logprob", wanted)
        if isinstance(wanted, list) and any(isinstance(one, list) or one is None for one in wanted):
            _check_length("token_ids_logprob", wanted, len(prompts), batch)
        for path, sampling in _each("sampling_params", asked.sampling_params):
            self._check_sampling(path, sampling)
        if strange := [name for name in asked.custom_labels or () if name not in self.labels]:
            raise BadField(f"custom_labels: {strange[0]!r} is no label that this worker allows")
        checks = [path for path, rid in _each("rid", asked.rid) if rid.startswith(_HEALTH_CHECK)]
        if self.pair and checks and asked.bootstrap_host != _NO_TRANSFER:
            raise BadField(f"{checks[0]}: {_HEALTH_CHECK} is how SGLang's own checks of its health begin")
        if self.pair and asked.bootstrap_room is not None and not _commits(request):
            hosts = asked.bootstrap_host if isinstance(asked.bootstrap_host, list) else [asked.bootstrap_host]
            if None in hosts:
                # Decode's scheduler takes it for a text.
                raise BadField("bootstrap_host: a request with a bootstrap_room says where it is prefilled")

    def _prompts(self, request: object) -> tuple[list[Any], bool]:
        """The prompts, each text, ids or embeddings, and whether they came as a list. Ids are checked."""
        text, ids = getattr(request, "text", None), getattr(request, "input_ids", None)
        embeddings: Any = getattr(request, "input_embeds", None)
        # SGLang lets one of them win, not the same one everywhere.
        if sum(given is not None for given in (text, ids, embeddings)) > 1:
            raise BadField("text, input_ids and input_embeds exclude each other")
        if text is not None:
            _utf8("text", text)
            return ([text], False) if isinstance(text, str) else (list(text), True)
        if ids is None:
            self._check_embeddings(embeddings)
            batch = isinstance(embeddings, list) and bool(embeddings) and isinstance(embeddings[0][0], list)
            return (list(embeddings), True) if batch else ([embeddings or []], False)
        self._check_ids("input_ids", ids)
        if not ids or isinstance(ids[0], int):
            return [ids], False
        if (empty := next((at for at, one in enumerate(ids) if not one), None)) is not None:
            raise BadField(f"input_ids[{empty}] is empty")
        return list(ids), True

    def _check_ids(self, path: str, ids: Any) -> None:
        """`ids` is an id, ids, or ids of several requests."""
        token: Any = Annotated[int, Meta(ge=0, le=self.vocabulary - 1)]
        if isinstance(ids, list) and any(isinstance(one, list) for one in ids[:2]):
            kind: Any = list[list[token] | None]
        else:
            kind = list[token] if isinstance(ids, list) else token | None
        try:
            msgspec.convert(ids, kind)
        except msgspec.ValidationError as error:
            words, _, place = str(error).partition(" - at `$")
            raise BadField(
                f"{path}{place.rstrip('`')}: {words}: the vocabulary has {self.vocabulary} tokens"
            ) from error

    def _check_embeddings(self, embeddings: Any) -> None:
        if embeddings is None:
            return
        rows = embeddings if isinstance(embeddings, list) and embeddings else None
        if rows and isinstance(rows[0], list) and rows[0] and isinstance(rows[0][0], list):
            for one in rows:
                self._check_embeddings(one)
            return
        if rows is None or any(
            not isinstance(row, list)
            or len(row) != self.hidden_size
            or not all(isinstance(value, float) and math.isfinite(value) for value in row)
            for row in rows
        ):
            raise BadField(f"input_embeds: expected rows of {self.hidden_size} finite numbers")

    def _check_sampling(self, path: str, sampling: Sampling) -> None:
        if self.pair and sampling.n > 1:
            raise BadField(f"{path}.n: a pair of workers answers each request once")
        self._check_ids(f"{path}.stop_token_ids", [t for t in sampling.stop_token_ids or () if t is not None])
        for key, bias in (sampling.logit_bias or {}).items():
            if not re.fullmatch(r"[0-9]{1,10}", key) or int(key) >= self.vocabulary:
                raise BadField(f"{path}.logit_bias: {key!r} is no token id of the vocabulary of {self.vocabulary}")
            if not abs(bias) <= _MAX_BIAS:
                raise BadField(f"{path}.logit_bias[{key!r}]: {bias} is not within {_MAX_BIAS:g} of 0")
        drafts = f"{path}.custom_params"
        try:
            said = drafts_in(sampling.custom_params)
        except (msgspec.DecodeError, RecursionError) as error:
            raise BadField(f"{drafts}.{_named(error, DRAFTS_PARAM)}") from error
        self._check_ids(f"{drafts}.{DRAFTS_PARAM}.predicted", [] if said is None else list(said.predicted))
        for name in ("stop", "json_schema", "regex", "ebnf", "structural_tag"):
            if (value := getattr(sampling, name)) is not None:
                _utf8(f"{path}.{name}", value)
        for pattern in [sampling.stop_regex] if isinstance(sampling.stop_regex, str) else sampling.stop_regex or ():
            _check_pattern(f"{path}.stop_regex", pattern)


def _commits(request: object) -> bool:
    """Whether `request` commits a session of ours, which knows its room and its prefill worker."""
    session = getattr(request, "session_params", None) or {}
    return session.get("rid") in (COMMIT_MARK, REST_MARK)


def _each(path: str, one_or_more: T | list[T] | None) -> Iterable[tuple[str, T]]:
    """Each value with its path."""
    if isinstance(one_or_more, list):
        return [(f"{path}[{at}]", one) for at, one in enumerate(one_or_more)]
    return [] if one_or_more is None else [(path, one_or_more)]


def _check_sizes(request: object, asked: Asked, prompts: int, batch: bool) -> None:
    if not prompts:
        raise BadField("text is an empty list")
    copies = max((sampling.n for _, sampling in _each("", asked.sampling_params)), default=1)
    for name in _BATCHED:
        value = getattr(request, name, None)
        if isinstance(value, list):
            _check_length(name, value, prompts, batch or copies > 1)
    if prompts * copies > MAX_REQUESTS:
        raise BadField(f"{prompts} prompts, {copies} times each: one request may have {MAX_REQUESTS} in all")


def _check_length(name: str, values: list[Any], prompts: int, batch: bool) -> None:
    if not batch or len(values) != prompts:
        raise BadField(f"{name} is a list of {len(values)} for {prompts if batch else 'one'} prompt(s)")


def _check_positions(name: str, positions: Any, prompts: list[Any], batch: bool) -> None:
    """Positions in a prompt, or in each prompt; of a text they are not known yet, and none is taken."""
    if positions is None:
        return
    each = positions if batch else [positions]
    if len(each) != len(prompts):
        raise BadField(f"{name} has {len(each)} entries for {len(prompts)} prompts")
    for one, prompt in zip(each, prompts, strict=True):
        length = 0 if isinstance(prompt, str) else len(prompt)
        if not isinstance(one, list) or any(type(at) is not int or not 0 <= at < length for at in one):
            raise BadField(f"{name} has a position outside its prompt")


def _check_pattern(path: str, pattern: str) -> None:
    """Refuse what does not compile, and a repetition within a repetition: its search may take for ever."""
    _utf8(path, pattern)
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise BadField(f"{path}: {error}") from error
    if _NESTED_REPETITION.search(pattern):
        raise BadField(f"{path}: a repetition within a repetition is not supported")


_NESTED_REPETITION = re.compile(r"[*+}]\)+[*+{?]|[*+}][^()]*\)+[*+{]")


def _utf8(path: str, text: str | list[str]) -> None:
    """Half of a surrogate pair is no text that a tokenizer takes."""
    for one in [text] if isinstance(text, str) else text:
        try:
            one.encode()
        except UnicodeEncodeError as error:
            raise BadField(f"{path}: {error}") from error


def _named(error: Exception, of: str = "") -> str:
    """msgspec's words, the path in front, within the field `of`: `sampling_params.top_k: Expected ...`."""
    words, _, path = str(error).partition(" - at `$.")
    place = ".".join(name for name in (of, path.rstrip("`")) if name)
    return f"{place}: {words}" if place else words
