/* The guest's own code and data segment, in entries 1 and 2 of its GDT. */
#define OWN_CS 0x0b
#define OWN_DS 0x13
