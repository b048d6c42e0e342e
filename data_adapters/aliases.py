"""Every name under which one person may be known, as keyed hashes; who is who, and who must go.

A pseudonym alone is not enough: add an issuer to the site file, and the same person has another.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

Pseudonymise = Callable[[str], str]

# What an alias is: a person or an identifier with its issuer; an identifier whose issuer is not
# known; the identifier alone of one whose issuer is known.
_IS, _BARE, _OF = "is:", "bare:", "of:"


@dataclass(frozen=True)
class Identity:
    """One person as a source's rule understands them. Raw: it stays in memory.

    Args:
        subject: The one text that the pseudonym is made of.
        identifiers: (identifier, issuer) under which the person is known; an issuer may be empty.
    """

    subject: str
    identifiers: frozenset[tuple[str, str]]

    def aliases(self, pseudonymise: Pseudonymise) -> frozenset[str]:
        """Return the keyed hash of every name, each with what it is."""
        found = {_IS + pseudonymise(self.subject)}
        for identifier, issuer in self.identifiers:
            alone = pseudonymise(f"bare\0{identifier}")
            if issuer:
                found |= {_IS + pseudonymise(f"{identifier}^^^{issuer}"), _OF + alone}
            else:
                found.add(_BARE + alone)
        return frozenset(found)


def same_person(one: Collection[str], other: Collection[str]) -> bool:
    """Return whether two sets of aliases may be one person.

    An identifier without its issuer may be anybody's who has that identifier; two different
    issuers make two people.

    >>> same_person({"is:1", "of:7"}, {"is:2", "bare:7"})
    True
    >>> same_person({"is:1", "of:7"}, {"is:2", "of:7"})
    False
    """
    shared = {alias for alias in one if alias.startswith(_IS)} & set(other)
    return bool(shared) or _bare_meets(one, other) or _bare_meets(other, one)


def with_some_issuer(aliases: Collection[str]) -> frozenset[str]:
    """Return the aliases of one whose issuer is known elsewhere: no longer anybody's.

    >>> sorted(with_some_issuer({"is:1", "bare:7"}))
    ['is:1', 'of:7']
    """
    return frozenset(
        _OF + alias.removeprefix(_BARE) if alias.startswith(_BARE) else alias for alias in aliases
    )


def _bare_meets(one: Collection[str], other: Collection[str]) -> bool:
    bare = {alias.removeprefix(_BARE) for alias in one if alias.startswith(_BARE)}
    return any(alias.partition(":")[2] in bare for alias in other if not alias.startswith(_IS))


@dataclass(frozen=True)
class Excluded:
    """Who must not be in a data set, however they are named from now on.

    Args:
        people: For each excluded person, their aliases.
        images: ``image_name`` of each of their scans when they were excluded.
    """

    people: tuple[frozenset[str], ...] = ()
    images: frozenset[str] = frozenset()

    def has(self, aliases: Collection[str]) -> bool:
        """Return whether these are the aliases of somebody who is out."""
        return any(same_person(person, aliases) for person in self.people)


NOBODY = Excluded()


def image_name(image_digest: str, pseudonymise: Pseudonymise) -> str:
    """Return the keyed name of an image's pixels and geometry."""
    return pseudonymise(f"image\0{image_digest}")
