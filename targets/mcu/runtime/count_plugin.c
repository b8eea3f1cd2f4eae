/* The instruction counter as a plugin of QEMU's code generator; the same numbers as count_hook.c.
 *
 * Arguments: map=FILE (u64 base, u64 halfwords, u64 owner count; then a u16 owner and, behind all
 * owners, a u8 of plugin_flags for each halfword), out=FILE (pairs of u64: place in the counts and
 * count, for every count that is not 0, behind the number of unknown blocks and a 0; written when
 * the emulator ends). The prototypes are those of QEMU's documented plugin interface; its header
 * is not needed and seldom installed. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "layer_counter.h"

#define PLUGIN_EXPORT __attribute__((visibility("default")))

struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_info;
enum qemu_plugin_cb_flags { QEMU_PLUGIN_CB_NO_REGS };
enum qemu_plugin_mem_rw { QEMU_PLUGIN_MEM_RW = 3 };
typedef uint64_t qemu_plugin_id_t;
typedef void (*qemu_plugin_vcpu_tb_trans_cb_t)(qemu_plugin_id_t, struct qemu_plugin_tb *);
typedef void (*qemu_plugin_vcpu_udata_cb_t)(unsigned int, void *);
typedef void (*qemu_plugin_vcpu_mem_cb_t)(unsigned int, uint32_t, uint64_t, void *);
typedef void (*qemu_plugin_udata_cb_t)(qemu_plugin_id_t, void *);

extern void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, qemu_plugin_vcpu_tb_trans_cb_t);
extern void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *,
                                                 qemu_plugin_vcpu_udata_cb_t,
                                                 enum qemu_plugin_cb_flags, void *);
extern void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *,
                                                   qemu_plugin_vcpu_udata_cb_t,
                                                   enum qemu_plugin_cb_flags, void *);
extern void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *, qemu_plugin_vcpu_mem_cb_t,
                                             enum qemu_plugin_cb_flags, enum qemu_plugin_mem_rw,
                                             void *);
extern void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, qemu_plugin_udata_cb_t, void *);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
extern uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);

extern PLUGIN_EXPORT int qemu_plugin_version;
PLUGIN_EXPORT int qemu_plugin_version = QEMU_PLUGIN_VERSION;
PLUGIN_EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info *info, int argc,
                                      char **argv);

enum plugin_flag { PLUGIN_WATCHED = 1, PLUGIN_WIDE = 2 };

struct plugin_block {
    uint64_t address;
    uint64_t bytes;
};

static struct layer_counter plugin_counter = {
    .current = LAYER_COUNTER_OUTSIDE,
};
static uint8_t *plugin_flags; /* [halfwords]: to be watched; an instruction here has 32 bits */
static uint64_t plugin_armed; /* the watched instruction that began last and accessed nothing yet */
static const char *plugin_out;

static uint64_t plugin_count_total(void)
{
    return LAYER_COUNTER_PLANES * plugin_counter.owner_count * (plugin_counter.halfwords + 1);
}

static void plugin_execute(unsigned int cpu, void *data)
{
    const struct plugin_block *block = data;
    (void)cpu;
    layer_counter_block(&plugin_counter, block->address, block->bytes);
}

/* QEMU calls this for an instruction that an IT block skips too, and the next one only when it
 * accesses memory; a load of several registers accesses it several times. */
static void plugin_arm(unsigned int cpu, void *data)
{
    const struct plugin_block *block = data;
    (void)cpu;
    plugin_armed = block->address;
}

static void plugin_pass(unsigned int cpu, uint32_t info, uint64_t where, void *data)
{
    const struct plugin_block *block = data;
    (void)cpu;
    (void)info;
    (void)where;
    if (plugin_armed == block->address) {
        plugin_armed = 0;
        layer_counter_pass(&plugin_counter, block->address);
    }
}

