"""The nodes that a domU finds in the xenstore: those that libxl makes for one.

In Xen: tools/libs/light/libxl_create.c, libxl_dom.c, libxl_device.c, libxl_console.c
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

from xenemu.dom0.xenstore_model import Access, Connection, Permission
from xenemu.dom0.xenstore_tree import Store
from xenemu.hv.state.domain import OUTPUT_LIMIT

# Directories that the domain may only read, and nodes that are its own.
READ_ONLY: Final = ("cpu", "memory", "device", "control")
OWN: Final = (
    "control/shutdown",
    "control/feature-poweroff",
    "control/feature-reboot",
    "control/feature-suspend",
    "control/sysrq",
    "device/suspend/event-channel",
    "data",
    "drivers",
    "feature",
    "attr",
    "error",
)


def populate(
    store: Store,
    domid: int,
    name: str,
    uuid: bytes,
    memory_kb: int,
    vcpus: int,
    console_gfn: int,
    console_port: int,
    store_gfn: int,
    store_port: int,
    online: int | None = None,
    target_kb: int | None = None,
) -> None:
    """Make the nodes of a new PV domU; `uuid` is 16 bytes, a frame is named as the guest does.

    Of the `vcpus`, the first `online` are online; all, if it is not said. The domain begins with
    `target_kb` of its `memory_kb`, or with all of it.
    """
    toolstack = Connection(0)
    home = f"/local/domain/{domid}"
    vm = f"/vm/{UUID(bytes=uuid)}"
    read_only = (Permission(0, Access.NONE), Permission(domid, Access.READ))
    own = (Permission(domid, Access.NONE),)
    shared = (Permission(domid, Access.NONE), Permission(0, Access.READ))

    def put(path: str, value: str | int = "", permissions: tuple[Permission, ...] = ()) -> None:
        store.write(toolstack, path, str(value).encode())
        if permissions:
            store.set_perms(toolstack, path, permissions)

    put(home, permissions=read_only)
    put(vm, permissions=read_only)
    put(f"{home}/vm", vm)
    put(f"{home}/name", name)
    put(f"{vm}/name", name)
    for path in READ_ONLY:
        put(f"{home}/{path}", permissions=read_only)
    for path in OWN:
        put(f"{home}/{path}", permissions=own)
    put(f"{vm}/uuid", str(UUID(bytes=uuid)))
    put(f"{home}/control/platform-feature-multiprocessor-suspend", 1)
    put(f"{home}/control/platform-feature-xs_reset_watches", 1)

    put(f"{home}/memory/static-max", memory_kb)
    put(f"{home}/memory/target", memory_kb if target_kb is None else target_kb)
    put(f"{home}/memory/videoram", 0)
    put(f"{home}/domid", domid)
    put(f"{home}/store/port", store_port)
    put(f"{home}/store/ring-ref", store_gfn)
    for vcpu_id in range(vcpus):
        is_online = online is None or vcpu_id < online
        put(f"{home}/cpu/{vcpu_id}/availability", "online" if is_online else "offline")

    console = f"{home}/console"
    put(console, permissions=read_only)
    put(f"{console}/backend", f"/local/domain/0/backend/console/{domid}/0")
    put(f"{console}/backend-id", 0, shared)
    put(f"{console}/limit", OUTPUT_LIMIT)
    put(f"{console}/type", "xenconsoled")
    put(f"{console}/output", "pty")
    put(f"{console}/tty")
    put(f"{console}/port", console_port)
    put(f"{console}/ring-ref", console_gfn)
