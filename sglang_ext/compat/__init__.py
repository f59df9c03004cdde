"""The one place that names SGLang: its modules, its classes' attributes, private ones too, and its versions.

`descriptions` says how that is written down and checked at start. `requests`, `memory`, `transfer`, `scheduler` and
`server` describe what the extension uses of SGLang and have the functions that go into its private parts; `hooks` ties
ours to it; `differences` has what is not the same in all supported `versions`.
"""
# ruff: noqa: F403

from sglang_ext.compat.cpu import *
from sglang_ext.compat.differences import *
from sglang_ext.compat.drafting import *
from sglang_ext.compat.hooks import *
from sglang_ext.compat.memory import *
from sglang_ext.compat.requests import *
from sglang_ext.compat.rest import *
from sglang_ext.compat.scheduler import *
from sglang_ext.compat.server import *
from sglang_ext.compat.transfer import *
from sglang_ext.compat.versions import *
