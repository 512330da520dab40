"""hypercalls/platform_op.py"""

from __future__ import annotations

import pytest

from fakes import make_current
from hypercalls.platform_op import XENPF_INTERFACE_VERSION, platform_op
from xenemu.abi.errno import EACCES, EFAULT, EPERM
from xenemu.errors import XenError

ARGUMENT = 0x20000


@pytest.mark.parametrize(
    ("version", "pointer", "errno"),
    [
        (XENPF_INTERFACE_VERSION, ARGUMENT, EPERM),
        (1, ARGUMENT, EACCES),
        (XENPF_INTERFACE_VERSION, 1 << 30, EFAULT),
    ],
)
def test_a_domu_is_refused(version: int, pointer: int, errno: int) -> None:
    current = make_current()
    current.write_uint(ARGUMENT + 4, 4, version)
    before = current.read(ARGUMENT, 136)
    assert platform_op.handler is not None
    with pytest.raises(XenError) as error:
        platform_op.handler(current, pointer)
    assert error.value.errno == errno
    assert current.read(ARGUMENT, 136) == before
