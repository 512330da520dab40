"""What a guest's configuration for xl means to `xenemu run`: a kernel, options, and remarks.

Each key that has a meaning here becomes an option of `xenemu run`, as if it stood on the command
line before those that a person typed: so theirs win. `KEYS` has a function for each such key. For
any other key there is a remark, with its line.

In Xen: xl.cfg(5), tools/xl/xl_parse.c
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import field
from pathlib import Path
from typing import Final, NoReturn
from uuid import UUID

from xenemu.errors import UsageError
from xenemu.records import dataclass
from xenemu.xl.disk import parse_disk
from xenemu.xl.syntax import Setting, parse

LONGEST: Final = 1 << 20  # bytes of a file
BEGINNING: Final = 64 << 10  # of a file, by which it is told from a kernel
STATEMENT: Final = re.compile(r"^[ \t]*[a-z][_0-9a-z]*[ \t]*\+?=", re.MULTILINE)
TYPES: Final = ("pv", "pvh", "hvm")
# What a domain's end can lead to.
ENDS: Final = ("on_poweroff", "on_reboot", "on_watchdog", "on_crash", "on_soft_reset")
OPTIONS: Final = {  # where a parameter is not its option's name
    "mode": "--entry",
    **{name: f"--{name.replace('_', '-')}" for name in ENDS},
}
ACTIONS: Final = (
    "destroy", "restart", "rename-restart", "preserve", "coredump-destroy", "coredump-restart",
    "soft-reset",
)  # fmt: skip
# The keys of xl.cfg(5) that xenemu has no counterpart for, by the reason.
WITHOUT_EFFECT: Final = {
    reason: names.split()
    for reason, names in {
        "xenemu has no security modules": "seclabel init_seclabel device_model_stubdomain_seclabel",
        "the guest has the one CPU, and nobody to share it with": "cpus cpus_soft cpu_weight cap"
        " pool vnuma",
        "the host's devices stay with the host": "pci pci_permissive pci_msitranslate pci_seize"
        " pci_power_mgmt dtdev ioports iomem irqs rdm rdm_mem_boundary gfx_passthru passthrough"
        " usbctrl usbdev e820_host",
        "there is no such device": "vfb vkb vtpm channel pvcalls vdispl vsnd viridian vuart"
        " vga stdvga videoram serial usb usbdevice soundhw vnc vnclisten vncpasswd vncdisplay"
        " vncunused sdl opengl keymap nographic spice boot hdtype hpet vendor_device"
        " xen_platform_pci acpi_s3 acpi_s4 acpi_laptop_slate acpi_firmware smbios_firmware",
        "a PVH guest has what Xen 4.17 gives one": "acpi apic pae nx hap oos nestedhvm altp2m"
        " altp2mhvm shadow_memory timer_mode vpt_align mca_caps msr_relaxed ms_vm_genid vpmu",
        "there is no device model": "device_model_version device_model_override"
        " device_model_args device_model_args_pv device_model_args_hvm device_model_user"
        " device_model_stubdomain_override dm_restrict stubdomain_memory stubdomain_kernel"
        " stubdomain_ramdisk stubdomain_cmdline bios bios_path_override mmio_hole",
        "xenemu gives as much as the guest asks for": "max_grant_frames max_maptrack_frames"
        " max_event_channels vmtrace_buf_kb",
        "the guest's clock begins at a fixed time": "localtime rtc_timeoffset tsc_mode",
        "a run is one domain, and stays": "nomigrate driver_domain xend_suspend_evtchn_compat",
    }.items()
}  # fmt: skip
VIF_PARTS: Final = (  # xl-network-configuration(5)
    "mac", "bridge", "gatewaydev", "type", "model", "vifname", "script", "ip", "backend", "rate",
    "devid", "mtu", "trusted", "network",
)  # fmt: skip
P9_PARTS: Final = ("tag", "security_model", "path", "backend")
REASONS: Final = {name: reason for reason, names in WITHOUT_EFFECT.items() for name in names}


@dataclass(frozen=True)
class Note:
    """A remark on a line: what has no effect here, or another than with xl."""

    line: int
    text: str


@dataclass
class Config:
    """What a file says: options are by the name of their parameter, such as ``memory``."""

    file: str
    kernel: Path = Path()
    options: dict[str, list[str]] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)

    def arguments(self, typed: Mapping[str, object]) -> list[str]:
        """The options, as on a command line, but for those that `typed` ones replace.

        A typed disk replaces the one of the same name only.
        """
        gone = set(typed) - {"disk"}
        if gone & {"initrd", "init", "rootfs", "busybox"}:
            gone.add("initrd")  # one ramdisk, however it is given
        disks = typed.get("disk")
        named = {_name_of(text) for text in disks} if isinstance(disks, list) else set()
        return [
            word
            for name, values in self.options.items()
            if name not in gone
            for value in values
            if name != "disk" or _name_of(value) not in named
            for word in (OPTIONS.get(name, f"--{name}"), value)
        ]


def is_config(path: Path) -> bool:
    """Whether a file is text that sets something, and so no kernel. A pipe is not looked at."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            data = file.read(BEGINNING)
    except OSError:
        return False  # whoever loads it says so
    if b"\0" in data or data.startswith(b"#!"):
        return False
    return STATEMENT.search(data.decode(errors="replace")) is not None


