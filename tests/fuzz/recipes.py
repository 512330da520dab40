"""Steps that belong together: to get a page table, a page of descriptors, an exchange, an answer.

Single random steps hardly ever make a page fit to be a table: it must have the right contents, and
no writable mapping. A recipe does that, and then uses the page as something; what comes after is
random again, and meets it.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from fuzz.world import Step
from xenemu.abi.io.xs_wire import xenstore_domain_interface
from xenemu.abi.memory import XENMEM_exchange, xen_memory_exchange, xen_memory_reservation
from xenemu.abi.xen import DOMID_SELF, Nr, mmu_update, mmuext_op
from xenemu.hv.frame_table import LEVELS
from xenemu.x86.paging import PAGE_SHIFT, RW, US, P

if TYPE_CHECKING:
    from fuzz.steps import Steps

XS_REQ_CONS = xenstore_domain_interface.offsetof("req_cons", 8)
PINS = {1: 0, 2: 1, 3: 2, 4: 3}  # MMUEXT_PIN_Ln_TABLE


PATHS = (
    "name", "memory/target", "/local/domain/1/name", "data", "data/a", "control/shutdown", "/",
    "/local/domain/0", "/vm", "device/vif/0", "@introduceDomain", "@releaseDomain", "a" * 300,
    "/local/domain/1/data/../x", "", "data//b", "/local/domain/1",
)  # fmt: skip


def recipe(steps: Steps) -> list[Step]:
    """Some steps that belong together."""
    makers = [_store_request, _fifo]
    if steps.pv:
        makers += [_page_of_tables] * 5 + [_exchange]
    return steps.random.choice(makers)(steps)


def _page_of_tables(steps: Steps) -> list[Step]:
    """Make a page of the arena a table, or descriptors, and use it."""
    values, random, world = steps.values, steps.random, steps.world
    page = world.arena + (random.randrange(world.arena_pages) << PAGE_SHIFT)
    mfn = values.frame_at(page)
    levels = 4 if values.wide else 3
    kind = random.choice(("gdt", "ldt", *("table",) * 6))
    level = random.choice((1, 1, 2, 3, levels))
    contents = _descriptors(steps) if kind != "table" else _entries(steps, level, mfn)
    read_only = [mfn << PAGE_SHIFT | P | US]
    if not values.wide:
        read_only = [read_only[0] & 0xFFFFFFFF, read_only[0] >> 32]
    made: list[Step] = [
        {"kind": "time", "ns": 0, "data": [[page, contents.hex()]]},
        {"kind": "call", "number": int(Nr.update_va_mapping), "args": [page, *read_only, 2]},
    ]
    if kind == "gdt":
        where = values.words([mfn])
        made.append(_call(Nr.set_gdt, [where, 512], values.data))
    elif kind == "ldt":
        made.append(_mmuext(steps, 13, page, random.choice((8, 512))))
        made.append({"kind": "insn", "how": "gp", "code": "cf", "regs": []})
        base = (0xFFFF820000000000 if values.wide else 0xFFC00000) + 0x10000
        made.append({"kind": "trap", "vector": 14, "error": 0, "cr2": base})
    else:
        made += _use_table(steps, mfn, level)
    return made


def _store_request(steps: Steps) -> list[Step]:
    """Messages in the ring of the xenstore, and the event that tells of them."""
    random, world = steps.random, steps.world
    messages = b""
    for n in range(random.choice((1, 1, 2, 5))):
        parts = [random.choice(PATHS).encode() for _ in range(random.choice((1, 1, 2, 3)))]
        body = b"\0".join(parts) + random.choice((b"\0", b"\0", b"", b"\0token\0", b"T\0"))
        size = len(body) if random.random() < 0.95 else random.choice((0, 4096, 4097, 1 << 31))
        kind = random.randrange(24) if random.random() < 0.95 else random.getrandbits(32)
        transaction = random.choice((0, 0, 0, 1, 2, 7))
        messages += struct.pack("<4I", kind, n, transaction, size) + body
    xenstore = world.windows["xenstore"]
    made: list[Step] = []
    produced = 0
    for start in range(0, min(len(messages), 4096), 1024):
        piece = messages[start : start + 1024]
        if random.random() < 0.05:
            produced += random.choice((1, 1024, 1025, 1 << 31))
        produced += len(piece)
        indices = struct.pack("<II", 0, produced & 0xFFFFFFFF)
        ring = [[xenstore, piece.hex()], [xenstore + XS_REQ_CONS, indices.hex()]]
        made.append({"kind": "time", "ns": 0, "data": ring})
        produced = 0
    if random.random() < 0.7:  # room for the answers
        empty = [[xenstore + XS_REQ_CONS + 8, bytes(8).hex()]]
        made.append({"kind": "time", "ns": 0, "data": empty})
    return made


def _fifo(steps: Steps) -> list[Step]:
    """The FIFO ABI, with ports of each kind, words that the guest unmasks, and events."""
    values, random, world = steps.values, steps.random, steps.world
    pages = [world.arena + (random.randrange(world.arena_pages) << PAGE_SHIFT) for _ in range(2)]
    control, array = (values.own_frame(page) for page in pages)
    made = [
        _event(steps, 11, struct.pack("<QIIB7x", control, 0, random.randrange(2), 0)),
        _event(steps, 12, struct.pack("<Q", array)),
    ]
    made += [_event(steps, 7, struct.pack("<II", random.randrange(2), 0)) for _ in range(3)]
    made.append(_event(steps, 6, struct.pack("<HHI", DOMID_SELF, DOMID_SELF, 0)))
    for _ in range(random.randrange(1, 12)):
        port = random.randrange(8)
        kind = random.randrange(6)
        if kind == 0:
            word = struct.pack("<I", random.choice((0, 1 << 30, 1 << 31, 1 << 29, 5 | 1 << 29)))
            store: Step = {"kind": "time", "ns": 0, "data": [[pages[1] + 4 * port, word.hex()]]}
            made.append(store)
        else:
            command, more = random.choice(((4, 0), (4, 0), (4, 0), (9, 0), (13, 3), (8, 1), (3, 0)))
            made.append(_event(steps, command, struct.pack("<II", port, more)))
    return made


def _event(steps: Steps, command: int, data: bytes) -> Step:
    where = steps.values.put(data)
    return _call(Nr.event_channel_op, [command, where], steps.values.data)


def _exchange(steps: Steps) -> list[Step]:
    """Give pages that nothing maps for others."""
    values, random, world = steps.values, steps.random, steps.world
    n = random.choice((1, 2, 4))
    pages = [world.arena + (k << PAGE_SHIFT) for k in random.sample(range(world.arena_pages), n)]
    frames = [values.frame_at(page) for page in pages]
    nothing = [0] if values.wide else [0, 0]
    made: list[Step] = [
        {"kind": "call", "number": int(Nr.update_va_mapping), "args": [page, *nothing, 2]}
        for page in pages
    ]
    order = random.choice((0, 0, 1)) if n > 1 else 0
    halves = []
    for extents, extent_order in ((n, 0), (n >> order, order)):
        where = values.words(frames)
        half = xen_memory_reservation(where, extents, extent_order, 0, DOMID_SELF)
        halves.append(half.pack(values.width))
    where = values.put(xen_memory_exchange(halves[0], halves[1], 0).pack(values.width))
    made.append(_call(Nr.memory_op, [XENMEM_exchange, where], values.data))
    if random.random() < 0.5:
        entry = frames[0] << PAGE_SHIFT | P | RW | US
        split = [entry] if values.wide else [entry & 0xFFFFFFFF, entry >> 32]
        args = [pages[0], *split, 2]
        made.append({"kind": "call", "number": int(Nr.update_va_mapping), "args": args})
    return made


def _use_table(steps: Steps, mfn: int, level: int) -> list[Step]:
    values, random = steps.values, steps.random
    use = random.random()
    if use < 0.5:
        return [_mmuext(steps, PINS[level], mfn, 0)]
    if use < 0.65:
        return [_mmuext(steps, random.choice((5, 15)), mfn, 0)]
    parents = _tables(steps, level + 1) or [mfn]
    index = random.choice((0, 3, 5, 255, 300, 510))
    at = random.choice(parents) << PAGE_SHIFT | index << 3
    where = values.put(mmu_update(at, mfn << PAGE_SHIFT | P | RW | US).pack(8))
    return [_call(Nr.mmu_update, [where, 1, 0, DOMID_SELF], values.data)]


def _tables(steps: Steps, level: int) -> list[int]:
    frames = steps.world.current.domain.frames
    return [mfn for mfn in steps.values.tables if LEVELS.get(frames.type[mfn]) == level]


def _entries(steps: Steps, level: int, mfn: int) -> bytes:
    """A page of entries that may well be valid."""
    random, values = steps.random, steps.values
    entries = [0] * 512
    below = _tables(steps, level - 1)
    same = _tables(steps, level)
    for _ in range(random.choice((0, 1, 3, 10))):
        index = random.choice((0, 1, 2, 3, 255, 256, 300, 511, random.randrange(512)))
        if level == 1:
            data = values.frame_at(values.world.arena + (random.randrange(24) << PAGE_SHIFT))
            target = random.choice((data, data, data, values.frame()))
            entries[index] = target << PAGE_SHIFT | random.choice((P | RW | US, P | US, P | RW))
        else:
            group = random.choice((below, below, below, same, [mfn])) or [mfn]
            bits = random.choice((P | RW | US, P | US)) if values.wide else P
            entries[index] = random.choice(group) << PAGE_SHIFT | bits
        if values.rarely():
            entries[index] = values.entry()
    if level == 3 and not values.wide and random.random() < 0.8:  # it needs the L2 with Xen's slots
        root = values.world.current.cpu.cr3 >> PAGE_SHIFT
        entries[3] = values.world.current.domain.memory.words[root << 9 | 3]
        entries[4:] = [0] * 508
    return struct.pack("<512Q", *(entry & (1 << 64) - 1 for entry in entries))


def _descriptors(steps: Steps) -> bytes:
    values, random = steps.values, steps.random
    some = [0] + [values.descriptor() for _ in range(random.randrange(1, 9))]
    return struct.pack(f"<{len(some)}Q", *some).ljust(4096, b"\0")


def _mmuext(steps: Steps, command: int, arg1: int, arg2: int) -> Step:
    values = steps.values
    where = values.put(mmuext_op(command, arg1, arg2).pack(values.width))
    return _call(Nr.mmuext_op, [where, 1, 0, DOMID_SELF], values.data)


def _call(number: int, args: list[int], data: list[list[Any]]) -> Step:
    """A hypercall that takes what the step's data are so far."""
    taken = list(data)
    data.clear()
    return {"kind": "call", "number": int(number), "args": args, "data": taken}
