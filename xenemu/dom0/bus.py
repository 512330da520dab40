"""The xenbus: how a backend and the frontend in the guest find each other through the xenstore.

A device has a directory for each end. The toolstack makes both (`plug`), as libxl does:

* ``/local/domain/DOMID/device/KIND/DEVID`` is the frontend's own; dom0 may read it.
* ``/local/domain/0/backend/KIND/DOMID/DEVID`` is dom0's; the frontend may read it.

Each end tells its `XenbusState` in its ``state``. The backend watches the frontend's. An event of
the watch is looked at when the timer WATCH_FIRED is due. `Store.wake` sets it at the instant of the
write, so nothing polls.

A backend is a class derived from `BusBackend`. Its methods `probe`, `open`, `shut`, `event` and
`due` have all that is its own.

Header: public/io/xenbus.h
In Xen: tools/libs/light/libxl_device.c; Linux's drivers/xen/xenbus/xenbus_probe_backend.c and
xenbus_client.c, and the functions frontend_changed of its backends
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import field
from typing import ClassVar, Final

from xenemu.abi.errno import EINVAL
from xenemu.abi.io.xenbus import XenbusState
from xenemu.dom0.ring import Pages, map_pages, unmap_pages
from xenemu.dom0.xenstore_model import Access, Connection, Permission
from xenemu.dom0.xenstore_tree import WATCH_FIRED, Store
from xenemu.errors import XenError
from xenemu.hv import event_channel
from xenemu.hv.state.domain import Domain
from xenemu.records import dataclass

TOKEN: Final = b"frontend"
NUMBER: Final = re.compile(rb"\s*([+-]?[0-9]+)")


@dataclass
class BusBackend:
    """A device of one domain's: its nodes, its state, and what it has of the guest's.

    All fields are plain data, which `save` keeps, apart from the store.

    * `later`: the domain does not have it at first, but may get it by `insert`.
    * `is_plugged`: the domain has it now; `is_leaving`: the toolstack wants it back.
    * `gone` is True once the frontend has removed itself.
    * `reason` says what the backend has against the frontend.
    """

    kind: ClassVar[str]  # as in the paths, such as "vbd"
    calls: ClassVar[Sequence[str]] = ()  # the host's system calls that it makes while guests run
    not_state: ClassVar[Sequence[str]] = ("store", "connection")  # what is saved elsewhere

    devid: int
    later: bool = field(default=False, kw_only=True)
    is_plugged: bool = field(default=False, init=False)
    is_leaving: bool = field(default=False, init=False)
    domid: int = field(default=0, init=False)
    store: Store = field(init=False, repr=False)  # from `plug` on
    connection: Connection = field(init=False, repr=False)
    state: XenbusState = field(default=XenbusState.INITIALISING, init=False)
    gone: bool = field(default=False, init=False)
    reason: str = field(default="", init=False)
    shared: list[Pages] = field(default_factory=list, init=False)
    ports: list[int] = field(default_factory=list, init=False)  # dom0's

    # What a backend may have of its own.

    def frontend_nodes(self) -> Mapping[str, str | int]:
        """What libxl writes for the frontend, besides what each has."""
        return {}

    def backend_nodes(self) -> Mapping[str, str | int]:
        """What libxl and its scripts write for the backend, besides what each has."""
        return {}

    def probe(self, domain: Domain) -> None:
        """Write what a frontend must know before it begins."""

    def open(self, domain: Domain) -> None:
        """Take what the frontend has put into its directory, and write what it must know then.

        XenError: it cannot be used, with the words of Linux's xenbus_dev_fatal. Pages and ports are
        given back in any case.
        """
        raise NotImplementedError

    def shut(self, domain: Domain) -> None:
        """Forget the frontend: stop, and give back what is held beside `shared` and `ports`."""

    def event(self, domain: Domain, port: int) -> None:
        """The guest sent an event to one of `ports`, at `domain.timers.asked_ns`."""

    def due(self, domain: Domain, number: int, now_ns: int) -> None:
        """A timer is due that was set as `(name, number)`, with a number above WATCH_FIRED."""
        raise ValueError(f"{self.name} has set no timer {number}")

    def own_handles(self) -> Iterator[int]:
        """The mappings beside `shared`, for the audit."""
        yield from ()

    def leave_if(self, leaves: Callable[[], bool]) -> None:
        """If it waits for something outside, it does so no longer once `leaves` says True."""

    # What they can use.

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.devid}"

    @property
    def label(self) -> str:
        """What a person calls it."""
        return self.name

    @property
    def frontend(self) -> str:
        """The frontend's directory."""
        return f"/local/domain/{self.domid}/device/{self.kind}/{self.devid}"

    @property
    def nodename(self) -> str:
        """The backend's directory, as dom0 names it."""
        return f"backend/{self.kind}/{self.domid}/{self.devid}"

    @property
    def backend(self) -> str:
        """The backend's directory."""
        return f"/local/domain/0/{self.nodename}"

    def read(self, name: str) -> bytes | None:
        """A node in the frontend's directory, or None; `name` may have slashes."""
        try:
            return self.store.read(self.connection, f"{self.frontend}/{name}")
        except XenError:
            return None

    def read_number(self, name: str, default: int | None = None) -> int:
        """A node of the frontend's that is a number of 32 bits, with junk after it at most.

        EINVAL if it is none, and there is no default.
        """
        match = NUMBER.match(self.read(name) or b"")
        if match:
            return int(match[1]) & 0xFFFF_FFFF
        if default is None:
            raise XenError(EINVAL, f"reading {self.frontend}/{name}")
        return default

    def write(self, name: str, value: str | int) -> None:
        """Write a node in the backend's directory."""
        self.store.write(self.connection, f"{self.backend}/{name}", str(value).encode())

    def map_pages(self, domain: Domain, refs: Sequence[int]) -> Pages:
        """Map pages until the frontend is forgotten; EINVAL."""
        pages = map_pages(domain, refs)
        self.shared.append(pages)
        return pages

    def bind(self, domain: Domain, port: int, delay_ns: int | None = None) -> int:
        """Bind a new port of dom0's to one of the guest's until the frontend is forgotten; EINVAL.

        Once connected, the backend gets an event on each, since those before were lost. `delay_ns`
        is as for `event_channel.bind_from_dom0`.
        """
        bound = event_channel.bind_from_dom0(domain, port, self.name, delay_ns)
        self.ports.append(bound)
        return bound

    def tell(self, domain: Domain, port: int) -> None:
        """Send the guest an event from one of `ports`."""
        event_channel.notify_from_dom0(domain, port)

    def complain(self, domain: Domain, error: XenError) -> None:
        """Write down what is wrong, where dom0's administrator and a report look for it.

        xenbus_dev_error
        """
        self.reason = error.reason
        message = f"{error.errno} {error.reason}".encode()
        self.store.write(self.connection, f"/local/domain/0/error/{self.nodename}/error", message)
        domain.refusals.append(f"{self.name}: {error.reason}")

    # The life of a device.

    def plug(self, store: Store, domain: Domain) -> None:
        """Belong to a new domain, with nodes in the store, unless that is for later."""
        self.store, self.domid = store, domain.domid
        self.connection = store.connect(0, self.name)
        if not self.later:
            self._make_nodes()

    def insert(self, domain: Domain) -> None:
        """Plug it into a domain that runs, which does not have it now."""
        self.gone, self.reason, self.state = False, "", XenbusState.INITIALISING
        self._make_nodes()
        self.connect(domain)

    def ask_back(self) -> None:
        """Ask the frontend to close, so that the device can be removed.

        libxl__initiate_device_generic_remove
        """
        self.is_leaving = True
        self.write("online", 0)
        self.write("state", XenbusState.CLOSING.value)

    def remove(self, domain: Domain) -> None:
        """Take it from the domain, whatever the frontend does; its nodes go.

        libxl__device_destroy
        """
        self._forget(domain)
        self.store.unwatch(self.connection, f"{self.frontend}/state", TOKEN)
        self._take_events()
        for path in (self.frontend, self.backend):
            with suppress(XenError):  # it is gone, with those above it
                self.store.rm(self.connection, path)
        self.state, self.is_plugged, self.is_leaving = XenbusState.CLOSED, False, False
        self.store.wake(domain)

    def _make_nodes(self) -> None:
        """Make the nodes of both ends, as libxl__device_generic_add does."""
        store = self.store
        self.is_plugged = True
        frontend = {
            "backend": self.backend,
            "backend-id": 0,
            "state": XenbusState.INITIALISING.value,
            **self.frontend_nodes(),
        }
        backend = {
            "frontend": self.frontend,
            "frontend-id": self.domid,
            "online": 1,
            "state": XenbusState.INITIALISING.value,
            **self.backend_nodes(),
            "hotplug-status": "connected",  # by the script that libxl starts
        }
        for path, nodes, owner, reader in (
            (self.frontend, frontend, self.domid, 0),
            (self.backend, backend, 0, self.domid),
        ):
            store.mkdir(self.connection, path)
            permissions = (Permission(owner, Access.NONE), Permission(reader, Access.READ))
            store.set_perms(self.connection, path, permissions)
            for name, value in nodes.items():
                store.write(self.connection, f"{path}/{name}", str(value).encode())

    def connect(self, domain: Domain) -> None:
        """The driver in dom0 finds the device, if the domain has it."""
        if not self.is_plugged:
            return
        self.store.watch(self.connection, f"{self.frontend}/state", TOKEN)
        self._take_events()
        self.probe(domain)
        self._switch(domain, XenbusState.INIT_WAIT)

    def disconnect(self, domain: Domain) -> None:
        """The device is taken away from the guest, whatever its frontend is doing."""
        self._forget(domain)
        self.store.disconnect(self.connection)
        domain.timers.cancel((self.name, WATCH_FIRED))
        self.later, self.is_plugged, self.is_leaving = not self.is_plugged, False, False
        self.state, self.gone, self.reason = XenbusState.INITIALISING, False, ""

    def notify(self, domain: Domain, port: int) -> None:
        self.event(domain, port)

    def timer(self, domain: Domain, number: int, now_ns: int) -> None:
        domain.timers.asked_ns = now_ns
        if number != WATCH_FIRED:
            self.due(domain, number, now_ns)
        elif self._take_events() and not self.gone:
            self._follow(domain, self.read_number("state", XenbusState.UNKNOWN))

    def pump(self, domain: Domain) -> None:
        """All that happens to it comes as an event or a timer."""

    def _take_events(self) -> bool:
        """Take what the watch has told, and whether there was anything."""
        events = [*self.connection.events]
        self.connection.events.clear()
        for event in events:
            self.connection.delivered(event)
        return bool(events)

    def _follow(self, domain: Domain, frontend_state: int) -> None:
        """Do what the frontend's state asks for: frontend_changed in Linux's backends."""
        match frontend_state:
            case XenbusState.INITIALISING:
                if self.state == XenbusState.CLOSED:
                    self._switch(domain, XenbusState.INIT_WAIT)
            case XenbusState.INITIALISED | XenbusState.CONNECTED:
                if self.state != XenbusState.CONNECTED:
                    self._open(domain)
            case XenbusState.CLOSING:
                self._switch(domain, XenbusState.CLOSING)
            case XenbusState.CLOSED:
                self._forget(domain)
                self._switch(domain, XenbusState.CLOSED)
                self.gone = self.is_leaving  # it is not online: the device is unregistered
            case XenbusState.UNKNOWN:  # it is not there: the device is unregistered
                self._forget(domain)
                self._switch(domain, XenbusState.CLOSED)
                self.gone = True
            case _:
                self.fail(domain, XenError(EINVAL, f"saw state {frontend_state} at frontend"))

    def _open(self, domain: Domain) -> None:
        self._forget(domain)
        try:
            self.open(domain)
        except XenError as error:
            self._forget(domain)
            self.fail(domain, error)
            return
        self._switch(domain, XenbusState.CONNECTED)
        for port in list(self.ports):  # Xen raises an event on each end that is bound
            self.event(domain, port)

    def fail(self, domain: Domain, error: XenError) -> None:
        """Complain, and have the frontend close: xenbus_dev_fatal."""
        self.complain(domain, error)
        self._switch(domain, XenbusState.CLOSING)

    def _forget(self, domain: Domain) -> None:
        """Give back all that there is of the frontend's."""
        self.shut(domain)
        for port in self.ports:
            event_channel.close_from_dom0(domain, port)
        for pages in self.shared:
            unmap_pages(domain, pages)
        self.ports.clear()
        self.shared.clear()

    def _switch(self, domain: Domain, state: XenbusState) -> None:
        """Tell the frontend a new state: xenbus_switch_state."""
        if state != self.state:
            self.state = state
            self.write("state", state.value)
        self.store.wake(domain)

    # For the audit and for snapshots.

    def held(self, domain: Domain) -> Iterator[int]:
        for pages in self.shared:
            yield from pages.handles
        yield from self.own_handles()

    def check(self, domain: Domain) -> Iterator[str]:
        """The store says what state it is in, and its ports are its own."""
        if not self.is_plugged:
            return
        said = None
        with suppress(XenError):  # somebody has removed it
            said = self.store.read(self.connection, f"{self.backend}/state")
        asked = {self.state, XenbusState.CLOSING} if self.is_leaving else {self.state}
        if said not in [str(state.value).encode() for state in asked]:
            yield f"{self.name} is in state {self.state}, and the xenstore has {said!r}"
        ports = domain.events.dom0_ports
        own = [port for port, end in ports.items() if end.backend == self.name]
        if sorted(own) != sorted(self.ports):
            yield f"{self.name} knows of dom0's ports {self.ports}, and has {own}"

    def save(self) -> object:
        own = {name: value for name, value in vars(self).items() if name not in self.not_state}
        return copy.deepcopy(own)

    def restore(self, state: object) -> None:
        assert isinstance(state, dict)
        vars(self).update(copy.deepcopy(state))
