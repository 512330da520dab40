"""Features that Xen reports by XENVER_get_features, as bit numbers of submap 0.

Header: public/features.h
"""

from __future__ import annotations

from typing import Final

XENFEAT_writable_page_tables: Final = 0
XENFEAT_writable_descriptor_tables: Final = 1
XENFEAT_auto_translated_physmap: Final = 2
XENFEAT_supervisor_mode_kernel: Final = 3
XENFEAT_pae_pgdir_above_4gb: Final = 4
XENFEAT_mmu_pt_update_preserve_ad: Final = 5
XENFEAT_highmem_assist: Final = 6
XENFEAT_gnttab_map_avail_bits: Final = 7
XENFEAT_hvm_callback_vector: Final = 8
XENFEAT_hvm_safe_pvclock: Final = 9
XENFEAT_hvm_pirqs: Final = 10
XENFEAT_dom0: Final = 11
XENFEAT_memory_op_vnode_supported: Final = 13
XENFEAT_ARM_SMCCC_supported: Final = 14
XENFEAT_linux_rsdp_unrestricted: Final = 15
XENFEAT_not_direct_mapped: Final = 16
XENFEAT_direct_mapped: Final = 17

XENFEAT_NR_SUBMAPS: Final = 1


def pv_features(vm_assist: int = 0) -> int:
    """The features that Xen 4.17 reports to a PV domU of either width.

    `vm_assist` is the domain's: with the 4 GiB extension of PAE's CR3 enabled, page
    directories may lie above 4 GiB.
    """
    features = (
        XENFEAT_mmu_pt_update_preserve_ad,
        XENFEAT_highmem_assist,
        XENFEAT_gnttab_map_avail_bits,
        XENFEAT_memory_op_vnode_supported,
        XENFEAT_direct_mapped,
    )
    pae = (vm_assist >> _PAE_EXTENDED_CR3 & 1) << XENFEAT_pae_pgdir_above_4gb
    return sum(1 << feature for feature in features) | pae


def pvh_features() -> int:
    """The features that Xen 4.17 reports to a PVH domU, which has no pirqs."""
    features = (
        XENFEAT_writable_page_tables,
        XENFEAT_auto_translated_physmap,
        XENFEAT_hvm_callback_vector,
        XENFEAT_hvm_safe_pvclock,
        XENFEAT_memory_op_vnode_supported,
        XENFEAT_not_direct_mapped,
    )
    return sum(1 << feature for feature in features)


_PAE_EXTENDED_CR3: Final = 3  # VMASST_TYPE_pae_extended_cr3
