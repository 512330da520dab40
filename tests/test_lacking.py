"""lacking: which feature an undefined instruction would have needed."""

from __future__ import annotations

from xenemu.hv.cpu import Undefined
from xenemu.lacking import lacking_feature, undefined_lines


def found(code: str, bits: int = 64) -> tuple[str, str] | None:
    return lacking_feature(Undefined(0x1000, bits, bytes.fromhex(code)))


def test_features_by_their_instructions():
    for code, bits, text, feature in (
        ("c5e858d9", 64, "vaddps %xmm1, %xmm2, %xmm3", "AVX"),
        ("c5e858d9", 32, "vaddps %xmm1, %xmm2, %xmm3", "AVX"),
        ("c5edfed9", 64, "vpaddd %ymm1, %ymm2, %ymm3", "AVX2"),
        ("c5f877", 64, "vzeroupper", "AVX"),
        ("62f16c4858d9", 64, "vaddps %zmm1, %zmm2, %zmm3", "AVX-512"),
        ("c4e26db8d9", 64, "vfmadd231ps %ymm1, %ymm2, %ymm3", "FMA"),
        ("c4e27d13d1", 64, "vcvtph2ps %xmm1, %ymm2", "F16C"),
        ("c4e2e0f2c8", 64, "andnq %rax, %rbx, %rcx", "BMI1"),
        ("c4e2fbf6c8", 64, "mulxq %rax, %rax, %rcx", "BMI2"),
        ("660f38f6c1", 64, "adcxl %ecx, %eax", "ADX"),
        ("0f38c8d1", 64, "sha1nexte %xmm1, %xmm2", "SHA"),
        ("0f01d0", 64, "xgetbv", "XSAVE"),
        ("0fc720", 64, "xsavec (%rax)", "XSAVE"),
        ("f30fc7f8", 64, "rdpid %rax", "RDPID"),
        ("660fae38", 64, "clflushopt (%rax)", "CLFLUSHOPT"),
    ):
        assert found(code, bits) == (text, feature)


def test_what_is_undefined_for_another_reason():
    for code in ("0f0b", "0f", "", "f3480faec0", "0f01c1", "06", "4889e5"):
        assert found(code) is None, code


def test_a_person_is_told():
    told = undefined_lines(Undefined(0x401136, 64, bytes.fromhex("c5e858d9")), "main+0x6")
    assert told[0] == "main+0x6: vaddps %xmm1, %xmm2, %xmm3"
    assert told[1].startswith("the instruction is AVX: ")
    assert undefined_lines(Undefined(0, 64, b"\x0f\x0b"), "0x0") == []
