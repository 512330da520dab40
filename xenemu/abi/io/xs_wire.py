"""The xenstore protocol: message types, header, error names and the ring page.

Header: public/io/xs_wire.h
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Final

from xenemu.abi.layout import U32, Struct, blob


class XS(IntEnum):
    """``enum xsd_sockmsg_type``."""

    CONTROL = 0
    DIRECTORY = 1
    READ = 2
    GET_PERMS = 3
    WATCH = 4
    UNWATCH = 5
    TRANSACTION_START = 6
    TRANSACTION_END = 7
    INTRODUCE = 8
    RELEASE = 9
    GET_DOMAIN_PATH = 10
    WRITE = 11
    MKDIR = 12
    RM = 13
    SET_PERMS = 14
    WATCH_EVENT = 15
    ERROR = 16
    IS_DOMAIN_INTRODUCED = 17
    RESUME = 18
    SET_TARGET = 19
    RESET_WATCHES = 21
    DIRECTORY_PART = 22


# xsd_errors: what an error can be called on the wire; anything else is sent as EINVAL.
ERROR_NAMES: Final = (
    "EINVAL EACCES EEXIST EISDIR ENOENT ENOMEM ENOSPC EIO ENOTEMPTY ENOSYS EROFS EBUSY EAGAIN "
    "EISCONN E2BIG EPERM"
).split()

XENSTORE_PAYLOAD_MAX: Final = 4096
XENSTORE_ABS_PATH_MAX: Final = 3072
XENSTORE_REL_PATH_MAX: Final = 2048
XENSTORE_RING_SIZE: Final = 1024

XENSTORE_ERROR_NONE: Final = 0
XENSTORE_ERROR_COMM: Final = 1  # communication problem
XENSTORE_ERROR_RINGIDX: Final = 2  # invalid ring index
XENSTORE_ERROR_PROTO: Final = 3  # payload too long


class xsd_sockmsg(Struct, size=(16, 16)):
    """The header of a message; `len` bytes of payload follow."""

    type: U32
    req_id: U32
    tx_id: U32
    len: U32


class xenstore_domain_interface(Struct, size=(2076, 2076)):
    """The ring page: requests to xenstored, replies and watch events from it."""

    req: Annotated[bytes, blob(XENSTORE_RING_SIZE)]
    rsp: Annotated[bytes, blob(XENSTORE_RING_SIZE)]
    req_cons: U32
    req_prod: U32
    rsp_cons: U32
    rsp_prod: U32
    server_features: U32
    connection: U32
    error: U32
