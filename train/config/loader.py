"""Recipe files: YAML, base recipes and `key=value` overrides, checked against the dataclasses of `recipe`."""

from __future__ import annotations

import difflib
import itertools
import typing
from collections.abc import Mapping, Sequence
from dataclasses import Field, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, TypeVar

import yaml

from salt.io.fields import Between, shown
from salt.io.remote_names import local_path
from train.config.recipe import Recipe, RecipeError

UNBOUNDED = 10**9  # the upper end of a range that nobody reaches
GPUS = "GPUs:"  # begins a line of the comment at the top of a recipe
RECIPES = Path(__file__).parents[1] / "recipes"


class RecipeYaml(yaml.SafeLoader):
    """Plain values only. Aliases are refused: a few lines of them stand for gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"found the alias *{self.peek_event().anchor}, expected the values themselves")
        return super().compose_node(parent, index)


def load_yaml(text: str) -> object:
    """The value of a YAML text. Raises YAMLError or ValueError (an integer of thousands of digits)."""
    try:
        return yaml.load(text, Loader=RecipeYaml)
    except RecursionError:
        raise yaml.YAMLError("found values that are nested too deeply, expected fewer levels") from None


class Dataclass(Protocol):
    """Any dataclass (typeshed's `DataclassInstance`, which does not exist at run time)."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


Settings = TypeVar("Settings", bound=Dataclass)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, or one of train/recipes by name, and apply `key=value` overrides (`optimisation.lr=1e-5`).

    A file may name a `base`, a recipe beside it or one of train/recipes, whose values hold for the keys that the file
    leaves out. `name` is the file's by default, and `run.out` is runs/NAME.
    Raises RecipeError for an unknown key (with the nearest known one), a value of the wrong type, or invalid YAML.
    """
    path = find_recipe(Path(path))
    values = _read(path)
    values.setdefault("name", path.stem)
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or not key:
            raise RecipeError(repr(override), "is not of the form key=value, for example optimisation.lr=1e-5")
        section, dot, last = key.partition(".")
        if not dot:
            values[key] = _override_value(text, override)
        elif isinstance(values.setdefault(section, {}), dict):
            values[section][last] = _override_value(text, override)
    recipe = _build(Recipe, values, "", path)
    try:
        local_path(Path(), recipe.name)
    except ValueError:
        raise RecipeError("name", f"found {shown(recipe.name)}, expected a name for files", file=path) from None
    return recipe if recipe.run.out else replace(recipe, run=replace(recipe.run, out=f"runs/{recipe.name}"))


def find_recipe(path: Path) -> Path:
    """A recipe's file, by path or by the name of one in train/recipes. Raises RecipeError where there is none."""
    own = RECIPES / f"{path.name.removesuffix('.yaml')}.yaml"
    if not path.exists() and own.exists():
        return own
    if not path.is_file():
        near = difflib.get_close_matches(own.stem.lower(), recipe_names(), n=3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        found = "a folder" if path.is_dir() else "no file"
        expected = "expected a YAML file, or a name that `python -m train recipes` lists"
        raise RecipeError("recipe", f"found {found} {str(path)!r}, {hint}{expected}")
    return path


def recipe_names() -> list[str]:
    """The recipes in train/recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def recipe_summary(name: str) -> tuple[str, str]:
    """What one of these recipes trains, and on which GPUs: from the comment at the top of its file, and of its base."""
    lines = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").split("\n")
    comment = [line.removeprefix("#").strip() for line in itertools.takewhile(lambda x: x.startswith("#"), lines)]
    gpus = next((line.removeprefix(GPUS).strip() for line in comment if line.startswith(GPUS)), "")
    if not gpus:
        gpus = recipe_summary(next(line.removeprefix("base:").strip() for line in lines if line.startswith("base:")))[1]
    words = " ".join(line for line in comment if not line.startswith(GPUS))
    return words.partition(". ")[0].rstrip("."), gpus


def read_values(path: Path) -> dict[str, Any]:
    """Keys and values of a recipe's file. Raises RecipeError where it is no YAML, or has something else in it."""
    try:
        values = load_yaml(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError("recipe", f"is not valid YAML ({' '.join(str(error).split())})", file=path) from error
    if not isinstance(values, dict):
        raise RecipeError("recipe", f"found {type(values).__name__}, expected keys and values", file=path)
    return values


def _read(path: Path, derived: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Values of a file over those of its base; lists and mappings within a section are replaced as a whole.

    derived: the files that name this one as their base, which it may not name in turn. `history`, which a run's
    `recipe.yaml` may have, is left out.
    """
    values = read_values(path)
    values.pop("history", None)
    named = values.pop("base", None)
    if named is None:
        return values
    read = {p.resolve() for p in (path, *derived)}
    candidates = (folder / f"{named}.yaml" for folder in (path.parent, RECIPES))
    base = next((p for p in candidates if p.is_file() and p.resolve() not in read), None)
    if base is None:
        raise RecipeError("base", f"found {named!r}, expected another recipe, beside it or in train/recipes", file=path)
    merged = _read(base, (path, *derived))
    for key, value in values.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = {**merged[key], **value} if both else value
    return merged


def _override_value(text: str, override: str) -> object:
    try:
        return load_yaml(text)
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(repr(override), f"is not valid YAML ({' '.join(str(error).split())})") from error


def _build(kind: type[Settings], values: Mapping[str, object], section: str, file: Path) -> Settings:
    """A settings dataclass from a mapping, every key and type checked. section: the keys' prefix in errors."""
    hints = typing.get_type_hints(kind, include_extras=True)
    known = {f.name for f in fields(kind)}
    arguments = {}
    for key, value in values.items():
        if key not in known:
            near = _keys_named(str(key)) or difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {' or '.join(near)}?" if near else f"expected one of {', '.join(sorted(known))}"
            raise RecipeError(f"{section}{key}", f"is no known key, {hint}", file=file)
        arguments[key] = _convert(hints[key], value, f"{section}{key}", file)
    return kind(**arguments)


def _keys_named(name: str) -> list[str]:
    """The keys of any section that are called `name`: `optimisation.lr` for `lr`, whichever section it was given in."""
    last = name.rpartition(".")[2]
    sections = ((key, hint) for key, hint in typing.get_type_hints(Recipe).items() if is_dataclass(hint))
    return [f"{section}.{last}" for section, hint in sections if last in {f.name for f in fields(hint)}]


def _convert(hint: Any, value: object, key: str, file: Path) -> object:
    """A value of YAML as the type that the settings declare."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _in_range(_convert(parts[0], value, key, file), parts[1], key, file)
    if isinstance(hint, type) and is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise RecipeError(key, f"found {value!r}, expected a section of keys and values", file=file)
        return _build(hint, value, f"{key}.", file)
    if origin is Literal:
        value = "no" if value is False and "no" in parts else value  # which is what YAML reads a bare no as
        if value not in parts:
            raise RecipeError(key, f"found {value!r}, expected one of {', '.join(map(str, parts))}", file=file)
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or len(value) != len(parts):
            raise RecipeError(key, f"found {value!r}, expected {len(parts)} values", file=file)
        return tuple(_convert(p, v, key, file) for p, v in zip(parts, value, strict=True))
    if origin is not None and issubclass(origin, Mapping):
        return _step_shares(hint, value, key, file)
    return _convert_scalar(hint, value, key, file)


def _convert_scalar(hint: type, value: object, key: str, file: Path) -> object:
    if hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-5 as text
        except ValueError:
            raise RecipeError(key, f"found {value!r}, expected a number", file=file) from None
    if hint is str and value is None:
        return ""  # key= on the command line, an empty value in a file
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise RecipeError(key, f"found {value!r}, expected {hint.__name__}", file=file)
    return value


def _step_shares(hint: Any, value: object, key: str, file: Path) -> dict[object, object]:
    if not isinstance(value, Mapping) or not value:
        raise RecipeError(
            key, f"found {value!r}, expected step counts with their probabilities, as {{8: 0.5, 4: 0.5}}", file=file
        )
    count, share = typing.get_args(hint)
    return {_convert(count, k, key, file): _convert(share, v, key, file) for k, v in value.items()}


def check_ranges(recipe: Recipe) -> None:
    """Raise RecipeError for a value outside its key's range, in a recipe that was not read from a file."""
    for section in fields(recipe):
        settings = getattr(recipe, section.name)
        if is_dataclass(settings):
            for name, hint in typing.get_type_hints(type(settings), include_extras=True).items():
                _check_range(hint, getattr(settings, name), f"{section.name}.{name}")


def _check_range(hint: Any, value: object, key: str) -> None:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        _in_range(value, parts[1], key, None)
    elif isinstance(value, tuple):
        for part, item in zip(parts, value, strict=True):
            _check_range(part, item, key)


def _in_range(value: Any, limits: Between, key: str, file: Path | None) -> Any:
    if not limits.low <= value <= limits.high:  # which NaN is not either
        unbounded = limits.high >= UNBOUNDED and not value > limits.high
        expected = f"{limits.low:g} or more" if unbounded else f"{limits.low:g} to {limits.high:g}"
        raise RecipeError(key, f"found {shown(value)}, expected {expected}", file=file)
    return value
