"""abi/arch_x86/cpufeatureset: each feature is where Xen's header has it, with its marks."""

from __future__ import annotations

import re

from xenemu.abi.arch_x86.cpufeatureset import WORD_1C, Feature, word_of

DECLARED = re.compile(r"^XEN_CPUFEATURE\((\w+), +(\d+)\*32\+ ?(\d+)\) +/\*([\w!]*) ", re.MULTILINE)


def test_features_are_xens(guest_image):
    header = (guest_image("xen-headers") / "arch-x86/cpufeatureset.h").read_text()
    declared = {
        name: (int(word) + int(bit) // 32, int(bit) % 32, marks)
        for name, word, bit, marks in DECLARED.findall(header)
    }
    assert {feature.name: declared[feature.name] for feature in Feature} == {
        feature.name: feature.value for feature in Feature
    }


def test_a_word_has_the_bits_of_its_features():
    features = frozenset({Feature.SSE3, Feature.HYPERVISOR, Feature.FPU})
    assert word_of(features, WORD_1C) == 1 << 31 | 1
