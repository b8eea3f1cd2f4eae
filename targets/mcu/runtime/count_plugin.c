/* The instruction counter as a plugin of QEMU's code generator; the same numbers as count_hook.c.
 *
 * Arguments: map=FILE (u64 base, u64 halfwords, u64 owner count, then u16 owners), out=FILE (u64
 * instructions by owner, written when the emulator ends). The prototypes are those of QEMU's
 * documented plugin interface; its header is not needed and seldom installed. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "layer_counter.h"

#define PLUGIN_EXPORT __attribute__((visibility("default")))

struct qemu_plugin_tb;
struct qemu_info;
enum qemu_plugin_cb_flags { QEMU_PLUGIN_CB_NO_REGS };
typedef uint64_t qemu_plugin_id_t;
typedef void (*qemu_plugin_vcpu_tb_trans_cb_t)(qemu_plugin_id_t, struct qemu_plugin_tb *);
typedef void (*qemu_plugin_vcpu_udata_cb_t)(unsigned int, void *);
typedef void (*qemu_plugin_udata_cb_t)(qemu_plugin_id_t, void *);

extern void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, qemu_plugin_vcpu_tb_trans_cb_t);
extern void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *,
                                                 qemu_plugin_vcpu_udata_cb_t,
                                                 enum qemu_plugin_cb_flags, void *);
extern void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, qemu_plugin_udata_cb_t, void *);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);

extern PLUGIN_EXPORT int qemu_plugin_version;
PLUGIN_EXPORT int qemu_plugin_version = QEMU_PLUGIN_VERSION;
PLUGIN_EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info *info, int argc,
                                      char **argv);

struct plugin_block {
    uint64_t address;
    uint64_t instructions;
};

static struct layer_counter plugin_counter = {0, 0, NULL, NULL, LAYER_COUNTER_OUTSIDE, 0};
static uint64_t plugin_owner_count;
static const char *plugin_out;

static void plugin_execute(unsigned int cpu, void *data)
{
    const struct plugin_block *block = data;
    (void)cpu;
    layer_counter_block(&plugin_counter, block->address, block->instructions);
}

/* QEMU keeps the pointer for as long as the translated code lives: it is never freed here. */
static void plugin_translate(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
    struct plugin_block *block = malloc(sizeof *block);
    (void)id;
    if (!block) {
        abort();
    }
    block->address = qemu_plugin_tb_vaddr(tb);
    block->instructions = qemu_plugin_tb_n_insns(tb);
    qemu_plugin_register_vcpu_tb_exec_cb(tb, plugin_execute, QEMU_PLUGIN_CB_NO_REGS, block);
}

static void plugin_end(qemu_plugin_id_t id, void *data)
{
    FILE *file = fopen(plugin_out, "wb");
    (void)id;
    (void)data;
    if (file) {
        fwrite(plugin_counter.counts, sizeof(uint64_t), (size_t)plugin_owner_count, file);
        fclose(file);
    }
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
    owners = malloc((size_t)head[1] * sizeof *owners);
    plugin_counter.counts = calloc((size_t)head[2], sizeof(uint64_t));
    if (!owners || !plugin_counter.counts ||
        fread(owners, sizeof *owners, (size_t)head[1], file) != head[1]) {
        fclose(file);
        return 0;
    }
    fclose(file);
    plugin_counter.base = head[0];
    plugin_counter.halfwords = head[1];
    plugin_counter.owners = owners;
    plugin_owner_count = head[2];
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
