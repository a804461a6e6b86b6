"""What later releases added to records, so that those of earlier ones keep their meaning.

A fingerprint is a hash of a whole recipe. Without this, a key that a release adds would change the
fingerprint of every recipe that does not use it, and all finished stages would be run again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Keys of recipes that release 0.1.0 did not have, with the value that means its behaviour.
ADDED_KEYS: Mapping[str, Any] = {"problems.leave_out_long": False}


def without_added_keys(recipe: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a recipe, less those keys that were added later and change nothing in it."""
    kept: dict[str, Any] = {}
    for name, value in recipe.items():
        key = f"{prefix}{name}"
        if key in ADDED_KEYS and value == ADDED_KEYS[key]:
            continue
        kept[name] = without_added_keys(value, f"{key}.") if isinstance(value, dict) else value
    return kept
