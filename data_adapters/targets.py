"""Labels from a table: one class or value for each scan."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

from data_adapters.errors import DataError
from data_adapters.nearest import unmapped
from data_adapters.reasons import Unusable
from data_adapters.sources import Targets
from data_adapters.tables import read_table


@dataclass(frozen=True)
class TargetTable:
    """What each key of the table was given. Make one with ``load_targets``."""

    values: Mapping[str, frozenset[str]]
    classes: Mapping[str, int] | None

    def target_of(self, key: str) -> float:
        """Return the class index, or the value.

        Raises:
            Unusable: NO_TARGET, AMBIGUOUS_TARGET or UNMAPPED_TARGET.
        """
        given = self.values.get(key.strip(), frozenset())
        if not given:
            raise Unusable("NO_TARGET")
        if len(given) > 1:
            raise Unusable("AMBIGUOUS_TARGET")
        (text,) = given
        return self._class(text) if self.classes is not None else _number(text)

    def _class(self, text: str) -> float:
        if self.classes is None or text not in self.classes:
            raise Unusable("UNMAPPED_TARGET", unmapped([(text,)], self.classes or ()))
        return float(self.classes[text])


def load_targets(targets: Targets) -> TargetTable:
    """Read the table.

    Raises:
        DataError: It is missing, no table, or without the named columns.
    """
    values: defaultdict[str, set[str]] = defaultdict(set)
    for key, value in read_table(targets.path, (targets.id_column, targets.column)):
        values[key].add(value)
    if not values:
        raise DataError(f"The table {targets.path} has no rows.")
    names = targets.names()
    classes = {text: names.index(name) for text, name in (targets.classes or {}).items()}
    frozen = {key: frozenset(found) for key, found in values.items()}
    return TargetTable(frozen, classes if targets.classes is not None else None)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise Unusable("UNMAPPED_TARGET", repr(text)) from None
    if not isfinite(value):
        raise Unusable("UNMAPPED_TARGET", repr(text))
    return value