def read_config(path: Path) -> Config:
    """Read a file; UsageError says what is wrong, and on which line."""
    try:
        with path.open("rb") as file:
            data = file.read(LONGEST + 1)
        text = data.decode()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not UTF-8") from None
    if len(data) > LONGEST:
        raise UsageError(f"{path}: more than 1 MiB, so no guest's configuration")
    return _Reader(str(path), parse(str(path), text)).read()


class _Reader:
    """Gives each setting its meaning."""

    def __init__(self, file: str, settings: dict[str, Setting]) -> None:
        self.file, self.settings = file, settings
        self.config = Config(file)

    def read(self) -> Config:
        for name, setting in self.settings.items():
            try:
                if name in KEYS:
                    KEYS[name](self, name, setting)
                else:
                    self.remark(name, _why_without_effect(name))
            except ValueError as error:
                self.fail(name, str(error))
        self.config.options.setdefault("mode", ["pv"])  # as xl has it
        self.join_cmdline()
        if self.config.kernel == Path():
            raise UsageError(
                f"{self.file}: it names no kernel; xenemu has no BIOS and reads no boot loader's"
                " files: give kernel=, which may be a GRUB for Xen"
            )
        self.config.notes.sort(key=lambda note: note.line)
        return self.config

    def fail(self, name: str, problem: str) -> NoReturn:
        raise UsageError(f"{self.file}:{self.settings[name].line}: {name}: {problem}")

    def remark(self, name: str, text: str) -> None:
        self.config.notes.append(Note(self.settings[name].line, f"{name}: {text}"))

    def option(self, name: str, value: str) -> None:
        self.config.options.setdefault(name, []).append(value)

    def string(self, name: str) -> str:
        """A string that is set; empty if it is not."""
        return _string(self.settings[name]) if name in self.settings else ""

    # What each key means.

    def kernel(self, name: str, setting: Setting) -> None:
        self.config.kernel = Path(_string(setting))

    def type(self, name: str, setting: Setting) -> None:
        wanted = _string(setting)
        if wanted not in TYPES:
            raise ValueError(f"{wanted!r}: give one of {', '.join(TYPES)}")
        if wanted == "hvm":
            raise ValueError(
                "hvm: xenemu emulates no PC; Linux and others of today also boot as pvh"
            )
        self.option("mode", wanted)

    def pvh(self, name: str, setting: Setting) -> None:
        if _number(setting):
            self.option("mode", "pvh")

    def builder(self, name: str, setting: Setting) -> None:
        if "type" in self.settings:
            self.remark(name, "type says it, too, and wins")
        elif _string(setting) == "hvm":
            raise ValueError('hvm: xenemu emulates no PC; type = "pvh" may do')

    def text(self, name: str, setting: Setting) -> None:
        self.option({"ramdisk": "initrd"}.get(name, name), _string(setting))

    def uuid(self, name: str, setting: Setting) -> None:
        try:
            self.option(name, str(UUID(_string(setting))))
        except ValueError:
            raise ValueError(f"{_string(setting)}: this is no UUID") from None

    def memory(self, name: str, setting: Setting) -> None:
        self.option(name, f"{_number(setting)}M")

    def maxmem(self, name: str, setting: Setting) -> None:
        least = self.settings.get("memory")
        if least is None:
            self.option("memory", f"{_number(setting)}M")
        elif _number(setting) != _number(least):
            self.option(name, f"{_number(setting)}M")

    def disks(self, name: str, setting: Setting) -> None:
        for text in _strings(setting):
            disk = parse_disk(text)
            if not disk.target:
                self.remark(name, f"{disk.vdev}: no effect: a drive without a medium")
                continue
            path = Path("/dev", disk.target)  # as with xl, which leaves an absolute path alone
            for problem, is_so in (
                (f"script={disk.script}: xenemu runs no program on this host", disk.script),
                (f"backend={disk.backend}: there is no domain but this one", disk.backend),
                ("xenemu takes no path with a comma in it", "," in disk.target),
                (f"{disk.format}: xenemu reads raw and qcow2; qemu-img convert makes either",
                 disk.format not in ("raw", "qcow2")),
            ):  # fmt: skip
                if is_so:
                    raise ValueError(f"{text}: {problem}")
            if not Path(disk.target).is_absolute() and Path(disk.target).is_file():
                self.remark(name, f"as with xl, {disk.target} is {path}; give a file's whole path")
            if disk.writable:
                keep = f"--disk {path},rw,name={disk.vdev}"
                self.remark(name, f"what the guest writes is gone after the run; {keep} keeps it")
            access = "overlay" if disk.writable else "ro"
            self.option("disk", f"{path},{access},name={disk.vdev},format={disk.format}")

    def vifs(self, name: str, setting: Setting) -> None:
        for text in _strings(setting):
            parts = dict(_pair(part, VIF_PARTS) for part in text.split(",") if part.strip())
            mac = f",mac={parts['mac']}" if "mac" in parts else ""
            self.option("net", f"none-but-pcap{mac}")
            self.remark(
                name,
                "nobody is at the other end of the guest's network; --net user"
                f"{mac} gives it this host's",
            )

    def shares(self, name: str, setting: Setting) -> None:
        for text in _strings(setting):
            parts = dict(_pair(part, P9_PARTS) for part in text.split(","))
            if parts.get("security_model", "none") != "none":
                raise ValueError(f"{text}: of security_models there is none")
            for part in ("tag", "path"):
                if not parts.get(part):
                    raise ValueError(f"{text}: it has no {part}")
            share = f"{parts['path']},tag={parts['tag']}"
            self.option("share", share)
            self.remark(name, f"the guest cannot write there; --share {share},rw lets it")

    def count(self, name: str, setting: Setting) -> None:
        self.option(name, str(_number(setting)))

    def end(self, name: str, setting: Setting) -> None:
        if _string(setting) not in ACTIONS:
            raise ValueError(f"{_string(setting)!r}: give one of {', '.join(ACTIONS)}")
        action = _string(setting).removeprefix("coredump-")
        if action != _string(setting):
            self.remark(name, f"as {action}; --core FILE keeps the guest's memory in the end")
        if action == "rename-restart":
            self.remark(name, "as restart: the domain that has ended is not kept")
            action = "restart"
        if action == "soft-reset" and name != "on_soft_reset":
            raise ValueError("soft-reset: only on_soft_reset can be this")
        self.config.options[name] = [action]

    def part_of_cmdline(self, name: str, setting: Setting) -> None:
        _string(setting)
        if name != "cmdline" and "cmdline" in self.settings:
            self.remark(name, "no effect: cmdline takes its place, as with xl")

    def no_loader(self, name: str, setting: Setting) -> None:
        if "kernel" not in self.settings:
            raise ValueError(
                "xenemu starts no program of the host's to find a kernel in a disk: give"
                " kernel=, which may be a GRUB for Xen"
            )
        self.remark(name, "no effect: there is a kernel")

    def pvshim(self, name: str, setting: Setting) -> None:
        self.remark(name, "no effect: the guest is a PV guest of xenemu's, and needs no shim")

    def join_cmdline(self) -> None:
        if "cmdline" in self.settings:
            self.option("cmdline", self.string("cmdline"))
            return
        root = self.string("root")
        words = [f"root={root}" if root else "", self.string("extra")]
        if any(words):
            self.option("cmdline", " ".join(filter(None, words)))


