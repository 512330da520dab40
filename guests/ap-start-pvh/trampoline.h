#ifndef TRAMPOLINE_H
#define TRAMPOLINE_H

#define TRAMPOLINE 0x9000 /* the page that STARTUP names, and its address */

#endif
