"""Look for planted identifiers in everything that a run writes or sends, however it is packed."""

from tests.leaks.search import Hit, Searcher, search_bytes, search_folder
from tests.leaks.variants import Token

__all__ = ["Hit", "Searcher", "Token", "search_bytes", "search_folder"]