KEYS: Final[Mapping[str, Callable[[_Reader, str, Setting], None]]] = {
    "name": _Reader.text,
    "uuid": _Reader.uuid,
    "type": _Reader.type,
    "pvh": _Reader.pvh,
    "builder": _Reader.builder,
    "kernel": _Reader.kernel,
    "ramdisk": _Reader.text,
    "cmdline": _Reader.part_of_cmdline,
    "root": _Reader.part_of_cmdline,
    "extra": _Reader.part_of_cmdline,
    "memory": _Reader.memory,
    "maxmem": _Reader.maxmem,
    "vcpus": _Reader.count,
    "maxvcpus": _Reader.count,
    "disk": _Reader.disks,
    "vif": _Reader.vifs,
    "p9": _Reader.shares,
    "bootloader": _Reader.no_loader,
    "bootloader_args": _Reader.no_loader,
    "firmware": _Reader.no_loader,
    "firmware_override": _Reader.no_loader,
    "pvshim": _Reader.pvshim,
    "pvshim_path": _Reader.pvshim,
    "pvshim_cmdline": _Reader.pvshim,
    "pvshim_extra": _Reader.pvshim,
    **dict.fromkeys(ENDS, _Reader.end),
}


def _why_without_effect(name: str) -> str:
    if name in REASONS:
        return f"no effect: {REASONS[name]}"
    meant = difflib.get_close_matches(name, KEYS, 1)
    return f"no effect: xl knows no such key{f'; did you mean {meant[0]}?' if meant else ''}"


