"""x86/flags: RFLAGS and vectors."""

from __future__ import annotations

from xenemu.x86 import flags


def test_the_exceptions_with_an_error_code_are_those_of_the_sdm() -> None:
    assert sorted(flags.HAS_ERROR_CODE) == [8, 10, 11, 12, 13, 14, 17]


def test_all_known_flags_are_in_the_mask() -> None:
    names = "CF FIXED PF AF ZF SF TF IF DF OF IOPL NT RF VM AC VIF VIP ID"
    assert sum(getattr(flags, name) for name in names.split()) == flags.ALL


def test_vectors_have_names() -> None:
    assert flags.vector_name(14) == "#PF"
    assert flags.vector_name(0x80) == "vector 0x80"
