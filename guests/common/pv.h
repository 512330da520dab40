/* What only PV guests have: Xen's public xen.h and arch-x86/xen.h as far as they are used. */
#ifndef PV_H
#define PV_H

#include "guest.h"

#define TI_DPL 3 /* trap_info.flags */
#define TI_IF 4	 /* mask events on entry */

#define MMUEXT_PIN_L1_TABLE 0 /* and those of L2 to L4 */
#define MMUEXT_UNPIN_TABLE 4
#define MMUEXT_NEW_BASEPTR 5
#define MMUEXT_SET_LDT 13
#define MMUEXT_NEW_USER_BASEPTR 15
#define MMUEXT_CLEAR_PAGE 16
#define MMUEXT_COPY_PAGE 17

#define MMU_MACHPHYS_UPDATE 1
#define MMU_PT_UPDATE_PRESERVE_AD 2

#define UVMF_INVLPG 2
#define UVMF_ALL (1 << 2)

#define VMASST_CMD_enable 0
#define VMASST_TYPE_writable_pagetables 2

#define CALLBACKOP_register 0
#define CALLBACKTYPE_event 0
#define CALLBACKTYPE_failsafe 1

#define PHYSDEVOP_set_iopl 6

#define PTE_P 1ull
#define PTE_RW 2ull
#define PTE_US 4ull
#define PTE_PWT 8ull
#define PTE_PCD 0x10ull
#define PTE_A 0x20ull
#define PTE_D 0x40ull
#define PTE_PSE 0x80ull /* above L1 */
#define PTE_PAT 0x80ull /* in L1 */
#define PTE_G 0x100ull
#define PTE_NX (1ull << 63)
#define PTE_ADDR 0xffffffffff000ull

#define EPERM 1
#define ENOENT 2
#define ESRCH 3
#define EACCES 13
#define EFAULT 14
#define EBUSY 16
#define EEXIST 17
#define ENODEV 19
#define EINVAL 22
#define ENOSPC 28
#define ENOSYS 38
#define EOPNOTSUPP 95

struct trap_info {
	uint8_t vector;
	uint8_t flags;
	uint16_t cs;
	unsigned long address;
};

struct mmu_update {
	uint64_t ptr; /* the machine address of an entry, and a command */
	uint64_t val;
};

struct mmuext_op {
	unsigned int cmd;
	unsigned long arg1; /* mfn, or linear_addr */
	unsigned long arg2; /* nr_ents */
};

#ifdef __x86_64__
struct callback_register {
	uint16_t type, flags;
	unsigned long address;
};
#else
struct callback_register {
	uint16_t type, flags;
	unsigned long cs, address;
};
#endif

/* As hypercall(), with four arguments. */
static inline long hypercall4(unsigned int number, unsigned long a1, unsigned long a2,
			      unsigned long a3, unsigned long a4)
{
	extern char hypercall_page[];
	char *entry = hypercall_page + number * 32;
	long result;

#ifdef __x86_64__
	register unsigned long r10 asm("r10") = a4;

	asm volatile("call *%[entry]"
		     : "=a"(result), "+D"(a1), "+S"(a2), "+d"(a3), "+r"(r10)
		     : [entry] "r"(entry)
		     : "rcx", "r11", "memory");
#else
	asm volatile("call *%[entry]"
		     : "=a"(result), "+b"(a1), "+c"(a2), "+d"(a3), "+S"(a4)
		     : [entry] "r"(entry)
		     : "memory");
#endif
	return result;
}

/* Does an entry of a trap's mask events? They all do until told otherwise. */
void set_gate_masks_events(unsigned int vector, int masks);

/* The frame of one of the guest's pages; addresses below the end of its memory are its pfns. */
static inline unsigned long virt_to_mfn(const volatile void *at)
{
	return ((const unsigned long *)start_info()->mfn_list)[(unsigned long)at >> 12];
}

static inline uint64_t virt_to_maddr(const volatile void *at)
{
	return (uint64_t)virt_to_mfn(at) << 12 | ((unsigned long)at & 4095);
}

static inline long mmuext(unsigned int command, unsigned long arg1, unsigned long arg2)
{
	struct mmuext_op op = { command, arg1, arg2 };

	return hypercall4(__HYPERVISOR_mmuext_op, (unsigned long)&op, 1, 0, DOMID_SELF);
}

static inline long pin_table(unsigned int level, unsigned long mfn)
{
	return mmuext(MMUEXT_PIN_L1_TABLE + level - 1, mfn, 0);
}

static inline long mmu_update(uint64_t ptr, uint64_t val)
{
	struct mmu_update request = { ptr, val };

	return hypercall4(__HYPERVISOR_mmu_update, (unsigned long)&request, 1, 0, DOMID_SELF);
}

static inline long update_descriptor(uint64_t maddr, uint64_t descriptor)
{
#ifdef __x86_64__
	return hypercall(__HYPERVISOR_update_descriptor, maddr, descriptor, 0);
#else
	return hypercall4(__HYPERVISOR_update_descriptor, maddr, maddr >> 32, descriptor,
			  descriptor >> 32);
#endif
}

static inline long update_va_mapping(const volatile void *at, uint64_t entry)
{
	unsigned long flags = UVMF_INVLPG | UVMF_ALL;

#ifdef __x86_64__
	return hypercall(__HYPERVISOR_update_va_mapping, (unsigned long)at, entry, flags);
#else
	return hypercall4(__HYPERVISOR_update_va_mapping, (unsigned long)at, entry, entry >> 32,
			  flags);
#endif
}

/* The entry of a level that leads to an address, through the read-only mapping of the tables. */
volatile uint64_t *table_entry(int level, const volatile void *at);

static inline volatile uint64_t *l1_entry(const volatile void *at)
{
	return table_entry(1, at);
}

#endif
