"""YAML that people write, read into frozen types; errors in one sentence, with the nearest key."""

import difflib
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from federation.errors import FederationError

MAX_BYTES = 1_000_000


class Strict(BaseModel):
    """A frozen value that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Document = TypeVar("Document", bound=BaseModel)


def load_document(path: Path, kind: type[Document], name: str) -> Document:
    """Read one YAML file into ``kind``.

    Args:
        name: What the file is, for messages, for example ``"experiment"``.

    Raises:
        FederationError: Missing, not YAML, or not a valid ``kind``; one sentence a finding.
    """
    return parse_document(read_yaml(path, name), kind, f"{name} file {path}")


def read_yaml(path: Path, name: str) -> dict[str, Any]:
    """Return the mapping in a YAML file; tags that name Python objects are refused by YAML.

    Raises:
        FederationError: Missing, larger than 1 MB, not YAML, or not a mapping.
    """
    if not path.is_file():
        raise FederationError(f"There is no {name} file at {path}. Check the path.")
    if path.stat().st_size > MAX_BYTES:
        raise FederationError(f"{path} is larger than {MAX_BYTES:,} bytes: not an {name} file.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise FederationError(f"{path} cannot be read as YAML: {_first_line(error)}") from error
    if not isinstance(values, dict):
        raise FederationError(f"{path} holds no settings: expected lines of 'key: value'.")
    return values


def parse_document(values: Any, kind: type[Document], where: str) -> Document:
    """Validate plain values as ``kind``.

    Raises:
        FederationError: Lists each finding in a sentence, prefixed by ``where``.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        findings = [_sentence(kind, finding) for finding in error.errors(include_url=False)]
        raise FederationError(f"{where}: " + " ".join(findings)) from error


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _sentence(kind: type[BaseModel], finding: Any) -> str:
    place = ".".join(str(part) for part in finding["loc"])
    if finding["type"] == "extra_forbidden":
        return _unknown_key(kind, finding["loc"])
    if finding["type"] == "missing":
        return f"'{place}' is missing."
    if finding["type"] == "union_tag_invalid":
        context = finding["ctx"]
        known = context["expected_tags"].replace("'", "").split(", ")
        return f"'{place}' has kind '{context['tag']}'.{_suggestion(str(context['tag']), known)}"
    if finding["type"] == "union_tag_not_found":
        return f"'{place}' needs a 'kind'."
    message = finding["msg"].removeprefix("Value error, ")
    return f"'{place}': {message}." if place else f"{message}."


def _unknown_key(kind: type[BaseModel], location: Sequence[int | str]) -> str:
    unknown, parents = str(location[-1]), location[:-1]
    fields = _fields_at(kind, parents)
    place = f" in '{'.'.join(str(p) for p in parents)}'" if parents else ""
    return f"Unknown key '{unknown}'{place}.{_suggestion(unknown, fields)}"


def _suggestion(wrong: str, known: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(wrong, known, n=1, cutoff=0.5)
    if nearest:
        return f" Did you mean '{nearest[0]}'?"
    return f" Known: {', '.join(sorted(known))}."


def _fields_at(annotation: Any, location: Sequence[int | str]) -> list[str]:
    """Return the field names of the model that ``location`` leads to."""
    for part in location:
        annotation = _step(_bare(annotation), part)
    annotation = _bare(annotation)
    return list(annotation.model_fields) if _is_model(annotation) else []


def _step(annotation: Any, part: int | str) -> Any:
    if _is_model(annotation):
        field = annotation.model_fields.get(str(part))
        return field.annotation if field else None
    if get_origin(annotation) in (Union, types.UnionType):
        return next((m for m in get_args(annotation) if _tag(m) == part), None)
    arguments = get_args(annotation)
    return arguments[-1] if get_origin(annotation) is dict else (arguments or (None,))[0]


def _bare(annotation: Any) -> Any:
    """Drop ``Annotated`` and ``| None``."""
    if get_origin(annotation) is Annotated:
        return _bare(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        members = [m for m in get_args(annotation) if m is not type(None)]
        return _bare(members[0]) if len(members) == 1 else annotation
    return annotation


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _tag(member: Any) -> str | None:
    member = _bare(member)
    field = member.model_fields.get("kind") if _is_model(member) else None
    if field is None or get_origin(field.annotation) is not Literal:
        return None
    return str(get_args(field.annotation)[0])
