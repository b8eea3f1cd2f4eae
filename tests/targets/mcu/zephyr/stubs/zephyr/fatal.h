#include <stdlib.h>
typedef struct arch_esf z_arch_esf_t; /* one type, two names: as Zephyr has it around 3.7 */
void k_sys_fatal_error_handler(unsigned int reason, const struct arch_esf *frame);
static inline void k_fatal_halt(unsigned int reason)
{
    exit((int)reason);
}
