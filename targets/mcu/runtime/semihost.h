/* Semihosting, the calls that the harness needs.
 * Sources: "Semihosting for AArch32 and AArch64" (Arm, 2.0), "RISC-V Semihosting" (0.4). */
#ifndef TVM_COMPRESS_SEMIHOST_H
#define TVM_COMPRESS_SEMIHOST_H

#include <stddef.h>

enum semihost_mode { SEMIHOST_READ_BINARY = 1, SEMIHOST_WRITE_BINARY = 5 };

/* Returns a handle, or -1. */
int semihost_open(const char *name, enum semihost_mode mode);
/* Both return the number of bytes that were NOT transferred: 0 is success. */
size_t semihost_read(int handle, void *data, size_t bytes);
size_t semihost_write(int handle, const void *data, size_t bytes);
int semihost_close(int handle);
/* Ends the emulator with this exit code; never returns. */
void semihost_exit(int code);

#endif
