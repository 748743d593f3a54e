"""The ledger: counts what the code between `with Ledger() as ledger:` and its end asks of a device."""

from __future__ import annotations

import sys
import weakref
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.ledger.fake_device import state
from benchmarks.ledger.operations import ALLOCATIONS, arithmetic, group_of, host_waits, moved_bytes, nbytes, tensors

ROOT = Path(__file__).resolve().parents[2]
CODE = tuple(f"{ROOT}/{folder}/" for folder in ("salt", "nodes", "train"))
DENOISE = "denoise"
ALLOCATED = 512  # the caching allocator's unit, bytes


@dataclass
class Costs:
    """Sums over operations. to_host, to_device: bytes of copies between main memory and the device."""

    launches: float = 0
    bytes: float = 0
    flops: float = 0
    waits: float = 0
    crossings: float = 0
    to_host: float = 0
    to_device: float = 0

    def __add__(self, other: Costs) -> Costs:
        return Costs(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __sub__(self, other: Costs) -> Costs:
        return self + other * -1

    def __mul__(self, factor: float) -> Costs:
        return Costs(*(getattr(self, f.name) * factor for f in fields(self)))


@dataclass
class Phase:
    """What one part of a run has asked for.

    groups: costs by kind of operation. operations: launches by operation. waits: places in the code (file:line) where
    the host waits, by count. crossings: copies between main memory and the device, by operation and place. reads:
    operations that read a watched storage other than through a view. peak: bytes of live device storages, at most.
    """

    groups: dict[str, Costs] = field(default_factory=lambda: defaultdict(Costs))
    operations: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    crossings: Counter[tuple[str, str]] = field(default_factory=Counter)
    reads: Counter[str] = field(default_factory=Counter)
    peak: int = 0

    @property
    def costs(self) -> Costs:
        return sum(self.groups.values(), Costs())


@dataclass(eq=False)
class Ledger(TorchDispatchMode):
    """Counts by phase (`during`), and live bytes.

    now: bytes of live device storages. pools: of each stream, bytes that live on it now and at most; the allocator does
    not lend one stream's memory to another, so it must reserve the sum of the peaks (`reserved`).
    """

    phases: dict[str, Phase] = field(default_factory=lambda: defaultdict(Phase))
    now: int = 0
    pools: dict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))

    def __post_init__(self) -> None:
        super().__init__()
        self._live: dict[int, weakref.ref[Any]] = {}
        self._watched: set[int] = set()
        self._phase = DENOISE

    def __enter__(self) -> Ledger:
        self._previous_wait = state.explicit_wait
        state.explicit_wait = self._explicit_wait
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        state.explicit_wait = self._previous_wait
        super().__exit__(*error)

    @property
    def phase(self) -> Phase:
        """The one that is counted now."""
        return self.phases[self._phase]

    @property
    def peak(self) -> int:
        return max((phase.peak for phase in self.phases.values()), default=0)

    @property
    def reserved(self) -> int:
        return sum(peak for _, peak in self.pools.values())

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Count what follows as another phase."""
        before, self._phase = self._phase, phase
        self.phase.peak = max(self.phase.peak, self.now)
        try:
            yield
        finally:
            self._phase = before
            self.phase.peak = max(self.phase.peak, self.now)

    def watch(self, storages: Iterable[Tensor]) -> None:
        """Record which operations read these tensors' storages from now on."""
        self._watched = {t.untyped_storage()._cdata for t in storages}

    def start_again(self) -> None:
        """Costs, waits and peaks start from zero; what is live stays."""
        self.phases.clear()
        self.phase.peak = self.now
        for pool in self.pools.values():
            pool[1] = pool[0]

    def _explicit_wait(self, what: str) -> None:
        self._wait(f" ({what})")

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        kwargs, name = kwargs or {}, func._schema.name.rpartition("::")[2]
        if name == "_local_scalar_dense":
            if args[0].is_cuda:
                self._wait()
            return 1.0 if args[0].dtype.is_floating_point else 1
        out = func(*args, **kwargs)
        inputs, outputs = tensors((args, kwargs)), tensors(out)
        places = {t.device.type for t in inputs + outputs}
        if "cuda" in places:
            if "cpu" in places and name in ("_to_copy", "copy_"):
                self._cross(name, args, kwargs, outputs[0])
            elif name not in ALLOCATIONS and (func._schema.is_mutable or _makes_storage(inputs, outputs)):
                self._launch(func, name, args, kwargs, out)
            self._count_storages(outputs)
        return out

    def _wait(self, what: str = "") -> None:
        self.phase.waits[_place() + what] += 1
        self.phase.groups["copies"].waits += 1

    def _cross(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], target: Tensor) -> None:
        source = args[1] if name == "copy_" else args[0]
        non_blocking = kwargs.get("non_blocking", args[2] if name == "copy_" and len(args) > 2 else False)
        costs = self.phase.groups["copies"]
        costs.crossings += 1
        self.phase.crossings[name, _place()] += 1
        if source.is_cuda:
            costs.to_host += nbytes(target)
        else:
            costs.to_device += nbytes(target)
        if host_waits(name, source, target, non_blocking, state.is_pinned(target if source.is_cuda else source)):
            self._wait()

    def _launch(self, func: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], out: object) -> None:
        costs = self.phase.groups[group_of(name)]
        self.phase.operations[name] += 1
        costs.launches += 1
        costs.bytes += moved_bytes(name, args, kwargs, out, func._schema.is_mutable)
        costs.flops += arithmetic(func, args, kwargs, out)
        if self._watched:
            mine = {t.untyped_storage()._cdata for t in tensors((args, kwargs))}
            if mine & self._watched:
                self.phase.reads[name] += 1

    def _count_storages(self, outputs: list[Tensor]) -> None:
        for x in outputs:
            storage = x.untyped_storage()
            if x.is_cuda and storage._cdata not in self._live:
                self.keep(storage, state.stream)

    def keep(self, storage: Any, stream: str) -> None:
        """Count a storage as live, on the pool of a stream, until it is freed."""
        key, size = storage._cdata, -(-storage.nbytes() // ALLOCATED) * ALLOCATED
        pool = self.pools[stream]

        def gone(_: object) -> None:
            if self._live.pop(key, None) is not None:
                self._watched.discard(key)  # which another storage may get
                self.now -= size
                pool[0] -= size

        self._live[key] = weakref.ref(storage, gone)
        self.now += size
        self.phase.peak = max(self.phase.peak, self.now)
        pool[0] += size
        pool[1] = max(pool)


def _makes_storage(inputs: list[Tensor], outputs: list[Tensor]) -> bool:
    known = {t.untyped_storage()._cdata for t in inputs}
    return any(t.untyped_storage()._cdata not in known for t in outputs)


def _place() -> str:
    """The innermost line of the project's own code that is being run."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(CODE):
            return f"{name.removeprefix(f'{ROOT}/')}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"
