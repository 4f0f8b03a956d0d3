"""Language models on this machine: llama.cpp in a child process of its own, reached over a UNIX socket.

supervisor ── engine.py ──spawns──> child.py (native.py: llama.cpp, slots.py: queue and slots)
                                      ▲ wire.py: msgpack frames on a UNIX socket
gateway workers ── backend.py ────────┘
                   prompting.py, tools.py, schemas.py, sampling.py: OpenAI's dialect to the engine's
"""

from modelport.backends.llamacpp.backend import LlamaCppBackend
from modelport.backends.llamacpp.engine import LlamaCppEngine
from modelport.backends.llamacpp.options import LlamaCppOptions, socket_path_for

__all__ = ["LlamaCppBackend", "LlamaCppEngine", "LlamaCppOptions", "socket_path_for"]
