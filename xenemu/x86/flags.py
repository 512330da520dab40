"""RFLAGS bits, exception vectors, and which of them push an error code.

Intel SDM volume 1, "EFLAGS Register"; volume 3, "Exception and Interrupt Reference".
"""

from __future__ import annotations

CF = 1 << 0
FIXED = 1 << 1
PF = 1 << 2
AF = 1 << 4
ZF = 1 << 6
SF = 1 << 7
TF = 1 << 8
IF = 1 << 9
DF = 1 << 10
OF = 1 << 11
IOPL = 3 << 12
IOPL_SHIFT = 12
NT = 1 << 14
RF = 1 << 16
VM = 1 << 17
AC = 1 << 18
VIF = 1 << 19
VIP = 1 << 20
ID = 1 << 21
ARITHMETIC = CF | PF | AF | ZF | SF | OF
ALL = 0x3F7FD7

DE, DB, NMI, BP, OF_TRAP, BR, UD, NM, DF_FAULT = range(9)
TS, NP, SS, GP, PAGE_FAULT = 10, 11, 12, 13, 14
MF, AC_FAULT, MC, XM = 16, 17, 18, 19

HAS_ERROR_CODE = frozenset({DF_FAULT, TS, NP, SS, GP, PAGE_FAULT, AC_FAULT})
VECTOR_NAMES = {
    DE: "#DE",
    DB: "#DB",
    NMI: "NMI",
    BP: "#BP",
    OF_TRAP: "#OF",
    BR: "#BR",
    UD: "#UD",
    NM: "#NM",
    DF_FAULT: "#DF",
    TS: "#TS",
    NP: "#NP",
    SS: "#SS",
    GP: "#GP",
    PAGE_FAULT: "#PF",
    MF: "#MF",
    AC_FAULT: "#AC",
    MC: "#MC",
    XM: "#XM",
}


def vector_name(vector: int) -> str:
    """``#PF`` for 14, and so on; ``vector 0x80`` for others."""
    return VECTOR_NAMES.get(vector, f"vector {vector:#x}")