/* QEMU keeps the pointer for as long as the translated code lives: it is never freed. */
static struct plugin_block *plugin_new_block(uint64_t address, uint64_t bytes)
{
    struct plugin_block *block = malloc(sizeof *block);
    if (!block) {
        abort();
    }
    block->address = address;
    block->bytes = bytes;
    return block;
}

static void plugin_translate(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
    const uint64_t address = qemu_plugin_tb_vaddr(tb);
    uint64_t end = address;
    size_t i;
    (void)id;
    for (i = 0; i < qemu_plugin_tb_n_insns(tb); i++) {
        struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
        const uint64_t at = qemu_plugin_insn_vaddr(insn);
        const uint64_t index = (at - plugin_counter.base) >> 1;
        const unsigned int flags = index < plugin_counter.halfwords ? plugin_flags[index] : 0;
        /* QEMU's own size of an instruction holds what it read ahead at the end of a page. */
        end = at + (flags & PLUGIN_WIDE ? 4 : 2);
        if (flags & PLUGIN_WATCHED) {
            struct plugin_block *one = plugin_new_block(at, end - at);
            qemu_plugin_register_vcpu_insn_exec_cb(insn, plugin_arm, QEMU_PLUGIN_CB_NO_REGS, one);
            qemu_plugin_register_vcpu_mem_cb(insn, plugin_pass, QEMU_PLUGIN_CB_NO_REGS,
                                             QEMU_PLUGIN_MEM_RW, one);
        }
    }
    qemu_plugin_register_vcpu_tb_exec_cb(tb, plugin_execute, QEMU_PLUGIN_CB_NO_REGS,
                                         plugin_new_block(address, end - address));
}

static void plugin_end(qemu_plugin_id_t id, void *data)
{
    const uint64_t head[2] = {plugin_counter.unknown, 0};
    const uint64_t total = plugin_count_total();
    uint64_t place;
    FILE *file = fopen(plugin_out, "wb");
    (void)id;
    (void)data;
    if (!file) {
        return;
    }
    fwrite(head, sizeof head, 1, file);
    for (place = 0; place < total; place++) {
        const uint64_t pair[2] = {place, plugin_counter.counts[place]};
        if (pair[1]) {
            fwrite(pair, sizeof pair, 1, file);
        }
    }
    fclose(file);
}

static int plugin_read_map(const char *name)
{
    uint64_t head[3];
    uint16_t *owners;
    FILE *file = fopen(name, "rb");
    if (!file) {
        return 0;
    }
    if (fread(head, sizeof head, 1, file) != 1) {
        fclose(file);
        return 0;
    }
    plugin_counter.base = head[0];
    plugin_counter.halfwords = head[1];
    plugin_counter.owner_count = head[2];
    owners = malloc((size_t)head[1] * sizeof *owners);
    plugin_flags = malloc((size_t)head[1]);
    plugin_counter.counts = calloc((size_t)plugin_count_total(), sizeof(uint64_t));
    if (!owners || !plugin_flags || !plugin_counter.counts ||
        fread(owners, sizeof *owners, (size_t)head[1], file) != head[1] ||
        fread(plugin_flags, 1, (size_t)head[1], file) != head[1]) {
        fclose(file);
        return 0;
    }
    fclose(file);
    plugin_counter.owners = owners;
    return 1;
}

int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info *info, int argc, char **argv)
{
    const char *map = NULL;
    int i;
    (void)info;
    for (i = 0; i < argc; i++) {
        if (!strncmp(argv[i], "map=", 4)) {
            map = argv[i] + 4;
        }
        if (!strncmp(argv[i], "out=", 4)) {
            plugin_out = strcpy(malloc(strlen(argv[i]) + 1), argv[i] + 4);
        }
    }
    if (!map || !plugin_out || !plugin_read_map(map)) {
        return 1;
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, plugin_translate);
    qemu_plugin_register_atexit_cb(id, plugin_end, NULL);
    return 0;
}
