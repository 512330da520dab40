"""What only PVH domains have: their builder, ACPI, local APIC, CPUID, MSRs and callbacks."""
