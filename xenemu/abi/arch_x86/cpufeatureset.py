"""The CPU features that the modelled host has, and the kinds of guest that Xen offers them to.

A featureset is an array of 32-bit words, each the register of a CPUID leaf, or of an MSR.

Header: public/arch-x86/cpufeatureset.h
"""

from __future__ import annotations

from enum import Enum

WORD_1D, WORD_1C, WORD_E1D, WORD_E1C, WORD_DA1, WORD_7B0, WORD_7C0, WORD_E7D = range(8)
WORD_7D0 = 9
WORD_ARCH_CAPS, WORD_ARCH_CAPS_HIGH = 16, 17  # of MSR_ARCH_CAPABILITIES


class Feature(Enum):
    """A bit of a word, and its marks.

    ``A``: Xen offers it to all guests. ``S``: to HVM guests. ``H``: to HVM guests with paging by
    the hardware, and all of ours are such. ``!``: Xen decides by itself.
    """

    FPU = WORD_1D, 0, "A"
    DE = WORD_1D, 2, "A"
    PSE = WORD_1D, 3, "S"
    TSC = WORD_1D, 4, "A"
    MSR = WORD_1D, 5, "A"
    PAE = WORD_1D, 6, "A"
    MCE = WORD_1D, 7, "A"
    CX8 = WORD_1D, 8, "A"
    APIC = WORD_1D, 9, "!A"
    SEP = WORD_1D, 11, "A"
    MTRR = WORD_1D, 12, "S"
    PGE = WORD_1D, 13, "S"
    MCA = WORD_1D, 14, "A"
    CMOV = WORD_1D, 15, "A"
    PAT = WORD_1D, 16, "A"
    PSE36 = WORD_1D, 17, "S"
    CLFLUSH = WORD_1D, 19, "A"
    MMX = WORD_1D, 23, "A"
    FXSR = WORD_1D, 24, "A"
    SSE = WORD_1D, 25, "A"
    SSE2 = WORD_1D, 26, "A"
    HTT = WORD_1D, 28, "!A"

    SSE3 = WORD_1C, 0, "A"
    PCLMULQDQ = WORD_1C, 1, "A"
    SSSE3 = WORD_1C, 9, "A"
    CX16 = WORD_1C, 13, "A"
    SSE4_1 = WORD_1C, 19, "A"
    SSE4_2 = WORD_1C, 20, "A"
    X2APIC = WORD_1C, 21, "!S"
    MOVBE = WORD_1C, 22, "A"
    POPCNT = WORD_1C, 23, "A"
    AESNI = WORD_1C, 25, "A"
    RDRAND = WORD_1C, 30, "!A"
    HYPERVISOR = WORD_1C, 31, "!A"

    SYSCALL = WORD_E1D, 11, "A"
    NX = WORD_E1D, 20, "A"
    PAGE1GB = WORD_E1D, 26, "H"
    RDTSCP = WORD_E1D, 27, "A"
    LM = WORD_E1D, 29, "A"

    LAHF_LM = WORD_E1C, 0, "A"

    FSGSBASE = WORD_7B0, 0, "A"
    RDSEED = WORD_7B0, 18, "A"

    ARCH_CAPS = WORD_7D0, 29, "!A"

    INTEL_SSB_NO = WORD_ARCH_CAPS, 4, "A"
    MDS_NO = WORD_ARCH_CAPS, 5, "A"
    IF_PSCHANGE_MC_NO = WORD_ARCH_CAPS, 6, "A"
    TAA_NO = WORD_ARCH_CAPS, 8, "A"
    SBDR_SSDP_NO = WORD_ARCH_CAPS, 13, "A"
    FBSDP_NO = WORD_ARCH_CAPS, 14, "A"
    PSDP_NO = WORD_ARCH_CAPS, 15, "A"
    BHI_NO = WORD_ARCH_CAPS, 20, "A"
    PBRSB_NO = WORD_ARCH_CAPS, 24, "A"
    GDS_NO = WORD_ARCH_CAPS, 26, "A"
    RFDS_NO = WORD_ARCH_CAPS, 27, "A"
    ITS_NO = WORD_ARCH_CAPS_HIGH, 30, "!A"

    @property
    def word(self) -> int:
        return self.value[0]

    @property
    def bit(self) -> int:
        return self.value[1]

    @property
    def marks(self) -> str:
        return self.value[2]


def word_of(features: frozenset[Feature], word: int) -> int:
    """A word of a featureset, as the register has it."""
    return sum(1 << feature.bit for feature in features if feature.word == word)
