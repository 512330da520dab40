/*
 * A kernel with the note BSD_SYMTAB finds its symbols in memory, after its last segment. There is a
 * size, and then a small ELF file, whose section headers lead to the symbol table and its strings.
 * What else Xen puts there (start_info, the p2m list, modules) follows.
 */
#include "guest.h"
#ifndef GUEST_PV
#include "pvh.h"
#endif

#ifdef __x86_64__
#define ELFCLASS 2
struct elf_header {
	unsigned char ident[16];
	uint16_t type, machine;
	uint32_t version;
	uint64_t entry, phoff, shoff;
	uint32_t flags;
	uint16_t ehsize, phentsize, phnum, shentsize, shnum, shstrndx;
};
struct section_header {
	uint32_t name, type;
	uint64_t flags, addr, offset, size;
	uint32_t link, info;
	uint64_t addralign, entsize;
};
struct symbol {
	uint32_t name;
	unsigned char info, other;
	uint16_t section;
	uint64_t value, size;
};
#else
#define ELFCLASS 1
struct elf_header {
	unsigned char ident[16];
	uint16_t type, machine;
	uint32_t version, entry, phoff, shoff, flags;
	uint16_t ehsize, phentsize, phnum, shentsize, shnum, shstrndx;
};
struct section_header {
	uint32_t name, type, flags, addr, offset, size, link, info, addralign, entsize;
};
struct symbol {
	uint32_t name, value, size;
	unsigned char info, other;
	uint16_t section;
};
#endif

#define SHT_SYMTAB 2
#define SHT_STRTAB 3
#define SECTIONS_OFFSET 64 /* also where an ELF header has 52 bytes */

extern char image_end[];

static unsigned long round_up(unsigned long value)
{
	return (value + sizeof(long) - 1) & -sizeof(long);
}

static int same(const char *one, const char *two)
{
	while (*one && *one == *two)
		one++, two++;
	return *one == *two;
}

/* The address that the symbol table has for a name; 0 without one. */
static unsigned long address(const char *file, const struct section_header *sections,
			     const char *name)
{
	const struct symbol *at = (const void *)(file + sections[1].offset);
	const char *strings = file + sections[2].offset;

	for (unsigned long i = 0; i < sections[1].size / sizeof(*at); i++)
		if (at[i].name < sections[2].size && same(strings + at[i].name, name))
			return at[i].value;
	return 0;
}

/* The first thing that Xen put after the kernel and its symbols. */
static unsigned long next_piece(void)
{
#ifdef GUEST_PV
	return start_info()->mfn_list;
#else
	return (unsigned long)hvm_start_info();
#endif
}

void guest_main(void)
{
	char *start = (char *)round_up((unsigned long)image_end), *file = start + 4;
	uint32_t size = *(uint32_t *)start;
	const struct elf_header *header = (const void *)file;
	const struct section_header *sections = (const void *)(file + SECTIONS_OFFSET);
	const unsigned char nothing[sizeof(*sections)] = { 0 };

	check(*(uint32_t *)header->ident == 0x464c457f, "an ELF header follows the size");
	check_equal("class", header->ident[4], ELFCLASS);
	check_equal("type", header->type, 2);
	check_equal("version", header->version, 1);
	check_equal("phoff", header->phoff, 0);
	check_equal("shoff", header->shoff, SECTIONS_OFFSET);
	check_equal("ehsize", header->ehsize, sizeof(*header));
	check_equal("phentsize", header->phentsize, 0);
	check_equal("phnum", header->phnum, 0);
	check_equal("shentsize", header->shentsize, sizeof(*sections));
	check_equal("shnum", header->shnum, 3);
	check_equal("shstrndx", header->shstrndx, 0);

	for (unsigned int i = 0; i < sizeof(nothing); i++)
		check_equal("section 0", ((const unsigned char *)sections)[i], 0);
	check_equal("symbol table", sections[1].type, SHT_SYMTAB);
	check_equal("its offset", sections[1].offset,
		    round_up((unsigned long)start + 4 + 64 + 3 * 64) - (unsigned long)file);
	check_equal("its strings", sections[1].link, 2);
	check_equal("its entries", sections[1].entsize, sizeof(struct symbol));
	check_equal("strings", sections[2].type, SHT_STRTAB);
	check_equal("their offset", sections[2].offset,
		    round_up((unsigned long)file + sections[1].offset + sections[1].size) -
			    (unsigned long)file);
	check_equal("size", size, sections[2].offset + sections[2].size);
	check(next_piece() >= (unsigned long)file + size, "what follows is after the symbols");

	check_equal("guest_main", address(file, sections, "guest_main"), (unsigned long)guest_main);
	check_equal("image_end", address(file, sections, "image_end"), (unsigned long)image_end);
	check_equal("no such name", address(file, sections, "nowhere"), 0);
	success();
}
