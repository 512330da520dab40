"""The PV console's ring page.

Header: public/io/console.h
"""

from __future__ import annotations

from typing import Annotated

from xenemu.abi.layout import U32, Struct, blob


class xencons_interface(Struct, size=(3088, 3088)):
    """Two byte rings with free-running indices; `in` is a keyword of Python's, hence `in_`."""

    in_: Annotated[bytes, blob(1024)]  # towards the guest
    out: Annotated[bytes, blob(2048)]  # from the guest
    in_cons: U32
    in_prod: U32
    out_cons: U32
    out_prod: U32
