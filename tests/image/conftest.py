"""Load an image from bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from xenemu import image
from xenemu.errors import ImageError


@pytest.fixture
def fault(load: Callable[[bytes], image.Image], tmp_path: Path) -> Callable[[bytes], str]:
    """Load bytes that must be refused; return the one line after the file's name."""

    def fault(data: bytes) -> str:
        with pytest.raises(ImageError) as caught:
            load(data)
        path, _, sentence = str(caught.value).partition(": ")
        assert path == str(tmp_path / "kernel")
        assert sentence and "\n" not in sentence
        return sentence

    return fault
