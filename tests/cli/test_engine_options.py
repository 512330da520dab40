"""cli/engine_options: what the CPU engine may take of the host."""

from __future__ import annotations

import pytest

from xenemu.cli.engine_options import CACHE, bound_translations
from xenemu.cpu.engine import DEFAULT_CACHE, Engine
from xenemu.errors import UsageError


@pytest.fixture(autouse=True)
def engine_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "translation_cache", Engine.translation_cache)


def test_a_size_is_taken() -> None:
    bound_translations("8M")
    assert Engine.translation_cache == 8 << 20


def test_the_default_is_the_engines_own() -> None:
    bound_translations("8M")
    bound_translations(CACHE)
    assert Engine.translation_cache == DEFAULT_CACHE


@pytest.mark.parametrize("text", ["512K", "2G", "0M", "64", "much"])
def test_another_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=f"^--translation-cache {text}: give "):
        bound_translations(text)
    assert Engine.translation_cache == DEFAULT_CACHE
