"""KV-cache memory: policies (what is kept and where it sits), storage, the cache itself, attention over it, files."""

from .attention import MemoryPass
from .buffer_pool import BufferPool
from .cache import KVMemory
from .policy import KINDS, PRECISIONS, RESIDENCES, MemoryPolicy
from .serialization import MemoryFileError, load_memory, read_memory_info, save_memory
from .store import MemoryGeometry, estimate_bytes

__all__ = [
    "KINDS",
    "PRECISIONS",
    "RESIDENCES",
    "KVMemory",
    "MemoryFileError",
    "MemoryGeometry",
    "MemoryPass",
    "MemoryPolicy",
    "BufferPool",
    "estimate_bytes",
    "load_memory",
    "read_memory_info",
    "save_memory",
]
