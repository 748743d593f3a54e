"""KV-cache memory: policies (what is kept and where it sits), storage, the cache itself, attention over it, files."""

from .attend import MemoryPass
from .cache import KVMemory
from .files import MemoryFileError, load_memory, read_memory_info, save_memory
from .policy import KINDS, PRECISIONS, RESIDENCES, MemoryPolicy
from .spare import SpareStores
from .storage import MemoryGeometry, estimate_bytes

__all__ = [
    "KINDS",
    "PRECISIONS",
    "RESIDENCES",
    "KVMemory",
    "MemoryFileError",
    "MemoryGeometry",
    "MemoryPass",
    "MemoryPolicy",
    "SpareStores",
    "estimate_bytes",
    "load_memory",
    "read_memory_info",
    "save_memory",
]
