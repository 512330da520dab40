"""What the tests of dom0's backends share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from xenemu.hv import event_channel


@pytest.fixture(scope="module")
def noted_events() -> Iterator[None]:
    """A reduced domain notes the events that it is sent."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            event_channel, "notify_from_dom0", lambda guest, port: guest.raised.append(port)
        )
        yield
