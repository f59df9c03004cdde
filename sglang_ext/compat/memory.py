"""KV memory: the prefix cache, the pools of slots, rows and metadata buffers, and what a request holds of them."""

from __future__ import annotations

from typing import Protocol

from sglang_ext.compat.descriptions import describes, imported

_MEMORY = "sglang.srt.mem_cache"


class Tensor(Protocol):
    """A torch tensor, as far as we look into one."""

    def __getitem__(self, key: object, /) -> Tensor: ...


class Pages(Protocol):
    """A numpy array of page numbers."""

    def __len__(self) -> int: ...
    def astype(self, dtype: str, /) -> Pages: ...


class TreeLock(Protocol):
    """Keeps a prefix in the tree."""

    node: object


@describes("sglang.srt.managers.schedule_batch.ReqKvInfo")
class Kv(Protocol):
    """What a request holds of the pools: a row, and up to where there is KV behind it."""

    req_pool_idx: int | None
    kv_committed_len: int
    kv_allocated_len: int

    @property
    def holds_kv(self) -> bool: ...


@describes(f"{_MEMORY}.base_prefix_cache.BasePrefixCache", f"{_MEMORY}.unified_radix_cache.UnifiedRadixCache")
class TreeCache(Protocol):
    """The prefix cache. SGLang has one without a tree, too: then prefixes are not shared."""

    def supports_prefix_sharing(self) -> bool: ...
    def lock(self, node: object, /) -> TreeLock | None: ...
    def unlock(self, lock: TreeLock | None, /) -> None: ...
    def path_device_indices(self, node: object, /) -> Tensor:
        """KV slots of the tokens from the root to `node`."""

    def free_kv_row(self, kv: Kv, ranges: list[tuple[int, int]], /) -> None: ...
    def finish(self, handle: object, outcome: object, /) -> None: ...


@describes(f"{_MEMORY}.allocator.base.BaseTokenToKVPoolAllocator")
class Allocator(Protocol):
    """Hands out KV slots, one a token."""

    page_size: int

    def available_size(self) -> int: ...
    def alloc(self, need_size: int, /) -> Tensor | None: ...
    def translate_kv_indices_for_transfer(self, kv_indices: Tensor, /) -> Tensor: ...


@describes(f"{_MEMORY}.memory_pool.ReqToTokenPool", "sglang.srt.disaggregation.decode.DecodeReqToTokenPool")
class Rows(Protocol):
    """Rows of KV slots, one a request."""

    size: int
    req_to_token: Tensor

    def available_size(self) -> int: ...
    def alloc(self, reqs: list[HasKv], /) -> list[int] | None: ...
    def write(self, indices: object, values: Tensor, /) -> None: ...


class HasKv(Protocol):
    """A request, to the row pool."""

    @property
    def kv(self) -> Kv: ...


@describes("sglang.srt.disaggregation.utils.ReqToMetadataIdxAllocator")
class MetadataSlots(Protocol):
    """Buffers in which a transfer brings the first token, by number."""

    size: int

    def available_size(self) -> int: ...
    def alloc(self) -> int | None: ...
    def free(self, free_index: int, /) -> None: ...


class MetadataBuffers(Protocol):
    """The buffers themselves (`differences`)."""


@imported(f"{_MEMORY}.base_prefix_cache.CacheRequestOutcome")
class CacheRequestOutcome:
    SUCCESS: object


@imported(f"{_MEMORY}.common.evict_from_tree_cache")
def evict_from_tree_cache(tree_cache: TreeCache, num_tokens: int, /) -> object:
    """Make room for so many tokens, as far as the tree has some that nobody locks."""


@imported(f"{_MEMORY}.common.kv_to_page_indices")
def _kv_to_page_indices(kv_indices: Tensor, page_size: int, /) -> Pages: ...


@imported(f"{_MEMORY}.common.kv_to_page_num")
def kv_to_page_num(num_kv_indices: int, page_size: int, /) -> int: ...


@imported(f"{_MEMORY}.common.release_kv_cache")
def _release_kv_cache(req: HasKv, tree_cache: TreeCache, /, *, checkpoint: bool) -> None: ...


def release_kv(owner: HasKv, tree: TreeCache) -> None:
    """Give back what `owner` holds. The tree keeps what it has, and gets nothing new."""
    _release_kv_cache(owner, tree, checkpoint=False)


def pages_to_transfer(allocator: Allocator, slots: Tensor) -> Pages:
    """The pages of whole pages' `slots`, by the numbers that a transfer knows them by."""
    return _kv_to_page_indices(allocator.translate_kv_indices_for_transfer(slots), allocator.page_size)


def extend_row(rows: Rows, kv: Kv, tokens: int, slots: Tensor) -> None:
    """Put the `slots` of so many tokens at the end of the row."""
    end = kv.kv_allocated_len + tokens
    rows.write((kv.req_pool_idx, slice(kv.kv_allocated_len, end)), slots)
    kv.kv_committed_len = kv.kv_allocated_len = end


def cut_row(tree: TreeCache, kv: Kv, tokens: int) -> None:
    """Free the row's slots from `tokens`, a whole number of pages, to where they end."""
    tree.free_kv_row(kv, [(tokens, kv.kv_allocated_len)])
    kv.kv_committed_len = kv.kv_allocated_len = tokens
