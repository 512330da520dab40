/* As traps.S, with Xen's frames and its iret hypercall. */
#define PV
#include "traps.S"
