"""gearkv: compressed KV caches for CPUs, and a small decoder of GGUF models.

Arrays are NumPy's, or whatever it takes by the buffer protocol. Errors are exceptions of type Error, which has the
library's code and its name. Objects may be used by any thread; the GIL is free while the library works.
"""

from ._cache import (
    Cache,
    Config,
    LayerStats,
    Rope,
    StateInfo,
    Stats,
    attend_batch,
    compress,
    decompress,
    inspect_state,
    plan,
    verify_state,
)
from ._native import (
    Error,
    FileProblem,
    InvalidValue,
    OutOfMemory,
    Threads,
    Workspace,
    format_spec,
    has_decoder,
    levels,
    version,
)

__version__ = version()
__all__ = [
    "Cache",
    "Config",
    "Error",
    "FileProblem",
    "InvalidValue",
    "LayerStats",
    "OutOfMemory",
    "Rope",
    "StateInfo",
    "Stats",
    "Threads",
    "Workspace",
    "attend_batch",
    "compress",
    "decompress",
    "format_spec",
    "has_decoder",
    "inspect_state",
    "levels",
    "plan",
    "verify_state",
]

if has_decoder:
    from ._chat import Chat, ChatTemplate, Message
    from ._model import Fit, Model, ModelParams, SessionBytes, TensorInfo
    from ._session import Generated, Session, decode_batch
    from ._speculation import Speculation, SpeculationStats
    from ._text import Sampler, Tokenizer

    __all__ += [
        "Chat",
        "ChatTemplate",
        "Fit",
        "Generated",
        "Message",
        "Model",
        "ModelParams",
        "Sampler",
        "Session",
        "SessionBytes",
        "Speculation",
        "SpeculationStats",
        "TensorInfo",
        "Tokenizer",
        "decode_batch",
    ]