def _string(setting: Setting) -> str:
    if not isinstance(setting.value, str):
        raise ValueError("give a string, not a list")
    if "\0" in setting.value:
        raise ValueError("a string cannot have a NUL in it")
    return setting.value


def _strings(setting: Setting) -> Iterator[str]:
    if not isinstance(setting.value, list):
        raise ValueError('give a list: ["...", "..."]')
    yield from setting.value


def _pair(text: str, known: tuple[str, ...]) -> tuple[str, str]:
    """A part such as ``mac=00:16:3e:00:00:01``."""
    name, equals, value = text.strip().partition("=")
    if not equals or name not in known:
        raise ValueError(f"{text.strip()}: give name=value; there are {', '.join(known)}")
    return name, value


def _name_of(disk: object) -> str:
    """The name in the value of a --disk; empty if it has none."""
    words = [word for word in str(disk).split(",") if word.startswith("name=")]
    return words[0].removeprefix("name=") if words else str(disk)


def _number(setting: Setting) -> int:
    """A number as C's strtoul reads it, with 0x or a 0 before it; it may have quotes."""
    text = _string(setting)
    if not re.fullmatch(r"0x[0-9a-fA-F]{1,8}|[0-9]{1,10}", text, re.ASCII):
        raise ValueError(f"{text!r}: give a whole number")
    is_octal = re.fullmatch(r"0[0-7]+", text) is not None
    return int(text, 8 if is_octal else 0 if text.startswith("0x") else 10)
